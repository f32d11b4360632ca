"""Random arrays of the libraries that the fuzzer steps on, and what can happen to their memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from support.bits import numpy_dtype

import portopt
from portopt_conformance.words import crossed, random_words, to_floats

LARGE = 700_001
"""Elements of an array that kernels split among threads."""
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (7, 5), (2, 1, 3), (0,), (64,), (300,), (4, 0, 2), (1, 1))


class NumPyArrays:
    """How the fuzzer makes and changes NumPy arrays."""

    name = "numpy"
    dtypes = ("float32", "float32", "float32", "float64", "float16", "bfloat16")
    layouts = ("plain", "plain", "plain", "plain", "strided", "transposed", "offset", "reversed")

    def make(self, values: Any, layout: str) -> Any:
        if layout == "strided" and values.ndim:
            return _every_second(values)
        if layout == "transposed":
            return np.array(values.T, order="C", copy=True).T
        if layout == "reversed" and values.ndim:
            return np.array(values[::-1], copy=True)[::-1]
        if layout == "offset":
            memory = bytearray(values.nbytes + 1)
            shifted = np.frombuffer(memory, np.uint8, values.nbytes, 1).view(values.dtype).reshape(values.shape)
            shifted[...] = values
            return shifted
        return np.array(values, order="C", copy=True)

    def values(self, array: Any) -> Any:
        return np.array(array, copy=True)

    def fill(self, array: Any, values: Any) -> None:
        array[...] = values

    def change_memory(self, array: Any, rng: random.Random) -> None:
        """Change an array's own description, if it lets us."""
        kind = rng.choice(("resize", "flags", "smaller"))
        with contextlib.suppress(ValueError):
            if kind == "resize":
                # NumPy gives one that is read-only memory with whatever was there.
                if array.flags.writeable:
                    array.resize((array.size + 3,), refcheck=False)
            elif kind == "smaller":
                array.resize((max(array.size - 1, 0),), refcheck=False)
            else:
                array.flags.writeable = not array.flags.writeable


class TorchArrays:
    """How the fuzzer makes and changes torch tensors."""

    name = "torch"
    dtypes = ("float32", "float32", "float32", "float64", "float16", "bfloat16")
    layouts = ("plain", "plain", "plain", "plain", "strided", "transposed", "offset", "requires_grad")

    def make(self, values: Any, layout: str) -> Any:
        import torch

        if layout == "strided" and values.ndim:
            return self._tensor(_every_second(values).base)[::2]
        if layout == "transposed" and values.ndim > 1:
            return self._tensor(np.ascontiguousarray(values.T)).permute(*range(values.ndim)[::-1])
        if layout == "offset":
            memory = np.concatenate([np.zeros(3, values.dtype), values.reshape(-1)])
            return self._tensor(memory)[3:].reshape(values.shape)
        if layout == "negative":
            return torch._neg_view(self._tensor(-values))
        if layout == "zero" and not values.any():
            return torch._efficientzerotensor(values.shape, dtype=getattr(torch, values.dtype.name))
        return self._tensor(values).requires_grad_(layout == "requires_grad")

    def _tensor(self, values: Any) -> Any:
        return portopt.get_backend("torch").from_numpy(np.array(values, order="C"), "cpu")

    def values(self, array: Any) -> Any:
        return portopt.get_backend("torch").to_numpy(array.detach())

    def fill(self, array: Any, values: Any) -> None:
        array.data.copy_(self._tensor(values))

    def change_memory(self, array: Any, rng: random.Random) -> None:
        kind = rng.choice(("resize", "set", "data", "smaller"))
        if array._is_zerotensor():
            return  # torch 2.13 ends the process when one is enlarged
        with contextlib.suppress(RuntimeError):
            if kind == "resize":
                array.data.resize_(array.numel() + 3).zero_()
            elif kind == "smaller":
                array.data.resize_(max(array.numel() - 1, 0))
            elif kind == "set":
                array.data.set_(array.detach().clone())
            else:
                array.data = array.detach().clone()


ARRAYS: dict[str, Any] = {"numpy": NumPyArrays(), "torch": TorchArrays()}


def _every_second(values: Any) -> Any:
    memory = np.zeros((2 * len(values), *values.shape[1:]), values.dtype)
    memory[::2] = values
    return memory[::2]


def random_values(rng: random.Random, dtype: str, shape: Sequence[int]) -> Any:
    """Return an array of raw random words, special words, or ordinary numbers."""
    count, key, kind = int(np.prod(shape, dtype=np.int64)), str(rng.getrandbits(64)), rng.random()
    if kind < 0.15:
        return to_floats(random_words(dtype, count, key), dtype).reshape(shape)
    if kind < 0.3:
        return to_floats(crossed(dtype, count, key), dtype).reshape(shape)
    if kind < 0.35:
        return np.zeros(shape, numpy_dtype(dtype))
    numbers = np.random.default_rng(rng.getrandbits(64)).standard_normal(shape)
    return np.asarray(numbers, numpy_dtype(dtype))
