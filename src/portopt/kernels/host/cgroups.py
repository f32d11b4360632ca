"""How much of the processors a control group of Linux leaves to this process, as containers limit it.

The files are those of the kernel's documentation, https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/scheduler/sched-bwc.html. Whatever is missing or makes no sense limits nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    version: int
    root: str
    folder: Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many CPUs' time the process may use, the least of its control group and the groups around it; None: all.

    Args:
        root: the folder that is taken for `/`.
    """
    groups = _groups(root)
    quotas = [
        quota
        for mount in _mounts(root)
        if mount.version in groups
        for folder in _folders(mount, groups[mount.version])
        if (quota := _quota(mount.version, folder)) is not None
    ]
    return min(quotas, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _groups(root: Path) -> dict[int, str]:
    """Return the path of the process's group in the hierarchy that limits CPUs, by version."""
    groups = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            groups[2] = path
        elif "cpu" in controllers.split(","):
            groups[1] = path
    return groups


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5:
            continue
        is_version_1 = kind[0] == "cgroup" and "cpu" in kind[-1].split(",")
        if kind[0] == "cgroup2" or is_version_1:
            inside, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field) for field in fields[3:5])
            yield _Mount(1 if is_version_1 else 2, inside, root / point.lstrip("/"))


def _folders(mount: _Mount, group: str) -> Iterator[Path]:
    """Yield the folder of a group and those around it, as far as the mount shows them."""
    try:
        inside = PurePosixPath(group).relative_to(mount.root)
    except ValueError:
        inside = PurePosixPath()  # a container sees its own group as the root
    if ".." in inside.parts:
        inside = PurePosixPath()
    folder = mount.folder / inside
    yield folder
    for _ in inside.parts:
        folder = folder.parent
        yield folder


def _quota(version: int, folder: Path) -> float | None:
    if version == 2:
        words = _read(folder / "cpu.max").split()
    else:
        words = [*_read(folder / "cpu.cfs_quota_us").split()[:1], *_read(folder / "cpu.cfs_period_us").split()[:1]]
    if len(words) != 2 or not all(re.fullmatch("[0-9]{1,18}", word, re.ASCII) for word in words):
        return None
    quota, period = map(int, words)
    return quota / period if quota > 0 and period > 0 else None
