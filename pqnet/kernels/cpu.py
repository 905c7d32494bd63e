"""What the CPU can do, as Numba compiles for it; nothing else in pqnet asks.

Kernels use no more than the compiler may: what ``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES`` or ``NUMBA_ENABLE_AVX=0``
take from Numba is not there for them either. ``PQNET_SIMD=avx512|avx2|generic`` forces the instruction set, so that
every one can be tested on one machine: LLVM splits vectors that are wider than the registers.
"""

import os
from functools import cache

import llvmlite.binding as llvm
from numba.core import config

__all__ = ["BYTE_TABLES", "EXTENSIONS", "ISA", "NAME", "WIDTHS", "detect", "features", "has", "target"]

WIDTHS = {"avx512": 16, "avx2": 8, "generic": 4}  # float32 lanes of a vector, by instruction set

# Extensions, named as Linux does in /proc/cpuinfo: the instruction set that code with them is written for, and what
# LLVM calls them.
EXTENSIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "avx512f": ("avx512", ("avx512f",)),
    "avx512vbmi": ("avx512", ("avx512f", "avx512vbmi")),
    "avx512_vnni": ("avx512", ("avx512f", "avx512vnni")),
    "avx512_bf16": ("avx512", ("avx512f", "avx512bf16")),
    "amx_int8": ("avx512", ("avx512f", "amx-tile", "amx-int8")),
    "amx_bf16": ("avx512", ("avx512f", "amx-tile", "amx-bf16")),
    "avx_vnni": ("avx2", ("avx2", "avxvnni")),
}


@cache
def features() -> frozenset[str]:
    """Return LLVM's names of the extensions that this CPU has and Numba compiles for."""
    try:
        host = {name for name, there in llvm.get_host_cpu_features().items() if there}
    except RuntimeError:  # LLVM does not know this kind of CPU
        return frozenset()
    if config.CPU_FEATURES is not None:
        words = (word.strip() for word in config.CPU_FEATURES.split(","))
        asked = {word[1:]: word[0] == "+" for word in words if word}
        return frozenset(name for name in host if asked.get(name))
    if not config.ENABLE_AVX:
        return frozenset(name for name in host if not name.startswith("avx"))
    return frozenset(host)


def detect() -> str:
    """Return the instruction set to use: that of PQNET_SIMD, or the widest that there is.

    Raises
    ------
    ValueError
        If PQNET_SIMD names no instruction set.
    """
    forced = os.environ.get("PQNET_SIMD")
    if forced is not None and forced not in WIDTHS:
        raise ValueError(f"PQNET_SIMD: expected one of {', '.join(WIDTHS)}, got {forced!r}")
    if forced is not None:
        return forced
    there = features()
    if {"avx512f", "avx512dq"} <= there:
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= there else "generic"


NAME: str = config.CPU_NAME or llvm.get_host_cpu_name()
ISA = detect()


def has(extension: str) -> bool:
    """Tell whether kernels may use the instructions of an extension, one of `EXTENSIONS`.

    It takes the CPU, Numba's settings, and an instruction set of vectors at least as wide as those of the extension.
    """
    isa, names = EXTENSIONS[extension]
    return WIDTHS[ISA] >= WIDTHS[isa] and features().issuperset(names)


# Tables of bytes in registers; left out where an instruction set is forced, so that one machine tests both.
BYTE_TABLES = "PQNET_SIMD" not in os.environ and has("avx512vbmi")


def target() -> str:
    """Return all of the CPU that machine code of kernels depends on, as one line."""
    used = [name for name in EXTENSIONS if has(name)]
    return f"{NAME} {config.CPU_FEATURES} {sorted(features())}; {ISA} {used} {BYTE_TABLES}"
