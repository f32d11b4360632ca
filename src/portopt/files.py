"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool, private: bool = False) -> Iterator[Path]:
    """Give the path of an empty file beside `path`; it takes the place of `path` when the block ends without an error.

    Whoever opens `path` finds the old file or the complete new one, whenever the writer may stop. The new file has the
    permissions of the old one, and its group where the process may give it away; without an old one, those that the umask
    leaves. Until then nobody else can read it.

    Args:
        path: the file to write; of a symbolic link, what it points to.
        durable: whether that must hold if the machine stops, too: the new file is on the disk before it replaces the old one.
        private: whether the new file is the user's alone, whatever the old one was; it then replaces a symbolic link itself.

    Raises:
        OSError: a file cannot be written here, or what is at `path` is no file, or is one that the user may not write.
    """
    if not private:
        path = _target(path)
    temporary = path.with_name(f".portopt-{os.urandom(8).hex()}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
    try:
        permissions = temporary.stat()
        temporary.chmod(0o600)
        yield temporary
        if not private:
            _set_permissions(temporary, _existing(path), stat.S_IMODE(permissions.st_mode))
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Windows can neither open nor flush a directory.
    if durable and os.name != "nt":
        _flush(path.parent, os.O_RDONLY)


def _target(path: Path) -> Path:
    """Return where to write; raise an error if opening it for writing would be one, or if it is no file to be replaced."""
    try:
        path = path.resolve()
    except RuntimeError as error:  # symbolic links that lead to themselves, up to Python 3.12
        raise OSError(errno.ELOOP, str(error), str(path)) from None
    existing = _existing(path)
    if existing is None:
        return path
    if stat.S_ISDIR(existing.st_mode):
        raise IsADirectoryError(errno.EISDIR, "there is a directory in the place of the file to write", str(path))
    if not stat.S_ISREG(existing.st_mode):
        raise OSError(errno.EINVAL, "what is there is no regular file, so a file cannot replace it", str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is there and may not be written", str(path))
    return path


def _existing(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _set_permissions(file: Path, old: os.stat_result | None, otherwise: int) -> None:
    """Give a file the permissions of the one that it replaces."""
    mode = otherwise if old is None else stat.S_IMODE(old.st_mode) & 0o777
    if old is not None and hasattr(os, "chown"):
        own = file.stat()
        if own.st_uid != old.st_uid:
            with contextlib.suppress(OSError):  # only root may give files away
                os.chown(file, old.st_uid, -1)
        if own.st_gid != old.st_gid:
            try:
                os.chown(file, -1, old.st_gid)
            except OSError:
                # What the old group could do is not for the members of another one.
                mode &= 0o707
    file.chmod(mode)


def _flush(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
