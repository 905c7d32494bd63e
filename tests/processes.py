"""Processes that train together in tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def joined(rank: int, world: int, store: Any) -> Iterator[None]:
    """Be one of ``world`` processes, which meet in the file ``store``, on one thread."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    yield
    torch.distributed.barrier()  # one that leaves early may keep the other waiting
    torch.distributed.destroy_process_group()


def check_two_train_as_one(part: Callable[[int, int, Path], None], folder: Path) -> None:
    """Run ``part(rank, world, folder)``, which saves ``{rank}-of-{world}.pt``, by two processes and alone."""
    torch.multiprocessing.spawn(part, (2, folder), 2)
    part(0, 1, folder)
    one, first, second = (torch.load(folder / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, one, rtol=1e-3, atol=1e-4)
