"""Execution: `Model`, `load`, `Decoder` and single packed layers."""

from pqnet.runtime.decoder import Decoder as Decoder
from pqnet.runtime.functional import conv2d as conv2d
from pqnet.runtime.functional import embedding as embedding
from pqnet.runtime.functional import linear as linear
from pqnet.runtime.host import host_report as host_report
from pqnet.runtime.model import Model as Model
from pqnet.runtime.model import load as load
