"""Packed weights as PyTorch modules, one for each codec: decoded differentiably, and packed again."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

import pqnet
from pqnet.codecs import (
    PQ,
    Additive,
    Codec,
    Packed,
    PackedAdditive,
    PackedPQ,
    PackedScalar,
    PackedSparse,
    ScalarCodec,
    Sparse,
)
from pqnet.codecs.halves import exponent_for
from pqnet.codecs.layout import to_blocks
from pqnet.errors import PQNetError
from pqnet.fit.descent import SecondOrder

__all__ = ["Gradient", "Stored", "StoredPQ", "make_stored"]

Gradient = Literal["mean", "sum"]
SWEEPS = 3  # of codes, under whole second moments, where each block sees the others
DTYPES = {"float16": torch.float16, "float32": torch.float32}


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """Codewords by code; see `PackedWeight` for the gradient."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor, codes: Tensor, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.k, ctx.gradient = len(codebook), gradient
        return codebook.index_select(0, codes.int())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        codes = ctx.saved_tensors[0].long()
        # scatter_add is 2 to 9 times as fast as index_add or an embedding's backward where blocks are short
        out = grad.new_zeros(ctx.k, grad.shape[1]).scatter_add_(0, codes[:, None].expand_as(grad), grad)
        if ctx.gradient == "mean":
            # not bincount, for which a GPU has to wait
            members = grad.new_zeros(ctx.k).scatter_add_(0, codes, grad.new_ones(1).expand_as(codes))
            out /= members.clamp(min=1)[:, None]
        return out, None, None


def _as_stored(values: Tensor, dtype: str, *, alone: bool = False) -> Tensor:
    """Return values as a file holds them. The gradient is that of the values: what is added is exactly 0."""
    unit = 2.0 ** exponent_for(_numpy(values), alone=alone) if dtype == "float16" else 1.0
    stored = ((values.detach().double() / unit).to(DTYPES[dtype]).double() * unit).to(values.dtype)
    return stored + (values - values.detach())


def _codes(codes: np.ndarray, k: int) -> Tensor:
    return torch.from_numpy(codes.astype(np.uint8 if k <= 256 else np.int32))


def _floats(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(array.astype(np.float32)))


def _numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array


class Stored(nn.Module):  # type: ignore[misc]
    """A packed weight in filter form.

    Parameters are what training may change, float32; buffers are codes and whatever else is fixed.
    """

    codec: Codec
    takes_metric: ClassVar[bool] = False  # whether `reassign` can weigh errors

    @abstractmethod
    def decode(self) -> Tensor:
        """Return the weight; in ``eval()`` mode exactly as `packed` decodes."""

    @abstractmethod
    def packed(self) -> Packed:
        """Return the codec's own form."""

    @abstractmethod
    def reassign(self, target: Tensor, metric: np.ndarray | None) -> None:
        """Choose the codes anew; see `pqnet.train.PackedWeight`."""


class StoredPQ(Stored):
    codec: PQ
    takes_metric = True

    def __init__(self, packed: PackedPQ, gradient: Gradient) -> None:
        super().__init__()
        self.codec, self.shape, self.gradient = packed.codec, packed.shape, gradient
        self.codebook = _floats(packed.codebook)
        self.register_buffer("codes", _codes(packed.codes, packed.codec.k))
        if packed.codec.codebook_dtype == "int8":
            self.register_buffer("scale", torch.from_numpy(packed.arrays()["scale"].copy()))

    def words(self) -> Tensor:
        if self.codec.codebook_dtype == "int8":
            integers = (self.codebook.detach().double() / self.scale).round().clamp(-127, 127)
            return integers.to(self.codebook.dtype) * self.scale + (self.codebook - self.codebook.detach())
        return self.codebook if self.training else _as_stored(self.codebook, self.codec.codebook_dtype)

    def decode(self) -> Tensor:
        blocks = _Gather.apply(self.words(), self.codes.reshape(-1), self.gradient)
        if self.codec.layout == "channel":
            o, c, *kernel = self.shape
            return blocks.reshape(o, *kernel, c).movedim(-1, 1)
        return blocks.reshape(self.shape)

    def packed(self) -> PackedPQ:
        scale = float(self.scale) if self.codec.codebook_dtype == "int8" else None
        return PackedPQ(self.codec, self.shape, self.codes.cpu().numpy(), _numpy(self.codebook), scale)

    def reassign(self, target: Tensor, metric: np.ndarray | None) -> None:
        blocks, groups = to_blocks(_numpy(target), self.codec.d, self.codec.layout), None
        o, m, d = blocks.shape
        if metric is not None and np.ndim(metric) == 4 and np.shape(metric)[1:] == (1, m * d, m * d):
            rows, codes, words = blocks.reshape(o, -1), self.codes.cpu().numpy(), _numpy(self.words())
            search = SecondOrder(
                rows, np.asarray(metric)[:, 0], codes, words, np.ones(o, np.float32), torch.get_num_threads()
            )
            for _ in range(SWEEPS):
                search.sweep()
            self.codes.copy_(_codes(search.codes, self.codec.k))
            return
        if metric is not None and np.ndim(metric) > 2:
            if np.ndim(metric) > 4 or np.shape(metric)[-3:] != (m, d, d) or o % len(np.reshape(metric, (-1, m, d, d))):
                wanted = f"({d}, {d}), ({m}, {d}, {d}), (groups, {m}, {d}, {d}) or (groups, 1, {m * d}, {m * d})"
                raise PQNetError(f"metric: expected shape {wanted}, got {np.shape(metric)}")
            metric = np.reshape(metric, (-1, d, d))
            groups = (np.arange(o)[:, None] // (o * m // len(metric)) * m + np.arange(m)).reshape(-1)
        codes = pqnet.assign(blocks.reshape(-1, d), _numpy(self.words()), metric=metric, groups=groups)
        self.codes.copy_(_codes(codes.reshape(o, m), self.codec.k))


class StoredScalar(Stored):
    codec: ScalarCodec

    def __init__(self, packed: PackedScalar, gradient: Gradient) -> None:
        super().__init__()
        self.codec, self.shape, self.gradient = packed.codec, packed.shape, gradient
        if packed.codec.levels is None:
            self.codebook = _floats(packed.codebook)
        else:
            self.register_buffer("levels", torch.from_numpy(packed.codebook.copy()), persistent=False)
        self.register_buffer("codes", _codes(packed.codes, packed.codec.k))
        self.scales = None if packed.scales is None else _floats(packed.scales)
        self.register_buffer("zeros", None if packed.zeros is None else torch.from_numpy(packed.zeros.copy()))

    def _levels(self) -> Tensor:
        return self.levels if self.codec.levels is not None else self._as_stored(self.codebook)

    def _as_stored(self, values: Tensor) -> Tensor:
        alone = values is self.scales
        return values if self.training else _as_stored(values, self.codec.value_dtype, alone=alone)

    def _grid(self, values: Tensor) -> Tensor:
        """Return one number for each weight with those of one scale along the last axis."""
        return values.reshape(*self.codec.scale_grid(self.shape), -1)

    def decode(self) -> Tensor:
        values = _Gather.apply(self._levels(), self.codes.reshape(-1), self.gradient)
        if self.scales is not None:
            values = self._grid(values)
            if self.zeros is not None:
                values = values - self.zeros[:, :, None]
            values = values * self._as_stored(self.scales)[:, :, None]
        return values.reshape(self.shape)

    def packed(self) -> PackedScalar:
        book = _numpy(self.codebook) if self.codec.levels is None else None
        scales = None if self.scales is None else _numpy(self.scales)
        zeros = None if self.zeros is None else self.zeros.cpu().numpy()
        return PackedScalar(self.codec, self.shape, self.codes.cpu().numpy(), book, scales, zeros)

    def reassign(self, target: Tensor, metric: np.ndarray | None) -> None:
        levels, order = self._levels()[:, 0].sort()  # training may change the order of learned ones
        if self.scales is not None:
            scales = self._as_stored(self.scales)[:, :, None]
            target = torch.where(scales == 0, 0, self._grid(target) / scales)
            if self.zeros is not None:
                target = target + self.zeros[:, :, None]
        nearest = torch.bucketize(target.contiguous(), (levels[1:] + levels[:-1]) / 2)
        self.codes.copy_(order[nearest].reshape(self.codes.shape))


class StoredSparse(Stored):
    codec: Sparse

    def __init__(self, packed: PackedSparse, gradient: Gradient) -> None:
        super().__init__()
        self.codec, self.shape = packed.codec, packed.shape
        self.values = _floats(packed.values)
        self.register_buffer("places", torch.from_numpy(packed.codes.astype(np.int64)))

    def decode(self) -> Tensor:
        values = self.values if self.training else _as_stored(self.values, self.codec.value_dtype)
        return values.new_zeros(int(np.prod(self.shape))).scatter(0, self.places, values).reshape(self.shape)

    def packed(self) -> PackedSparse:
        return PackedSparse(self.codec, self.shape, self.places.cpu().numpy(), _numpy(self.values))

    def reassign(self, target: Tensor, metric: np.ndarray | None) -> None:
        flat = target.reshape(-1)
        self.places.copy_(flat.abs().topk(len(self.values)).indices.sort().values)
        self.values.copy_(flat[self.places])


class StoredSum(Stored):
    codec: Additive

    def __init__(self, packed: PackedAdditive, gradient: Gradient) -> None:
        super().__init__()
        self.codec = packed.codec
        self.parts = nn.ModuleList([make_stored(part, gradient) for part in packed.parts])

    def decode(self) -> Tensor:
        out = self.parts[0].decode()
        for part in self.parts[1:]:
            out = out + part.decode()
        return out

    def packed(self) -> PackedAdditive:
        return PackedAdditive(self.codec, [part.packed() for part in self.parts])

    def reassign(self, target: Tensor, metric: np.ndarray | None) -> None:
        for part in self.parts:
            part.reassign(target - (self.decode() - part.decode()), None)


STORED: dict[type[Packed], Any] = {
    PackedPQ: StoredPQ,
    PackedScalar: StoredScalar,
    PackedSparse: StoredSparse,
    PackedAdditive: StoredSum,
}


def make_stored(packed: Packed, gradient: Gradient) -> Stored:
    """Return a packed weight as a module."""
    stored: Stored = STORED[type(packed)](packed, gradient)
    return stored
