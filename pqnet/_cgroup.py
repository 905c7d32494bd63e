"""How many CPUs the control groups of Linux let this process use: the quota of a container."""

import math
from functools import lru_cache
from pathlib import Path, PurePosixPath

__all__ = ["cpu_quota"]


@lru_cache(maxsize=8)
def cpu_quota(root: str = "/") -> int | None:
    """Return the CPU quota of this process in whole CPUs, rounded up, at least 1; None if there is no quota.

    A process is in one group of each hierarchy and gets no more than the group, or any group above it, may use:
    ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` of version 1. Files that are missing,
    cannot be read or hold something else count as no quota. They are read once.

    Parameters
    ----------
    root : str
        Folder that stands for the root of the file system.
    """
    found = []
    for kind, folder, top in _groups(Path(root)):
        while True:
            if (share := _share(kind, folder)) is not None:
                found.append(share)
            if folder == top:
                break
            folder = folder.parent
    return max(1, math.ceil(min(found))) if found else None


def _groups(root: Path) -> list[tuple[str, Path, Path]]:
    """Return for each hierarchy that limits CPUs its kind, the folder of this process's group, and its top folder."""
    memberships = [line.split(":", 2) for line in _text(root / "proc/self/cgroup").splitlines()]
    groups = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        # 31 23 0:28 /shown/part /mount/point rw,options - cgroup2 source rw,cpu: the fields before " - " may be more.
        left, _, right = line.partition(" - ")
        fields, (kind, *rest) = left.split(), right.split() or [""]
        if len(fields) < 5 or kind not in ("cgroup", "cgroup2"):
            continue
        if kind == "cgroup" and "cpu" not in (rest[-1] if rest else "").split(","):
            continue
        for membership in memberships:
            if len(membership) == 3 and (
                membership[1] == "" if kind == "cgroup2" else "cpu" in membership[1].split(",")
            ):
                top = root / fields[4].lstrip("/")
                groups.append((kind, top / _below(membership[2], fields[3]), top))
    return groups


def _below(group: str, shown: str) -> PurePosixPath:
    """Return where a group is below a mount that shows a part of the hierarchy; its top if it is not in that part."""
    path = PurePosixPath(group)
    if not path.is_relative_to(shown) or ".." in path.parts:
        return PurePosixPath()
    return path.relative_to(shown)


def _share(kind: str, folder: Path) -> float | None:
    """Return the quota of one group in CPUs, or None."""
    if kind == "cgroup2":
        words = _text(folder / "cpu.max").split()
    else:
        words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        return None  # "max" and -1 are no quota
    quota, period = map(int, words)
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
