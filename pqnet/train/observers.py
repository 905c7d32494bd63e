"""Ranges of numbers that are to become integers: least and largest number, or those of the least squared error."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pqnet.train.parallel import world

__all__ = ["OBSERVERS", "Observer", "to_integers"]

OBSERVERS = ("minmax", "mse", "histogram")
MOMENTUM = 0.1
BINS = 2048
STEPS = 64  # ends that are tried on each side of zero


def to_integers(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return numbers rounded to 2^bits levels between ``low <= 0`` and ``high >= 0``, zero among the levels."""
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, top) - zero) * scale


def _least_squares(counts: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the range within [low, high] that rounds the numbers of a histogram over it with the least squared error.

    First the upper end moves towards zero, then the lower one.
    """
    centres = low + (high - low) / BINS * (torch.arange(BINS, device=counts.device) + 0.5)
    shares = torch.linspace(1 / STEPS, 1, STEPS, device=counts.device)[:, None]
    for end in ("high", "low"):
        lows, highs = (low.expand(STEPS, 1), high * shares) if end == "high" else (low * shares, high.expand(STEPS, 1))
        errors = ((to_integers(centres, lows, highs, bits) - centres).square() * counts).sum(1)
        best = STEPS - 1 - errors.flip(0).argmin()  # of equal ones the widest
        low, high = lows[best, 0], highs[best, 0]
    return low, high


class Observer(nn.Module):  # type: ignore[misc]
    """The range of some numbers, from all batches so far.

    Parameters
    ----------
    kind : {"minmax", "mse", "histogram"}
        Running means, starting with the first batch, of the ends of each batch, its least and largest number
        (``minmax``) or those that round its numbers with the least squared error (``mse``); or the ends that do so for
        the numbers of all batches (``histogram``). The latter two go by histograms.
    bits : int
    device : torch.device
    """

    def __init__(self, kind: str, bits: int, device: torch.device) -> None:
        super().__init__()
        self.kind, self.bits = kind, bits
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32, device=device))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool, device=device))
        if kind == "histogram":
            self.register_buffer("counts", torch.zeros(BINS, dtype=torch.float32, device=device))
            self.register_buffer("ends", torch.zeros(2, dtype=torch.float32, device=device))

    def observe(self, inputs: tuple[Tensor, ...]) -> None:
        """Take a batch into account, with several processes those of all."""
        edges = [x.aminmax() for x in inputs]
        both = torch.stack([*(edge.min for edge in edges), *(-edge.max for edge in edges)]).float().clamp(max=0)
        both = torch.stack([part.min() for part in both.chunk(2)])
        if world() > 1:
            dist.all_reduce(both, dist.ReduceOp.MIN)
        low, high = both[0], -both[1]
        if self.kind == "mse":
            low, high = _least_squares(self._counts(inputs, low, high), low, high, self.bits)
        if self.kind == "histogram":
            low, high = self._of_all(inputs, low, high)
            self.low.copy_(low)
            self.high.copy_(high)
        else:
            for mine, now in ((self.low, low), (self.high, high)):
                mine.copy_(torch.where(self.seen, torch.lerp(mine, now, MOMENTUM), now))
        self.seen.fill_(True)

    def _of_all(self, inputs: tuple[Tensor, ...], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch to the histogram, which becomes as wide as it must be."""
        old = self.ends.clone()
        low, high = torch.minimum(low, old[0]), torch.maximum(high, old[1])
        centres = old[0] + (old[1] - old[0]) / BINS * (torch.arange(BINS, device=old.device) + 0.5)
        moved = torch.zeros_like(self.counts).index_add_(0, _bins(centres, low, high), self.counts)
        self.counts.copy_(moved + self._counts(inputs, low, high))
        self.ends.copy_(torch.stack([low, high]))
        return _least_squares(self.counts, low, high, self.bits)

    def _counts(self, inputs: tuple[Tensor, ...], low: Tensor, high: Tensor) -> Tensor:
        """Return how many of the inputs lie in each of equal parts of [low, high]."""
        counts = torch.stack([torch.bincount(_bins(x.reshape(-1), low, high), minlength=BINS) for x in inputs]).sum(0)
        if world() > 1:
            dist.all_reduce(counts)
        return counts.float()


def _bins(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    width = ((high - low) / BINS).clamp(min=torch.finfo(torch.float32).tiny)
    return ((x.float() - low) / width).long().clamp(0, BINS - 1)
