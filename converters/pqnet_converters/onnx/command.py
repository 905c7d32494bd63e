"""``pqnet convert onnx`` and ``pqnet export onnx``."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from pqnet import Model, PQNetError
from pqnet_converters.onnx.from_onnx import from_onnx
from pqnet_converters.onnx.to_onnx import to_onnx

__all__ = ["onnx_command", "onnx_export"]


class OnnxCommand:
    """``pqnet convert onnx``: an ONNX file."""

    text = "Convert an ONNX network."
    example = "pqnet convert onnx model.onnx --input images=1x3xHxW -o model.h5"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", help="ONNX file, opset 9 to 23; data beside it is read from its folder")
        parser.add_argument(
            "--input",
            action="append",
            default=[],
            metavar="NAME=SHAPE",
            help="fix or name free sizes of an input: images=1x3xHxW; axes of one name have one size; repeatable",
        )
        parser.add_argument(
            "--value",
            action="append",
            default=[],
            metavar="NAME=NUMBER",
            help="value that an input always has, such as a sampling rate; no input of the model then; repeatable",
        )

    def convert(self, args: argparse.Namespace) -> Model:
        """Convert, and record outputs in the file."""
        model = from_onnx(args.file, shapes=dict(map(_shape, args.input)), values=dict(map(_value, args.value)))
        return model.with_golden(model.draw_golden(args.seed))


def _parts(item: str, flag: str, example: str) -> tuple[str, str]:
    name, equals, text = item.rpartition("=")
    if not equals or not name or not text:
        raise PQNetError(f"{flag}: expected {example}, got {item!r}")
    return name, text


def _shape(item: str) -> tuple[str, Sequence[int | str]]:
    name, text = _parts(item, "--input", "NAME=SHAPE such as images=1x3xHxW")
    sizes = text.split("x")
    if not all(s.isdecimal() or s.isidentifier() for s in sizes):
        raise PQNetError(f"--input: expected NAME=SHAPE such as images=1x3xHxW, got {item!r}")
    return name, [int(s) if s.isdecimal() else s for s in sizes]


def _value(item: str) -> tuple[str, Any]:
    name, text = _parts(item, "--value", "NAME=NUMBER such as sr=16000")
    try:
        return name, np.array(int(text) if text.lstrip("-").isdecimal() else float(text))
    except ValueError:
        raise PQNetError(f"--value: expected NAME=NUMBER such as sr=16000, got {item!r}") from None


class OnnxExport:
    """``pqnet export onnx``."""

    suffix = ".onnx"

    def export(self, model: Model) -> bytes:
        """Return the bytes of the ONNX file."""
        data: bytes = to_onnx(model).SerializeToString()
        return data


onnx_command, onnx_export = OnnxCommand(), OnnxExport()
