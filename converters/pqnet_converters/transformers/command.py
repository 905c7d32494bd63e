"""``pqnet convert hf``."""

import argparse
from typing import Any

import torch

from pqnet import Model
from pqnet_converters.torch.command import print_sizes, quiet, recorded
from pqnet_converters.torch.export import inference
from pqnet_converters.transformers.cache import with_arrays
from pqnet_converters.transformers.folder import load_folder
from pqnet_converters.transformers.from_transformers import from_transformers, without_cache

__all__ = ["hf_command"]


class HFCommand:
    """``pqnet convert hf``: a folder of the package transformers."""

    text = "Convert the folder of a Hugging Face network: config.json with model.safetensors or pytorch_model.bin."
    example = "pqnet convert hf ./gpt2 -o gpt2.h5"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", help="as save_pretrained writes it; nothing is downloaded")
        parser.add_argument("--architecture", help="class of transformers (default: the one that config.json names)")
        parser.add_argument("--no-cache", action="store_true", help="of a decoder: all tokens at once, no cache")

    def convert(self, args: argparse.Namespace) -> Model:
        """Convert, run both on the same inputs, and record PyTorch's outputs in the file."""
        module = load_folder(args.folder, args.architecture)
        with quiet():
            model = from_transformers(module, cache=False if args.no_cache else None)
        print_sizes(model)

        def call(inputs: dict[str, torch.Tensor]) -> Any:
            if "decoder" not in model.graph.meta:
                with inference(module), without_cache(module):
                    return module(**inputs)
            with inference(module), with_arrays(module, list(inputs)):
                return module(*inputs.values())

        return recorded(model, call, args.seed, "convert hf")


hf_command = HFCommand()
