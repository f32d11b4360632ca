"""Compiled kernels on disk, in the user's cache directory: machine code for the host and, from CUDA C, for GPUs.

What is read here is run, so an entry is believed only if nobody but the user can have written it: entry and directory belong
to the user, nobody else may write them, and the entry is a regular file, reached through no symbolic link. Its key must be
the one asked for and its checksum right, too; anything else is compiled again. Entries are written to a temporary file and
renamed, so processes may share the directory.

The cache is never needed. Where there is no place for it, or it cannot be read or written, kernels are compiled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from portopt.files import replacing

_MAGIC = b"portopt kernel 1\n"
_DIGEST_SIZE = hashlib.sha256().digest_size


def cache_directory() -> Path | None:
    """Return where compiled kernels are kept: `PORTOPT_CACHE_DIR`, or `portopt` in the user's cache directory.

    None if `PORTOPT_CACHE_DIR` is set and empty, which switches the cache off, or if the user has no home directory.
    """
    chosen = os.environ.get("PORTOPT_CACHE_DIR")
    if chosen == "":
        return None
    try:
        return (_default_directory() if chosen is None else Path(chosen)).expanduser()
    except RuntimeError:  # no home directory, as for a user without a name in a container
        return None


def _default_directory() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        # A relative one counts as none, by the standard that it is of.
        base = base if os.path.isabs(base) else "~/.cache"  # noqa: PTH117  # a string, maybe empty
    return Path(base) / "portopt"


def _entry(key: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the name of the file for `key`, and what the file begins with."""
    header = json.dumps(dict(key), sort_keys=True).encode()
    return f"{hashlib.sha256(header).hexdigest()[:32]}.kernel", _MAGIC + len(header).to_bytes(8, "little") + header


def load(key: Mapping[str, str]) -> bytes | None:
    """Return the machine code kept for `key`, or None."""
    name, prefix = _entry(key)
    try:
        directory = cache_directory()
        content = b"" if directory is None else _read(directory, name)
    except OSError:
        return None
    if not content.startswith(prefix) or len(content) < len(prefix) + _DIGEST_SIZE:
        return None
    digest, code = content[len(prefix) :][:_DIGEST_SIZE], content[len(prefix) + _DIGEST_SIZE :]
    return code if hashlib.sha256(prefix + code).digest() == digest else None


def store(key: Mapping[str, str], code: bytes) -> None:
    """Keep machine code for `key`; a directory that cannot be written is no error, only slower next time."""
    name, prefix = _entry(key)
    with contextlib.suppress(OSError):
        directory = cache_directory()
        if directory is None:
            return
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _trusted(directory, _OPEN_DIRECTORY) as handle:
            if handle is None:
                return
        with replacing(directory / name, durable=False, private=True) as temporary:
            temporary.write_bytes(prefix + hashlib.sha256(prefix + code).digest() + code)


_HAS_OWNERS = hasattr(os, "geteuid")
"""Whether files have owners and permissions here; on Windows, the user's directories are closed to others by inheritance."""
_OPEN_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
# Opening a pipe would wait for somebody to write to it.
_OPEN_FILE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _read(directory: Path, name: str) -> bytes:
    """Return the content of a file; empty if somebody else may have written it."""
    # The file is looked up in the directory that was checked, whatever has its path by then.
    with _trusted(directory, _OPEN_DIRECTORY) as parent:
        if parent is None:
            return b""
        with _trusted(name if _HAS_OWNERS else directory / name, _OPEN_FILE, parent) as handle:
            if handle is None or not stat.S_ISREG(os.fstat(handle).st_mode):
                return b""
            with open(handle, "rb", closefd=False) as file:
                return file.read()


@contextlib.contextmanager
def _trusted(path: Path | str, flags: int, parent: int | None = None) -> Iterator[int | None]:
    """Open a file or directory; give None if it is not the user's, or if others may write it."""
    if not _HAS_OWNERS and flags == _OPEN_DIRECTORY:
        yield -1  # Windows opens no directories
        return
    handle = os.open(path, flags, dir_fd=parent if _HAS_OWNERS else None)
    try:
        status = os.fstat(handle)
        reason = None
        if _HAS_OWNERS and status.st_uid != os.geteuid():
            reason = "belongs to another user"
        elif _HAS_OWNERS and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            reason = "may be written by others"
        if reason is not None and flags == _OPEN_DIRECTORY:
            _warn(str(path), reason)
        yield handle if reason is None else None
    finally:
        os.close(handle)


@functools.cache
def _warn(directory: str, reason: str) -> None:
    warnings.warn(
        f"compiled kernels are not kept in {directory}, which {reason}, because what is there is run: each process compiles its "
        "own; make the directory yours and `chmod go-w` it, or set PORTOPT_CACHE_DIR to another one, or to nothing",
        RuntimeWarning,
        stacklevel=2,
    )
