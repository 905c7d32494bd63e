"""``pqnet convert`` and ``export``: converters are found through entry points, so that the core never imports them."""

import argparse
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pqnet
from pqnet import PQNetError
from pqnet.cli.data import check_output
from pqnet.cli.parser import Parser, add_common
from pqnet.io import replaced

__all__ = ["export", "formats", "run", "sources"]


def _found(what: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"pqnet.{what}")}


def sources() -> list[str]:
    """Return the names of the installed converters."""
    return sorted(_found("converters"))


def formats() -> list[str]:
    """Return the names of the installed exporters."""
    return sorted(_found("exporters"))


def _load(command: str, group: str, name: str) -> Any:
    found, kind = _found(group), "source" if command == "convert" else "format"
    if name not in found:
        raise PQNetError(f"{command}: expected a {kind} of {', '.join(sorted(found))}, got {name!r}")
    try:
        return found[name].load()
    except ModuleNotFoundError as missing:
        extra = {"hf": "transformers", "onnx": "onnx"}.get(name, "torch")
        package = str(missing.name).partition(".")[0]
        raise PQNetError(f"{command} {name}: needs the package {package!r}; pip install 'pqnet[{extra}]'") from None


def run(args: argparse.Namespace) -> None:
    """Run one converter: an object with ``text``, ``example``, ``add_arguments(parser)`` and ``convert(args)``."""
    command = _load("convert", "converters", args.source)
    parser = Parser(
        prog=f"pqnet convert {args.source}", description=command.text, epilog=f"example:\n  {command.example}"
    )
    command.add_arguments(parser)
    parser.add_argument("-o", "--output", required=True, help="model file to write")
    add_common(parser)
    own = parser.parse_args(args.rest)
    check_output(own.output, (".h5",))
    model = command.convert(own)
    model.save(own.output)
    print(f"{own.output}: {model}")


def export(args: argparse.Namespace) -> None:
    """Run one exporter: an object with ``suffix`` and ``export(model)``, which returns the bytes of a file."""
    command = _load("export", "exporters", args.format)
    check_output(args.output, (command.suffix,))
    data = command.export(pqnet.load(args.model))
    with replaced(args.output) as temporary, open(temporary, "wb") as file:
        file.write(data)
    print(f"{args.output}: {len(data)} bytes")
