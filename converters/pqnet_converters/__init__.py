"""Thin importers: PyTorch modules, published checkpoints, recorded activations. Needs PyTorch."""

from pqnet_converters.activations import statistics_from_activations as statistics_from_activations
from pqnet_converters.from_torch import from_torch as from_torch
from pqnet_converters.published import from_kill_the_bits as from_kill_the_bits
from pqnet_converters.published import from_pqf as from_pqf
from pqnet_converters.to_torch import to_torch as to_torch
