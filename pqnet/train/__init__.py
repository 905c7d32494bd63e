"""Training: packed weights inside PyTorch modules, learned through their codes. Needs PyTorch."""

from pqnet.train.activations import ActivationNoise as ActivationNoise
from pqnet.train.data import Batches as Batches
from pqnet.train.data import image_batches as image_batches
from pqnet.train.distill import distill as distill
from pqnet.train.ipq import IterativePQ as IterativePQ
from pqnet.train.lc import LC as LC
from pqnet.train.methods import train as train
from pqnet.train.module import to_model as to_model
from pqnet.train.module import to_module as to_module
from pqnet.train.noise import LayerDrop as LayerDrop
from pqnet.train.noise import QuantNoise as QuantNoise
from pqnet.train.ops import TorchGraph as TorchGraph
from pqnet.train.packed import PackedWeight as PackedWeight
from pqnet.train.packed import attach as attach
from pqnet.train.packed import detach as detach
from pqnet.train.packed import packed_weights as packed_weights
from pqnet.train.parallel import is_main as is_main
from pqnet.train.parallel import process_group as process_group
from pqnet.train.sharing import share_layers as share_layers
from pqnet.train.weights import FilterForm as FilterForm
from pqnet.train.weights import Weight as Weight
from pqnet.train.weights import find_weights as find_weights
from pqnet.train.weights import match as match
