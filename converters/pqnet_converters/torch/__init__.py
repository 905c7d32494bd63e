"""PyTorch: modules that become models and back, calibration from recorded activations."""

from pqnet_converters.torch.activations import statistics_from_activations as statistics_from_activations
from pqnet_converters.torch.from_torch import from_torch as from_torch
from pqnet_converters.torch.from_torchvision import from_torchvision as from_torchvision
from pqnet_converters.torch.to_torch import to_torch as to_torch
