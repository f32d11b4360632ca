"""The file: safetensors, with a JSON document in its metadata.

Every byte is covered by SHA-256: the document holds the digest of each tensor's data, and begins with that of the header,
computed with zeros in its place. So a file is checked while it is read, and the message can name the damaged tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from portopt.files import replacing

FORMAT_VERSION = 1
_KEY = "portopt"
_PREFIX = b'{"__metadata__":{"portopt":"{\\"checksum\\": \\"'
"""What a header begins with; the digest follows."""
_LENGTH_SIZE = 8
_DIGEST_START = _LENGTH_SIZE + len(_PREFIX)
_NO_DIGEST = "0" * 64
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_FIELDS = ("backend", "optimizer", "step", "scalars", "params", "slots", "digests")


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another format, or does not fit what it is loaded into."""


class Tensor(NamedTuple):
    """What the header says about one tensor."""

    shape: tuple[int, ...]
    dtype: str


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
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            _library("safetensors.numpy").save_file(dict(tensors), temporary, metadata={_KEY: text})
        except safetensors.SafetensorError as error:
            raise OSError(f"cannot save {path}: {error}") from error
        # safetensors puts a file of its own in this place, which nobody else may read.
        temporary.chmod(mode)
        with temporary.open("r+b") as file:
            head = _read_head(file)
            if not head.startswith(_PREFIX, _LENGTH_SIZE):
                raise RuntimeError(
                    f"safetensors {safetensors.__version__} writes its header in another way than portopt reads it; "
                    "install another version of safetensors"
                )
            file.seek(_DIGEST_START)
            file.write(hashlib.sha256(head).hexdigest().encode())


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """Open a checkpoint whose header is in order, for its tensors to be read and checked one by one.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint of this format version.
    """
    safetensors = _library("safetensors")
    document, tensors = _read_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            yield Reader(path, document, tensors, file)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; load another checkpoint") from error


class Reader:
    """An open checkpoint.

    Attributes:
        path: of the file.
        document: what `write` was given.
        tensors: shape and dtype of each tensor by name.
    """

    def __init__(self, path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Any) -> None:
        self.path = path
        self.document = document
        self.tensors = tensors
        self._file = file

    def error(self, message: str) -> CheckpointError:
        """Return an error that names the file."""
        return CheckpointError(f"{self.path}: {message}")

    def read(self, name: str) -> Any:
        """Return a tensor as a NumPy array, after checking its data."""
        array = self._file.get_tensor(name)
        found = Tensor(array.shape, array.dtype.name)
        if found != self.tensors[name] or _digest(array) != self.document["digests"].get(name):
            raise CheckpointError(
                f"{self.path} is damaged: the data of the tensor {name!r} does not have its checksum; load another checkpoint"
            )
        return array


def _digest(array: Any) -> str:
    return hashlib.sha256(array.reshape(-1).view("uint8")).hexdigest()


def _read_head(file: BinaryIO) -> bytes:
    """Return the length of the header, and the header."""
    length = file.read(_LENGTH_SIZE)
    return length + file.read(int.from_bytes(length, "little"))


def _read_header(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(_DIGEST_START)
        if start[_LENGTH_SIZE:] != _PREFIX[: max(0, len(start) - _LENGTH_SIZE)]:
            raise CheckpointError(f"{path} is no checkpoint of portopt, or its first bytes are damaged")
        length = int.from_bytes(start[:_LENGTH_SIZE], "little")
        if size < _DIGEST_START or size < _LENGTH_SIZE + length:
            raise CheckpointError(
                f"{path} is cut short, or its first bytes are damaged: it has {size} bytes, and its header alone should have "
                f"more; load another checkpoint"
            )
        file.seek(0)
        head = _read_head(file)
    digest = head[_DIGEST_START:][: len(_NO_DIGEST)]
    blank = head[:_DIGEST_START] + _NO_DIGEST.encode() + head[_DIGEST_START + len(_NO_DIGEST) :]
    if hashlib.sha256(blank).hexdigest().encode() != digest:
        raise CheckpointError(f"{path} is damaged: its header does not have its checksum; load another checkpoint")
    header = json.loads(head[_LENGTH_SIZE:])
    document = json.loads(header.pop("__metadata__")[_KEY])
    if document.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {document.get('version')}, but this portopt reads version {FORMAT_VERSION}: load it with "
            "the portopt that saved it, or a newer one"
        )
    for name in _FIELDS:
        if name not in document:
            raise CheckpointError(
                f"{path} lacks the entry {name!r} in its metadata: it was not written by portopt.save"
            )
    end = _LENGTH_SIZE + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != end:
        what = "is cut short" if size < end else "goes on after its end"
        raise CheckpointError(f"{path} {what}: it has {size} bytes where {end} are right; load another checkpoint")
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{path}: the tensor {name!r} is of dtype {entry['dtype']}; allowed are {', '.join(_DTYPES)}"
            )
    return document, {name: Tensor(tuple(entry["shape"]), _DTYPES[entry["dtype"]]) for name, entry in header.items()}
