"""The parser class of the command line, and the options that commands share."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from pqnet import PQNetError
from pqnet.cli.log import add_log
from pqnet.errors import did_you_mean

__all__ = ["Parser", "add_cluster", "add_common", "add_data", "add_json", "at_least", "command", "free_size"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help keeps its example as written."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise PQNetError(f"{message} (see {self.prog} -h)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or say which option was meant by one that there is not."""
        found, rest = super().parse_known_args(args, namespace)
        if unknown := [item.partition("=")[0] for item in rest if item.startswith("-")]:
            near = did_you_mean(unknown[0], self._option_string_actions)
            raise PQNetError(f"unrecognized arguments: {' '.join(rest)}{near} (see {self.prog} -h)")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as reason:
            reason.message += did_you_mean(value, action.choices or ())
            raise


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that calls ``run``, and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example:\n  {example}"
    )
    parser.set_defaults(run=run)
    return parser


def at_least(low: int, at_most: int | None = None) -> Callable[[str], int]:
    """Return an argument type: integers from ``low`` on, or up to ``at_most``."""
    limits = f"of at least {low}" + ("" if at_most is None else f" and at most {at_most}")

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (at_most is not None and int(text) > at_most):
            raise argparse.ArgumentTypeError(f"expected an integer {limits}, got {text!r}")
        return int(text)

    return number


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has."""
    parser.add_argument(
        "--seed", type=at_least(0, at_most=2**63 - 1), default=0, help="of everything random (default 0)"
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        help="cores to use (default all); quantization gives the same bytes for any number",
    )
    add_log(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option for programs that read what a command finds."""
    parser.add_argument("--json", action="store_true", help="print what is found as JSON, for programs")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options for other processes and machines, see `pqnet.pipeline.cluster.connected`."""
    parser.add_argument(
        "--workers", type=at_least(1), help="processes to start here, which share the cores; same bytes"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://10.0.0.1:8786; same bytes"
    )


def free_size(text: str) -> tuple[str, int]:
    """Return the name and the number of an argument ``NAME=N``."""
    name, equals, number = text.partition("=")
    if not (equals and name.isidentifier() and number.isdecimal() and int(number) > 0):
        raise argparse.ArgumentTypeError(f"expected NAME=N such as tokens=64, got {text!r}")
    return name, int(number)


def add_data(
    parser: argparse.ArgumentParser, flag: str, text: str, required: bool = True, folders: bool = False
) -> None:
    """Add an option for files of arrays, see `pqnet.cli.data.read_inputs` and, for ``folders``, `open_inputs`."""
    parser.add_argument(
        flag,
        action="append",
        required=required,
        metavar="[NAME=]FILE",
        help=f"{text}: .npy, or .npz / .h5 with an array for each input; NAME= if there are several inputs; repeatable"
        + ("; or a folder of such files, batches of different sizes" if folders else ""),
    )
