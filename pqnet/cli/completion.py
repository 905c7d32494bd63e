"""``pqnet completion``: a script with which a shell completes commands, options, their values and files."""

import argparse

from pqnet import PQNetError
from pqnet.cli.parser import Parser
from pqnet.errors import did_you_mean
from pqnet.pipeline import PRESETS

__all__ = ["SHELLS", "script"]

SHELLS = ("bash", "zsh", "tcsh")
# What options take, which their commands check themselves, with errors that say more.
VALUES = {
    "preset": tuple(PRESETS),
    "metric": ("none", "pooled", "block", "full"),
    "compute": ("float32", "bfloat16", "int8", "auto"),
    "prefer": ("error", "latency"),
    "mode": ("bgd", "pqf", "ipq"),
    "target": ("teacher", "weight"),
    "effort": ("low", "normal", "high"),
    "repair": ("blocks",),
    "activations": ("int8",),
    "method": ("distill", "lc", "noise", "ipq"),
    "loss": ("kl", "mse"),
    "optimizer": ("adam", "sgd"),
    "gradient": ("mean", "sum"),
    "phi": ("proxy", "exact"),
    "shell": SHELLS,
}
FILES = (
    *("model", "calibration", "statistics", "merge", "recipe", "input", "inputs", "labels", "image", "reference"),
    *("against", "teacher", "data", "held_out", "output", "log_file", "checkpoint", "curve", "rest"),
)


def script(parser: Parser, shell: str) -> str:
    """Return the script for a shell, or raise PQNetError."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise PQNetError("completion: needs the package 'shtab'; pip install 'pqnet[completion]'") from None
    if shell not in SHELLS:
        near = did_you_mean(shell, SHELLS)
        raise PQNetError(f"shell: expected one of {', '.join(SHELLS)}, got {shell!r}{near}")
    _describe(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _describe(parser: argparse.ArgumentParser, file: dict[str, str]) -> None:
    """Let a parser know what may follow options; for scripts only."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _describe(command, file)
        elif action.nargs != 0 and action.dest in VALUES:
            action.choices = VALUES[action.dest]
        elif action.dest in FILES:
            action.complete = file  # type: ignore[attr-defined]
