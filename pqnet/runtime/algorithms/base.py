"""What an algorithm for layers is, and the registry that the planner asks."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pqnet.codecs import PackedPQ
from pqnet.codecs.layout import block_columns
from pqnet.kernels import cpu
from pqnet.runtime.builder import Builder
from pqnet.runtime.fusion import Epilogue, fuse
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View, round_up
from pqnet.runtime.windows import Windows, windows_of

__all__ = [
    "ALGORITHMS",
    "HOST",
    "Algorithm",
    "Call",
    "Host",
    "block_order",
    "cheapest",
    "code_arguments",
    "codebook_arguments",
    "codebook_floats",
    "codeword_step",
    "fitting",
    "in_planes",
]

ALGORITHMS: dict[str, "Algorithm"] = {}


class Host(NamedTuple):
    """What algorithms ask of the processor."""

    isa: str
    byte_tables: bool  # permutations of bytes in registers (AVX-512 VBMI)
    halves: bool  # a cycle does one multiply-add of 512 bits instead of two


HOST = Host(cpu.ISA, cpu.BYTE_TABLES, cpu.ISA == "avx512" and cpu.NAME == "znver4")


@dataclass(frozen=True)
class Call:
    """A layer whose windows are prepared and whose result has its place."""

    layer: Layer
    windows: Windows
    end: Epilogue

    @property
    def reads(self) -> list[View]:
        """All values that the last step of an algorithm reads."""
        return [self.windows.x, *self.end.reads]


class Algorithm(ABC):
    """One algorithm for layers: a class in a file of its own, registered by its name when it is defined.

    The planner asks each algorithm that fits for its cost and emits the steps of the cheapest, or of the one that was
    measured to be the fastest; see `runtime.tune`.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            ALGORITHMS[cls.name] = cls()

    @abstractmethod
    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the algorithm can compute a layer in this arithmetic on this processor."""

    @abstractmethod
    def cost(self, layer: Layer) -> float:
        """Return about how many cycles of one core the layer takes; only asked if it fits."""

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Bring the input into the form that the steps read."""
        return windows_of(b, layer, x)

    def shift(self, layer: Layer) -> np.ndarray | None:
        """Return what is added to the outputs because the algorithm is wrong on average, shape (O,)."""
        return None

    @abstractmethod
    def steps(self, b: Builder, call: Call) -> None:
        """Append the steps that compute the layer."""

    def emit(self, b: Builder, layer: Layer, x: View) -> View:
        """Append all steps of a layer, fuse the nodes behind it and return the result."""
        windows = self.windows(b, layer, layer.input(b, x))
        out = layer.result(b)
        images = layer.result_images(out)
        assert images is not None  # a dense value can take this shape
        end = fuse(b, layer, images, self.shift(layer))
        self.steps(b, Call(layer, windows, end))
        for node in end.nodes:
            b.finish(node, out)
        return out


def fitting(layer: Layer, compute: str, host: Host = HOST) -> list[Algorithm]:
    """Return the algorithms that can compute a layer in this arithmetic on a processor, by default this one."""
    return [algorithm for algorithm in ALGORITHMS.values() if algorithm.fits(layer, compute, host)]


def cheapest(layer: Layer, compute: str) -> Algorithm:
    """Return the algorithm that the cost rule expects to be fastest for a layer."""
    return min(fitting(layer, compute), key=lambda algorithm: algorithm.cost(layer))


def block_order(weight: PackedPQ) -> np.ndarray:
    """Return the order, of the elements of a window, in which the blocks of a weight hold them."""
    return _columns(weight.shape, weight.codec.layout)


@lru_cache(maxsize=1024)
def _columns(shape: tuple[int, ...], layout: str) -> np.ndarray:
    columns = block_columns((1, *shape[1:]), layout)
    columns.flags.writeable = False
    return columns


def codeword_step(d: int) -> int:
    """Return the distance of two codewords as kernels read them."""
    return 4 if d <= 4 else 8 if d <= 8 else round_up(d, 16)


def codebook_floats(codebook: np.ndarray) -> np.ndarray:
    """Return codewords (k, d) in float32, each padded to `codeword_step`."""
    k, d = codebook.shape
    out = np.zeros((k, codeword_step(d)), np.float32)
    out[:, :d] = codebook
    return out


def in_planes(codebook: np.ndarray) -> bool:
    """Tell whether codewords are numbers of a table that the processor holds in registers."""
    k, d = codebook.shape
    return HOST.byte_tables and d == 1 and k <= 256


def codebook_arguments(b: Builder, key: tuple[Hashable, ...], codebook: np.ndarray) -> tuple[int, int]:
    """Return where codewords are that panels are decoded from, and their distance; 1: they are in planes of bytes."""
    k, d = codebook.shape
    if not in_planes(codebook):
        return b.constant((*key, "codebook"), lambda: codebook_floats(codebook)), codeword_step(d)

    def planes() -> np.ndarray:
        numbers = np.zeros(256, np.float32)
        numbers[:k] = codebook[:, 0]
        return np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, 4).T).view(np.float32)

    return b.constant((*key, "codebook in planes"), planes), 1


def code_arguments(b: Builder, layer: Layer, weight: PackedPQ) -> dict[str, Any]:
    """Return the arguments of `kernels.products.gemm.WEIGHT` for codes row by row."""
    size, d = 1 if weight.codec.k <= 256 else 2, weight.codec.d
    return {
        "codes": b.code_bytes((layer.name, "rows"), lambda: np.ascontiguousarray(weight.codes).view(np.uint8)),
        "weight": b.constant((layer.name, "codebook"), lambda: codebook_floats(weight.codebook)),
        "d": d,
        "stride": codeword_step(d),
        "code_bytes": size,
        "code_row": size * layer.reduction // d,
    }
