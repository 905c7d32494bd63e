"""``pqnet convert kill-the-bits`` and ``pqf``."""

import argparse
from typing import Any

from pqnet import Model
from pqnet_converters.checkpoints.kill_the_bits import from_kill_the_bits
from pqnet_converters.checkpoints.pqf import from_pqf
from pqnet_converters.checkpoints.resnet import RESNETS

__all__ = ["kill_the_bits_command", "pqf_command"]


class PublishedCommand:
    """``pqnet convert kill-the-bits`` and ``pqf``: a published checkpoint of a ResNet."""

    def __init__(self, source: str, read: Any) -> None:
        self.read = read
        self.text = f"Convert a compressed ResNet checkpoint of {source}."
        self.example = f"pqnet convert {source} resnet18 file.pth -o model.h5"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("arch", help=" or ".join(RESNETS))
        parser.add_argument("path", help="checkpoint file")

    def convert(self, args: argparse.Namespace) -> Model:
        """Read the file and record what the network gives."""
        model: Model = self.read(args.path, args.arch)
        return model.with_golden(model.draw_golden(args.seed))


kill_the_bits_command = PublishedCommand("kill-the-bits", from_kill_the_bits)
pqf_command = PublishedCommand("pqf", from_pqf)
