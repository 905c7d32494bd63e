"""What every way to multiply by a weight shares: the geometry of a layer step, and weights as kernels read them."""

from dataclasses import dataclass

import numpy as np

from pqnet.codecs import Packed, PackedPQ
from pqnet.graph import Node
from pqnet.runtime.builder import Builder
from pqnet.runtime.views import View

__all__ = [
    "Product",
    "block_size",
    "code_rows",
    "codebook_floats",
    "codeword_step",
    "round_up",
    "stored_bytes",
    "weight_and_scale",
]


@dataclass
class Product:
    """A layer step before its way is chosen: the geometry of the shared fields."""

    node: Node
    weight: np.ndarray | Packed  # in filter form
    x: View
    image_step: int
    group_step: int
    offsets: np.ndarray  # of the reduction, (c, ky, kx) order
    outputs: int  # of a group
    groups: int
    batch: int
    flat: int  # positions of an image, junk columns included
    pitch: int
    width: int
    image: int  # positions of an image
    out: View
    out_step: int
    tail: list[int | View]

    @property
    def reduction(self) -> int:
        """Inputs of an output."""
        return int(self.offsets.size)

    @property
    def positions(self) -> int:
        """Positions of all images."""
        return self.batch * self.image

    def fields(self, b: Builder, offsets: np.ndarray) -> list[int | View]:
        """Return fields 0-23 with the reduction in the order of ``offsets``."""
        shared: list[int | View] = [self.x, self.image_step, self.group_step, b.indices(offsets), self.reduction]
        shared += [self.outputs, self.groups, self.batch, self.flat, self.pitch, self.width]
        return [*shared, self.out, self.out_step, self.image, self.width, *self.tail, 0]


def round_up(size: int, to: int) -> int:
    """Return the least multiple of ``to`` that is not below ``size``."""
    return -(-size // to) * to


def weight_and_scale(b: Builder, node: Node) -> tuple[np.ndarray | Packed, np.ndarray | None]:
    """Return the weight of a layer, codes as a PackedPQ if they can be one, and the factors of its outputs.

    Weights with one code a number become codewords of one number; their scales, if a channel has one, factors of the
    epilogue. What has scales of groups of inputs, or is a sum, is decoded when the program is built.
    """
    weight = b.param(node, "weight")
    assert weight is not None
    words = weight.codewords() if isinstance(weight, Packed) else None
    return words or (weight, None)


def block_size(weight: np.ndarray | Packed) -> int:
    """Return d of a weight whose codes kernels read, 1 for any other."""
    return weight.codec.d if isinstance(weight, PackedPQ) else 1


def codeword_step(d: int) -> int:
    """Return the distance of two codewords as kernels read them."""
    return 4 if d <= 4 else 8 if d <= 8 else round_up(d, 16)


def codebook_floats(packed: PackedPQ) -> np.ndarray:
    """Return the codewords in float32, each padded to `codeword_step`."""
    k, d = packed.codebook.shape
    out = np.zeros((k, codeword_step(d)), np.float32)
    out[:, :d] = packed.codebook
    return out


def code_rows(packed: PackedPQ) -> np.ndarray:
    """Return the codes row by row, as bytes."""
    return np.ascontiguousarray(packed.codes).view(np.uint8)


def stored_bytes(weight: np.ndarray | Packed) -> int:
    """Return the bytes that a kernel reads of a weight."""
    return weight.nbytes if isinstance(weight, Packed) else 4 * int(np.prod(weight.shape))
