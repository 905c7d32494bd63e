"""How commands end that do not end well: one clear line, the exit code, and how to go on."""

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from pqnet import PQNetError
from pqnet.errors import OutOfMemoryError

__all__ = ["Interrupts", "abandon_output", "explained"]

# What the system says of a place that takes no more, beside which a traceback tells a user nothing.
OF_THE_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
LESS_MEMORY = (
    "give fewer samples or a smaller --batch, or run it where more memory is free; limits are shown by ulimit -v"
)


class Interrupts:
    """Remembers Ctrl-C, which libraries may turn into another exception or swallow."""

    def __init__(self) -> None:
        self.seen = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of interrupts while the block runs; a second one ends the process at once."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or a program's own
            yield
            return
        try:
            signal.signal(signal.SIGINT, self._interrupt)
        except ValueError:  # not the main thread, which gets them all
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self.seen = True
        raise KeyboardInterrupt


def explained(reason: BaseException, args: argparse.Namespace | None, interrupted: bool) -> tuple[str, int] | None:
    """Return what to print about an exception and the exit code; None for one that is a mistake of ours."""
    if interrupted or isinstance(reason, KeyboardInterrupt):
        return f"interrupted; {_how_to_go_on(args)}", 130
    if isinstance(reason, PQNetError):
        return f"error: {' '.join(str(reason).split())}{_finished(reason, args)}", 2
    if isinstance(reason, MemoryError) or (isinstance(reason, OSError) and reason.errno == errno.ENOMEM):
        return f"error: memory: expected more than there is, got: {_first_line(reason)}; {LESS_MEMORY}", 2
    if isinstance(reason, OSError) and reason.errno in OF_THE_SYSTEM:
        where = f" {reason.filename}" if reason.filename else ""
        return f"error: cannot write{where}: {reason.strerror}; free some space, or write elsewhere", 2
    if isinstance(reason, RuntimeError) and ("t allocate memory" in str(reason) or "new thread" in str(reason)):
        return f"error: memory: expected more than there is, got: {_first_line(reason)}; {LESS_MEMORY}", 2
    return None


def _how_to_go_on(args: argparse.Namespace | None) -> str:
    """Say what the same command does when it is given again."""
    checkpoint = getattr(args, "checkpoint", "")
    if checkpoint:
        return f"what is finished is in {checkpoint}: the same command goes on from there"
    if checkpoint is None:
        return "no file is half written; with --checkpoint the same command could go on where it stopped"
    return "no file is half written; the same command starts again"


def _finished(reason: PQNetError, args: argparse.Namespace | None) -> str:
    """Say that finished layers are not lost where it was not the arguments that were wrong."""
    checkpoint: Any = getattr(args, "checkpoint", None)
    full = isinstance(reason, OutOfMemoryError) or (isinstance(reason.__cause__, OSError))
    return f"; what is finished is in {checkpoint}: the same command goes on from there" if checkpoint and full else ""


def _first_line(reason: BaseException) -> str:
    return (str(reason) or type(reason).__name__).strip().splitlines()[0]


def abandon_output() -> None:
    """Let nothing more be written to a standard output that takes nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
