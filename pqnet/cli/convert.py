"""``pqnet convert`` and ``export``: converters are found through entry points, so that the core never imports them."""

import argparse
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pqnet
from pqnet import PQNetError, TextInput
from pqnet._progress import above_bars, progress_bar
from pqnet.cli.data import check_output
from pqnet.cli.log import logged
from pqnet.cli.parser import Parser, add_common
from pqnet.errors import did_you_mean
from pqnet.io import replaced
from pqnet.processing import Processing, read_labels, read_processing

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
        got = f"{name!r}{did_you_mean(name, found)}"
        raise PQNetError(f"{command}: expected a {kind} of {', '.join(sorted(found))}, got {got}")
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
    parser.add_argument(
        "--preprocess",
        metavar="FILE",
        help="how images become inputs: imagenet, YAML of pqnet.ImageInput, preprocessor_config.json of Hugging Face, "
        "config.json of timm, or a folder of one of these; kept in the model file, see pqnet run --image",
    )
    parser.add_argument("--labels", metavar="FILE", help="names of classes to keep: a line each, or JSON (id2label)")
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json in the model file's folder, see pqnet run --text"
    )
    add_common(parser)
    own = parser.parse_args(args.rest)
    check_output(own.output, (".h5",))
    processing = _processing(own)
    what = f"convert {args.source}"
    with logged(own, [what, *args.rest]), progress_bar(not own.quiet, what, "node"), above_bars():
        model = command.convert(own)
    if processing is not None:
        model = pqnet.with_processing(model, **vars(processing))
    model.save(own.output)
    print(f"{own.output}: {model}")


def _processing(args: argparse.Namespace) -> Processing | None:
    """Return what the options say of images, texts and labels, read before long work; None if nothing."""
    if not (args.preprocess or args.labels or args.tokenizer):
        return None
    found = read_processing(args.preprocess) if args.preprocess else Processing()
    if args.labels:
        found = replace(found, labels=read_labels(args.labels))
    if args.tokenizer:
        path, folder = Path(args.tokenizer).resolve(), Path(args.output).resolve().parent
        if not path.is_file() or folder not in path.parents:
            raise PQNetError(
                f"--tokenizer: expected a file in {folder}, the folder of the model file, got {args.tokenizer}; copy "
                "it there: it has to go with the model file"
            )
        found = replace(found, text=TextInput(path.relative_to(folder).as_posix()))
    return found


def export(args: argparse.Namespace) -> None:
    """Run one exporter: an object with ``suffix`` and ``export(model)``, which returns the bytes of a file."""
    command = _load("export", "exporters", args.format)
    check_output(args.output, (command.suffix,))
    with progress_bar(not args.quiet, f"export {args.format}", "node"):
        data = command.export(pqnet.load(args.model))
    with replaced(args.output) as temporary, open(temporary, "wb") as file:
        file.write(data)
    print(f"{args.output}: {len(data)} bytes")
