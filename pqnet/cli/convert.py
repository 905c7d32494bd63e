"""``pqnet convert``: converters are found through entry points, so that the core never imports them."""

import argparse
from importlib.metadata import EntryPoint, entry_points

from pqnet import PQNetError
from pqnet.cli.data import check_output
from pqnet.cli.parser import Parser, add_common

__all__ = ["run", "sources"]


def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="pqnet.converters")}


def sources() -> list[str]:
    """Return the names of the installed converters."""
    return sorted(_found())


def run(args: argparse.Namespace) -> None:
    """Run one converter: an object with ``text``, ``example``, ``add_arguments(parser)`` and ``convert(args)``."""
    found = _found()
    if args.source not in found:
        raise PQNetError(f"convert: expected a source of {', '.join(sorted(found))}, got {args.source!r}")
    try:
        command = found[args.source].load()
    except ModuleNotFoundError as missing:
        raise PQNetError(
            f"convert {args.source}: needs the package {missing.name!r}; pip install 'pqnet[torch]'"
        ) from None
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
