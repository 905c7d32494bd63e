"""Files as they are written: checked before the work, whole or not at all, nothing left of writers that were killed."""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path as Folder
from typing import Any

from pqnet._check import describe, error
from pqnet.errors import PQNetError

try:
    import fcntl
except ImportError:  # not POSIX: nobody can tell a killed writer from a slow one, so nothing is cleaned up
    fcntl = None  # type: ignore[assignment]

__all__ = ["Path", "check_output", "file_name", "output_folder", "replaced"]

Path = str | os.PathLike[str]


def file_name(path: Any) -> str:
    """Return a path as text, or raise PQNetError."""
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise error("path", "a file name", describe(path)) from None
    if not name or "\0" in name:
        raise error("path", "a file name", describe(path))
    return name


def check_output(path: Path, name: str = "path") -> None:
    """Raise PQNetError, before the work whose result it is for, if `replaced` could not write a file.

    Parameters
    ----------
    path : str or path
        File to create or to replace.
    name : str
        Of the argument, for the error.

    Examples
    --------
    >>> from pqnet.io import check_output
    >>> check_output("small.h5")
    >>> check_output("none/small.h5", "--output")
    Traceback (most recent call last):
        ...
    pqnet.errors.PQNetError: --output: expected a file in an existing folder, got none/small.h5
    """
    target = _target(path, name)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise error(name, "a file in an existing folder", file_name(path))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as reason:
        got = f"{file_name(path)}: {reason.strerror or reason}"
        raise error(name, "a file in a folder that can be written to", got) from None


def output_folder(path: Any, name: str) -> Folder:
    """Return a folder that files can be written to, made if it is missing, or raise PQNetError."""
    try:
        folder = Folder(path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, TypeError, ValueError) as reason:
        raise error(name, "a folder that can be written to", f"{describe(path)}: {reason}") from None


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[str]:
    """Give the name of a new file in the same directory, which takes the place of ``path`` if all goes well.

    It has the permissions of the file whose place it takes. A lock is on it as long as its writer lives: those of the
    same ``path`` that have none are of writers that were killed, and are deleted.
    """
    target = _target(path, "path")
    prefix = os.path.join(os.path.dirname(target), f".pqnet-{hashlib.sha256(os.fsencode(target)).hexdigest()[:16]}-")
    mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
    temporary = None
    try:
        _clean_up(prefix)
        descriptor, temporary = _locked_file(prefix, 0o666 if mode is None else mode & 0o666 | 0o600)
        try:
            yield temporary
            os.fsync(descriptor)
            if mode not in (None, stat.S_IMODE(os.fstat(descriptor).st_mode)):
                os.chmod(temporary, mode)
            os.replace(temporary, target)
        finally:
            os.close(descriptor)
    except BaseException as reason:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(reason, OSError):
            full = reason.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "; free some space, or name a file elsewhere" if full else ""
            raise PQNetError(f"path: cannot write {target}: {reason.strerror or reason}{remedy}") from reason
        raise


def _target(path: Path, name: str) -> str:
    target = os.path.realpath(file_name(path))  # a symbolic link stays one
    if os.path.exists(target) and not os.path.isfile(target):
        raise error(name, "a file name", f"{target}, which is a directory or a device")
    return target


def _locked_file(prefix: str, mode: int) -> tuple[int, str]:
    """Return descriptor and name of a new file that is locked until the descriptor is closed."""
    while True:
        name = f"{prefix}{secrets.token_hex(8)}.tmp"
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        try:
            _lock(descriptor, wait=True)
            if os.fstat(descriptor).st_nlink:
                return descriptor, name
        except BaseException:
            os.close(descriptor)
            os.unlink(name)
            raise
        os.close(descriptor)  # another writer took it for a dead one's before it was locked


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock a file, and tell whether that was possible; without ``wait`` not if it is locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked, or on a file system without locks
        return False
    return True


def _clean_up(prefix: str) -> None:
    """Delete the files of a prefix whose writers are no more."""
    folder, start = os.path.split(prefix)
    for entry in [entry for entry in os.scandir(folder) if entry.name.startswith(start)]:
        with contextlib.suppress(OSError):  # another writer was faster, or it is another user's
            descriptor = os.open(entry.path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor, wait=False):
                    os.unlink(entry.path)
            finally:
                os.close(descriptor)
