"""Bits of parameters: what a run left after each step, and where two runs part."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from portopt_tools.compare.digits import PATHS, Parameters


@dataclass(frozen=True)
class Difference:
    """The first element, of the first parameter, after the first step, at which a run's bits are not the reference's.

    Attributes:
        step: number of the step, from 1.
        parameter: how Python code reaches the parameter from `params`.
        index: the element's index in the parameter.
        bits, reference_bits: its bit pattern in the run and in the reference, as hexadecimal.
        value, reference_value: the same as numbers.
        differing: how many elements of this parameter differ after this step, out of `elements`.
    """

    step: int
    parameter: str
    index: tuple[int, ...]
    bits: str
    reference_bits: str
    value: float
    reference_value: float
    differing: int
    elements: int

    def __str__(self) -> str:
        index = ", ".join(map(str, self.index))
        return (
            f"step {self.step}, params{self.parameter}[{index}]: {self.bits} ({self.value!r}) against "
            f"{self.reference_bits} ({self.reference_value!r}); {self.differing} of {self.elements} elements differ there"
        )


def canonical(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a contiguous little-endian copy in which all NaNs have one bit pattern, since two NaNs count as equal."""
    copy = np.array(array, dtype=array.dtype.newbyteorder("<"), order="C", copy=True)
    copy[np.isnan(copy)] = np.nan
    return copy


def digest(parameters: Parameters) -> str:
    """Return the SHA-256 of the bytes of all parameters, one after the other."""
    return hashlib.sha256(_bytes(parameters)).hexdigest()


def _bytes(parameters: Parameters) -> bytes:
    return b"".join(canonical(array).tobytes() for array in parameters)


def first_difference(step: int, parameters: Parameters, reference: Parameters) -> Difference | None:
    """Return where the bits after a step are not the reference's, or None if they are the same."""
    for path, array, expected in zip(PATHS, parameters, reference, strict=True):
        mine, theirs = canonical(array), canonical(expected)
        words = f"<u{mine.itemsize}"
        unequal = np.flatnonzero(mine.view(words).ravel() != theirs.view(words).ravel())
        if unequal.size:
            first = int(unequal[0])
            return Difference(
                step=step,
                parameter=path,
                index=tuple(map(int, np.unravel_index(first, mine.shape))),
                bits=_hexadecimal(mine, first),
                reference_bits=_hexadecimal(theirs, first),
                value=float(mine.flat[first]),
                reference_value=float(theirs.flat[first]),
                differing=int(unequal.size),
                elements=mine.size,
            )
    return None


def _hexadecimal(array: npt.NDArray[Any], position: int) -> str:
    word = array.view(f"<u{array.itemsize}").flat[position]
    return f"0x{int(word):0{2 * array.itemsize}x}"


class Trajectory:
    """The parameters of one run after every step, in a temporary file: memory does not grow with the number of steps.

    Keeping the bits themselves, rather than digests, tells where a run differs without running anything twice, so the
    answer is right also for a backend that does not repeat itself.
    """

    def __init__(self, like: Parameters) -> None:
        self._shapes = [array.shape for array in like]
        self._dtype = like[0].dtype
        self._sizes = [array.size for array in like]
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def clear(self) -> None:
        """Forget all steps."""
        self._file.seek(0)
        self._file.truncate()

    def append(self, parameters: Parameters) -> None:
        """Keep the parameters after the next step."""
        self._file.write(_bytes(parameters))

    def after(self, step: int) -> Sequence[npt.NDArray[Any]]:
        """Return the parameters after a step, counted from 1."""
        count = sum(self._sizes)
        self._file.seek((step - 1) * count * self._dtype.itemsize)
        values = np.frombuffer(self._file.read(count * self._dtype.itemsize), dtype=self._dtype)
        parts = np.split(values, np.cumsum(self._sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]
