"""Compiled kernels on disk, in the user's cache directory.

An entry is believed only if its checksum is right, its key is the one asked for, and it belongs to the user; anything else
is compiled again and replaced. Entries are written to a temporary file and renamed, so processes may share the directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from portopt.files import replacing

_MAGIC = b"portopt kernel 1\n"
_DIGEST_SIZE = hashlib.sha256().digest_size


def cache_directory() -> Path | None:
    """Return where compiled kernels are kept: `PORTOPT_CACHE_DIR`, or `portopt` in the user's cache directory.

    None if `PORTOPT_CACHE_DIR` is set and empty, which switches the cache off.
    """
    chosen = os.environ.get("PORTOPT_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "portopt"


def _entry(directory: Path, key: Mapping[str, str]) -> tuple[Path, bytes]:
    header = json.dumps(dict(key), sort_keys=True).encode()
    return directory / f"{hashlib.sha256(header).hexdigest()[:32]}.kernel", header


def load(key: Mapping[str, str]) -> bytes | None:
    """Return the machine code kept for `key`, or None."""
    directory = cache_directory()
    if directory is None:
        return None
    path, header = _entry(directory, key)
    try:
        with path.open("rb") as file:
            if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            content = file.read()
    except OSError:
        return None
    prefix = _MAGIC + len(header).to_bytes(8, "little") + header
    if not content.startswith(prefix) or len(content) < len(prefix) + _DIGEST_SIZE:
        return None
    digest, code = content[len(prefix) :][:_DIGEST_SIZE], content[len(prefix) + _DIGEST_SIZE :]
    return code if hashlib.sha256(prefix + code).digest() == digest else None


def store(key: Mapping[str, str], code: bytes) -> None:
    """Keep machine code for `key`; a directory that cannot be written is no error, only slower next time."""
    directory = cache_directory()
    if directory is None:
        return
    path, header = _entry(directory, key)
    prefix = _MAGIC + len(header).to_bytes(8, "little") + header
    content = prefix + hashlib.sha256(prefix + code).digest() + code
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, durable=False, mode=0o600) as temporary:
            temporary.write_bytes(content)
