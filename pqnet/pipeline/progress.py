"""Progress of long work: a bar on a terminal, silence elsewhere."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(show: bool, description: str, unit: str, total: int | None = None) -> "tqdm[Any]":
    """Return a tqdm bar; tqdm is imported only here, so that loading and running models does without it."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit=unit, disable=None if show else True)
