"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool, mode: int = 0o666) -> Iterator[Path]:
    """Give the path of an empty file beside `path`; it takes the place of `path` when the block ends without an error.

    Whoever opens `path` finds the old file or the complete new one, whenever the writer may stop.

    Args:
        path: the file to write; of a symbolic link, what it points to.
        durable: whether that must hold if the machine stops, too: the new file is on the disk before it replaces the old one.
        mode: permissions of the file, lowered by the umask.
    """
    path = path.resolve()
    temporary = path.with_name(f".portopt-{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield temporary
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Windows can neither open nor flush a directory.
    if durable and os.name != "nt":
        _flush(path.parent, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
