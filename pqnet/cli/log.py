"""What commands say beside their results: progress, ``--quiet``, ``--verbose`` and ``--log-file``."""

import argparse
import logging
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pqnet import PQNetError, __version__
from pqnet._progress import LOG, tell

__all__ = ["add_log", "logged", "warn"]


def add_log(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quiet", action="store_true", help="no progress: nothing but results, warnings and errors")
    which.add_argument("--verbose", action="store_true", help="say of every layer and step how long it took")
    parser.add_argument("--log-file", metavar="FILE", help="file to add all of that to, with times")


@contextmanager
def logged(args: argparse.Namespace, command: Sequence[str]) -> Iterator[None]:
    """Say what a command does as its options ask for, and in the file how it ended."""
    handlers: list[logging.Handler] = []
    if args.verbose:
        handlers.append(_Shown())
    if args.log_file is not None:
        handlers.append(_file(args.log_file))
    before = LOG.level
    for handler in handlers:
        LOG.addHandler(handler)
    if handlers:
        LOG.setLevel(logging.DEBUG)
    start = time.monotonic()
    LOG.debug("pqnet %s, Python %s: pqnet %s", __version__, platform.python_version(), " ".join(command))
    try:
        yield
        LOG.debug("done in %.1f s", time.monotonic() - start)
    except PQNetError as reason:
        LOG.debug("failed after %.1f s: %s", time.monotonic() - start, reason)
        raise
    except BaseException as reason:
        LOG.debug("ended after %.1f s by %s", time.monotonic() - start, type(reason).__name__, exc_info=True)
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()
        LOG.setLevel(before)


def warn(message: Warning | str) -> None:
    """Print a warning as what it is to who types commands: a message, without a place in the source."""
    tell(f"pqnet: warning: {message}")
    LOG.debug("warning: %s", message, extra={"shown": True})


class _Shown(logging.Handler):
    """Writes to the standard error what is not there already."""

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "shown") and record.exc_info is None:
            tell(f"{time.strftime('%H:%M:%S')} {record.getMessage()}")


def _file(path: str) -> logging.FileHandler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as reason:
        raise PQNetError(f"--log-file: expected a file that can be written to, got {path}: {reason.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handler.handleError = _give_up  # type: ignore[method-assign]
    return handler


def _give_up(record: logging.LogRecord) -> None:
    """Leave a full disk to the command itself, whose result matters; say so once."""
    if not _told:
        _told.append(True)
        print(f"pqnet: warning: the log file cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


_told: list[bool] = []
