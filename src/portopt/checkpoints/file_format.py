"""The file: safetensors, with a JSON document in its metadata.

Every byte is covered by SHA-256: the document holds the digest of each tensor's data, and begins with that of the header,
computed with zeros in its place. So a file is checked while it is read, and the message can name the damaged tensor.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from portopt.checkpoints import schema
from portopt.checkpoints.schema import Tensor as Tensor
from portopt.files import replacing

FORMAT_VERSION = 1
_KEY = "portopt"
_PREFIX = b'{"__metadata__":{"portopt":"{\\"checksum\\": \\"'
"""What a header begins with; the digest follows."""
_LENGTH_SIZE = 8
_DIGEST_START = _LENGTH_SIZE + len(_PREFIX)
_NO_DIGEST = "0" * 64
_LONGEST_HEADER = 100_000_000
"""In bytes; safetensors reads none that is longer."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another format, or does not fit what it is loaded into."""


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise ModuleNotFoundError(
            f'checkpoints need {missing}, which is not installed: pip install "portopt[checkpoints]"', name=missing
        ) from None


def require_libraries() -> None:
    """Raise `ModuleNotFoundError` if a checkpoint can be neither written nor read."""
    _library("safetensors.numpy")
    _library("ml_dtypes")


def write(path: Path, document: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write contiguous NumPy arrays and a JSON document, atomically.

    Raises:
        OSError: the file cannot be written; what was at `path` is still there.
    """
    safetensors = _library("safetensors")
    digests = {name: _digest(array) for name, array in tensors.items()}
    text = json.dumps({"checksum": _NO_DIGEST, "version": FORMAT_VERSION, **document, "digests": digests})
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save {path}: there is no directory {path.parent}; make it first")
    with replacing(path, durable=True) as temporary:
        try:
            _library("safetensors.numpy").save_file(dict(tensors), temporary, metadata={_KEY: text})
        except safetensors.SafetensorError as error:
            raise OSError(f"cannot save {path}: {error}") from error
        with temporary.open("r+b") as file:
            head = _read_head(file)
            if not head.startswith(_PREFIX, _LENGTH_SIZE):
                raise RuntimeError(
                    f"safetensors {safetensors.__version__} writes its header in another way than portopt reads it; "
                    "install another version of safetensors"
                )
            if len(head) - _LENGTH_SIZE > _LONGEST_HEADER:
                raise ValueError(
                    f"cannot save {path}: names and structure of the parameters take {len(head)} bytes, and at most "
                    f"{_LONGEST_HEADER} can be read again; save fewer parameters in one file, or give them shorter names"
                )
            file.seek(_DIGEST_START)
            file.write(_sha256(head).encode())


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Open a checkpoint whose header is in order, for its tensors to be read and checked one by one.

    The file is opened once: a writer that replaces it meanwhile changes nothing of what is read.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint of this format version.
    """
    with path.open("rb") as file:
        yield Reader(path, file)


class Reader:
    """An open checkpoint.

    Attributes:
        path: of the file.
        document: what `write` was given.
        tensors: shape and dtype of each tensor by name.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        head = self._checked_head()
        self._data_start = len(head)
        header = schema.parse(head[_LENGTH_SIZE:], "header", self.error)
        document = schema.parse(header.pop("__metadata__")[_KEY], "metadata", self.error)
        version = document.get("version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version!r:.80}, but this portopt reads version {FORMAT_VERSION}: load it with "
                "the portopt that saved it, or a newer one"
            )
        self.tensors, self._places = schema.check_tensors(header, self.error)
        schema.check_document(document, self.tensors, self.error)
        self.document: Mapping[str, Any] = document
        size, end = self._size(), self._data_start + sum(place.size for place in self._places.values())
        if size != end:
            what = "is cut short" if size < end else "goes on after its end"
            raise CheckpointError(f"{path} {what}: it has {size} bytes where {end} are right; load another checkpoint")

    def error(self, message: str) -> CheckpointError:
        """Return an error that names the file."""
        return CheckpointError(f"{self.path}: {message}")

    def read(self, name: str) -> Any:
        """Return a tensor as a NumPy array, after checking its data."""
        (shape, dtype), place = self.tensors[name], self._places[name]
        data = np.empty(place.size, np.uint8)
        self._file.seek(self._data_start + place.start)
        if self._file.readinto(data) != place.size or _digest(data) != self.document["digests"][name]:  # type: ignore[attr-defined]  # of every binary file
            raise CheckpointError(
                f"{self.path} is damaged: the data of the tensor {name!r} does not have its checksum; load another checkpoint"
            )
        return data.view(_library("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype).reshape(shape)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _checked_head(self) -> bytes:
        """Return the length of the header, and the header, which is that of a checkpoint and has its checksum."""
        path, size = self.path, self._size()
        start = self._file.read(_DIGEST_START)
        if start[_LENGTH_SIZE:] != _PREFIX[: max(0, len(start) - _LENGTH_SIZE)]:
            raise CheckpointError(f"{path} is no checkpoint of portopt, or its first bytes are damaged")
        length = int.from_bytes(start[:_LENGTH_SIZE], "little")
        if size < _DIGEST_START or size < _LENGTH_SIZE + length:
            raise CheckpointError(
                f"{path} is cut short, or its first bytes are damaged: it has {size} bytes, and its header alone should have "
                f"more; load another checkpoint"
            )
        if length > _LONGEST_HEADER:
            raise self.error(f"its header has {length} bytes, and at most {_LONGEST_HEADER} are allowed")
        self._file.seek(0)
        head = _read_head(self._file)
        digest = head[_DIGEST_START:][: len(_NO_DIGEST)]
        blank = head[:_DIGEST_START] + _NO_DIGEST.encode() + head[_DIGEST_START + len(_NO_DIGEST) :]
        if _sha256(blank).encode() != digest:
            raise CheckpointError(f"{path} is damaged: its header does not have its checksum; load another checkpoint")
        return head


def _digest(array: Any) -> str:
    return _sha256(array.reshape(-1).view("uint8"))


def _sha256(data: Any) -> str:
    # OpenSSL, which it loads, would take a twentieth of the time in which portopt is imported.
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _read_head(file: BinaryIO) -> bytes:
    """Return the length of the header, and the header."""
    length = file.read(_LENGTH_SIZE)
    return length + file.read(int.from_bytes(length, "little"))
