"""Training: packed weights inside PyTorch modules, learned through their codes. Needs PyTorch."""

from pqnet.train.lc import LC as LC
from pqnet.train.ops import TorchGraph as TorchGraph
from pqnet.train.packed import PackedWeight as PackedWeight
from pqnet.train.packed import attach as attach
from pqnet.train.packed import detach as detach
from pqnet.train.packed import packed_weights as packed_weights
from pqnet.train.weights import FilterForm as FilterForm
from pqnet.train.weights import Weight as Weight
from pqnet.train.weights import find_weights as find_weights
from pqnet.train.weights import match as match
