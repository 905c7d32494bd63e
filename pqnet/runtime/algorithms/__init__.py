"""Algorithms for layers: one file each, registered by `base.Algorithm`."""

from pqnet.runtime.algorithms import columns as columns
from pqnet.runtime.algorithms import depthwise as depthwise
from pqnet.runtime.algorithms import depthwise_down as depthwise_down
from pqnet.runtime.algorithms import direct as direct
from pqnet.runtime.algorithms import dots as dots
from pqnet.runtime.algorithms import gemm as gemm
from pqnet.runtime.algorithms import lanes as lanes
from pqnet.runtime.algorithms import lut as lut
from pqnet.runtime.algorithms import lut_pointwise as lut_pointwise
from pqnet.runtime.algorithms import parts as parts
from pqnet.runtime.algorithms import planes as planes
from pqnet.runtime.algorithms import rows as rows
from pqnet.runtime.algorithms import sums as sums
from pqnet.runtime.algorithms import taps as taps
from pqnet.runtime.algorithms import winograd as winograd
from pqnet.runtime.algorithms import words as words
from pqnet.runtime.algorithms.base import ALGORITHMS as ALGORITHMS
from pqnet.runtime.algorithms.base import HOST as HOST
