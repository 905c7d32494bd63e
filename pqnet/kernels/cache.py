"""Where the machine code of kernels is kept between processes.

Numba's own cache compares the source file of a function with what it was; it sees neither a change in another file
whose functions are compiled in, nor the width of vectors, and a file that was cut off or changed makes every later
start fail. Kernels are kept in files of ours instead. They lie in a folder that is named after all that machine code
depends on (`digest`), are written under another name first, and carry a checksum: what is not whole, or is another
kernel's, is not there, and is compiled and written anew. Where nothing can be written, code stays in memory.
"""

import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config, dispatcher
from numba.core.caching import Cache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import NumbaWarning
from numba.core.runtime import rtsys
from numba.core.serialize import dumps, loads
from numba.misc import appdirs

from pqnet.kernels import cpu

__all__ = ["KernelCache", "compiled", "digest", "folders", "use_for_kernels"]

PACKAGE = "pqnet.kernels."
MARK = b"pqnet kernel 1\n\0"
KEPT = 8  # folders of other digests, the last that were used
UNUSED = 24 * 3600  # seconds after which a folder is removed if it is not one of those
# Settings of Numba that change what it compiles.
SETTINGS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "DISABLE_INTEL_SVML", "LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE")

_warned: list[str] = []


def digest() -> str | None:
    """Return 16 hex digits that stand for all that machine code of kernels depends on; None if it cannot be told.

    These are the source of all kernels, the CPU and what kernels use of it, settings and versions.
    """
    settings = [(name, str(getattr(config, name, None))) for name in SETTINGS]
    python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")
    versions = numba.__version__, llvmlite.__version__, np.__version__, python
    found = hashlib.sha256(repr((cpu.target(), settings, versions)).encode())
    root = Path(__file__).parent
    try:
        sources = [(path.relative_to(root).as_posix(), path.read_bytes()) for path in sorted(root.rglob("*.py"))]
    except OSError:
        return None
    for name, source in sources:
        found.update(f"{name} {len(source)}\n".encode() + source)
    return found.hexdigest()[:16] if sources else None  # there are none where only compiled modules are installed


DIGEST = digest()  # before any kernel is imported


@functools.cache
def folders() -> tuple[Path, ...]:
    """Return where entries may be: the folder to write to first, then that to use if it cannot be written.

    The first is below ``NUMBA_CACHE_DIR`` or the user's folder for caches, the other below that for temporary files.
    """
    if DIGEST is None:
        return ()
    user = os.path.join(appdirs.user_cache_dir("pqnet", False), "kernels")
    base = os.path.abspath(config.CACHE_DIR) if config.CACHE_DIR else user
    found = [Path(base)] if os.path.isabs(base) else []  # "~/.cache" where the user has no home
    if hasattr(os, "getuid"):  # elsewhere temporary files are the user's own, and beside the first folder
        found.append(Path(os.environ.get("TMPDIR") or "/tmp") / f"pqnet-kernels-{os.getuid()}")
    return tuple(base / f"kernels-{DIGEST}" for base in found)


def _own(folder: Path) -> bool:
    """Tell whether a folder is there and nobody else can write to it: entries are code that will be run."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _seal(key: str, code: bytes) -> bytes:
    body = f"{key}\n".encode() + code
    return MARK + hashlib.sha256(body).digest() + body


def _unseal(data: bytes, key: str) -> bytes | None:
    """Return the code of an entry, None unless it is whole and that of the key."""
    start, head = len(MARK) + 32, f"{key}\n".encode()
    whole = data.startswith(MARK) and hashlib.sha256(data[start:]).digest() == data[len(MARK) : start]
    return data[start + len(head) :] if whole and data.startswith(head, start) else None


def _write(path: Path, data: bytes) -> None:
    """Put a file in place at once. It need not reach the disk now: what a loss of power leaves fails its checksum."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _remove_old(base: Path, new: str) -> None:
    """Remove the folders of other digests that were not used for long; a process that uses one compiles again."""
    with suppress(OSError):
        others = [path for path in base.glob("kernels-*") if re.fullmatch("[0-9a-f]{16}", path.name[8:])]
        found = sorted((path.stat().st_mtime, path) for path in others if path.name != new)
        for used, folder in found[:-KEPT]:
            if time.time() - used > UNUSED:
                shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _note_use(folder: Path) -> None:
    """Remember on disk, once a process, that a folder is used."""
    with suppress(OSError):
        os.utime(folder)


def _load(name: str, key: str, rebuild: Callable[[bytes], Any]) -> Any:
    """Return what is made of the first sound entry, None if there is none."""
    for i, folder in enumerate(folders()):
        try:
            if (i == 0 or _own(folder.parent)) and (code := _unseal((folder / name).read_bytes(), key)) is not None:
                found = rebuild(code)
                _note_use(folder)
                return found
        except Exception:  # whatever is wrong with an entry, the kernel is compiled again
            continue
    return None


def _save(name: str, data: bytes) -> None:
    """Write an entry to the first folder that takes it; warn, once in a process, if that is not the first of all."""
    if digest() != DIGEST:  # sources were edited meanwhile: nobody knows which of them this is made of
        return
    reasons = []
    for i, folder in enumerate(folders()):
        try:
            if i:
                with suppress(FileExistsError):
                    folder.parent.mkdir(mode=0o700)
                if not _own(folder.parent):
                    raise PermissionError(f"{folder.parent} is not this user's own")
            new = not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / name, data)
        except OSError as reason:
            reasons.append(str(reason))
            continue
        if new:
            _remove_old(folder.parent, folder.name)
        break
    if _warned or not (reasons or not folders()):
        return
    where = f"is kept in {folder}" if len(reasons) < len(folders()) else "is compiled again by every process"
    _warned.append(where)
    warnings.warn(
        f"machine code of kernels cannot be kept ({'; '.join(reasons) or 'no folder for it'}) and {where}; "
        "set NUMBA_CACHE_DIR to a folder that can be written to",
        RuntimeWarning,
        stacklevel=2,
    )


class KernelCache(Cache):
    """What Numba asks for the machine code of one kernel, and gives it to; it calls from one thread at a time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._py_func, self._name = function, repr(function)
        name = re.sub("[<>]", "", f"{function.__module__.removeprefix(PACKAGE)}.{function.__qualname__}")
        self._prefix = f"{name}-{function.__code__.co_firstlineno}"
        self.enable()

    @property
    def cache_path(self) -> str | None:
        """The folder that entries are written to."""
        return str(folders()[0]) if folders() else None

    def _entry(self, signature: Any, codegen: Any) -> tuple[str, str]:
        """Return the name of the file, and the key that it holds."""
        key = f"{self._prefix} {self._index_key(signature, codegen)}"
        return f"{self._prefix}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.kernel", key

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel for a signature, None if it is not there.

        Unlike Numba's own cache it does not load first what compiling needs, 50 MB of modules: kernels call nothing of
        it when they run. Whoever compiles loads it.
        """
        if not self._enabled:
            return None
        name, key = self._entry(sig, target_context.codegen())

        def rebuild(code: bytes) -> Any:
            if b"NRT_" in code:  # it names functions of Numba's memory
                rtsys.initialize(target_context)
            return CompileResult._rebuild(target_context, *loads(code))

        return _load(name, key, rebuild)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel."""
        if not self._enabled:
            return
        if data.lifted or data.library.has_dynamic_globals:
            warnings.warn(
                f"{self._prefix}: not kept, as it holds addresses of this process", NumbaWarning, stacklevel=2
            )
            return
        name, key = self._entry(sig, data.codegen)
        _save(name, _seal(key, dumps(data._reduce())))

    def flush(self) -> None:
        """Remove what is kept of this kernel."""
        for folder in folders():
            for path in folder.glob(f"{self._prefix}-*.kernel"):
                path.unlink(missing_ok=True)


def use_for_kernels() -> None:
    """Let Numba keep what is decorated in `pqnet.kernels` in files of ours, and everything else as it does.

    Called before any module with kernels is imported, so that none can be outside.
    """
    others = dispatcher.FunctionCache

    def cache_of(function: Callable[..., Any]) -> Any:
        return KernelCache(function) if function.__module__.startswith(PACKAGE) else others(function)

    dispatcher.FunctionCache = cache_of


def compiled(kernel: Any, signature: tuple[Any, ...]) -> Any:
    """Return a kernel compiled for a signature, from the cache or now.

    One thread at a time: compiling enters `warnings.catch_warnings`, which is no thread's own before Python 3.14. Who
    starts a thread compiles what that will call first, so that none compiles beside code that knows nothing of it.
    """
    with global_compiler_lock:
        if signature not in kernel.overloads:
            kernel.compile(signature)
        return kernel.overloads[signature]
