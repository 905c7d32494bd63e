"""The locks of the compiler, which a forked child may find taken by a thread that it does not have."""

import threading

from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["renew_compiler_locks"]


def renew_compiler_locks():
    """Replace the locks of Numba and LLVM. For forked children, whose only thread is not compiling."""
    for owner in (global_compiler_lock, getattr(ffi.lib, "_lock", None)):
        if isinstance(getattr(owner, "_lock", None), type(threading.RLock())):
            owner._lock = threading.RLock()
