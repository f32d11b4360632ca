"""The committed vectors: expected results as text, written by `python -m portopt_conformance.vectors`.

Each line of a file is one of

    checksums KEY HEX            64 bits of the SHA-256 of each of the 16 blocks of an experiment's results
    words KEY RESULT DTYPE HEX…  an experiment's result, word for word

and `SHA256SUMS` holds the files' own checksums, which are verified when a file is read.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from portopt_conformance.comparison import BLOCKS
from portopt_conformance.words import FORMATS, Words, to_floats

FOLDER = Path(__file__).parent / "vectors"
CHECKSUM_FILE = "SHA256SUMS"


class DamagedVectorsError(ValueError):
    """A vector file is not the one that was committed."""


class Vectors:
    """The vectors in a folder, each file read when first needed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @functools.cached_property
    def _sums(self) -> dict[str, str]:
        path = self.folder / CHECKSUM_FILE
        if not path.is_file():
            raise DamagedVectorsError(f"{path} is missing: run python -m portopt_conformance.vectors")
        lines = path.read_text(encoding="ascii").splitlines()
        return {name: digest for digest, name in (line.split("  ") for line in lines)}

    @functools.cache  # noqa: B019  # one object, as long as the program
    def _lines(self, name: str) -> dict[str, list[str]]:
        """Return the lines of a file by key, each without its key."""
        path = self.folder / name
        if name not in self._sums:
            return {}
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self._sums[name]:
            raise DamagedVectorsError(
                f"{path} does not have the checksum in {CHECKSUM_FILE}: restore both, or regenerate them with "
                "python -m portopt_conformance.vectors"
            )
        found: dict[str, list[str]] = {}
        for line in data.decode("ascii").splitlines():
            kind, key, rest = line.split(" ", 2)
            found.setdefault(f"{kind} {key}", []).append(rest)
        return found

    def checksums(self, key: str) -> list[str] | None:
        """Return the checksums of an experiment's blocks, or None if there are none."""
        lines = self._lines(file_of(key)).get(f"checksums {key}")
        if lines is None:
            return None
        text = lines[0]
        return [text[i : i + 16] for i in range(0, 16 * BLOCKS, 16)]

    def words(self, key: str) -> dict[str, Words]:
        """Return an experiment's results by name; empty if there are none."""
        results = {}
        for line in self._lines(file_of(key)).get(f"words {key}", []):
            name, dtype, *words = line.split(" ")
            results[name] = to_floats(np.array([int(w, 16) for w in words], FORMATS[dtype].unsigned), dtype)
        return results

    def has_rule(self, name: str) -> bool:
        """Tell whether there are vectors of a rule."""
        return file_of(f"rules/{name}/") in self._sums


def file_of(key: str) -> str:
    """Return the name of the file that holds a key: one for each rule, one for all else."""
    kind, name, *_ = key.split("/")
    return f"{name}.txt" if kind == "rules" else "operations.txt"
