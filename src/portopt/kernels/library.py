"""What differs between libraries of arrays on GPUs: how they allocate, compile and launch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from portopt.kernels.key import KernelKey
from portopt.kernels.norm_dependence import GradientNorm
from portopt.kernels.passes import Pass
from portopt.kernels.stages import Space
from portopt.program import Program


class Library(Protocol):
    """A library of arrays on GPUs, and how it runs kernels. What stands for a device there compares equal to itself only.

    Attributes:
        chunk: how many elements a chunk is, where a kernel has something to do for each.
    """

    chunk: int

    def device(self, array: Any, /) -> Any:
        """Return what stands for the device of an array."""

    def dtype(self, array: Any, /) -> str:
        """Return the name of an array's dtype."""

    def size(self, array: Any, /) -> int:
        """Return the number of an array's elements."""

    def address(self, array: Any, /) -> int:
        """Return where the memory of a C-contiguous array begins."""

    def memory(self, array: Any, /) -> tuple[str, int, int]:
        """Return device, first and one-past-last byte of a C-contiguous array."""

    def dense(self, array: Any, /) -> Any:
        """Return an array itself if it is C-contiguous, else a copy that is."""

    def is_dense(self, array: Any, /) -> bool:
        """Tell whether an array is C-contiguous."""

    def copied(self, array: Any, /) -> Any:
        """Return a copy of a C-contiguous array."""

    def empty_like(self, array: Any, dtype: str | None = None, /) -> Any:
        """Return a new C-contiguous array of the same shape, on the same device, and of the same dtype if none is named."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: Any, /) -> Any:
        """Return a new C-contiguous array."""

    def assign(self, target: Any, value: Any, /) -> None:
        """Write the elements of an array into another one."""

    def on(self, device: Any, /) -> AbstractContextManager[Any]:
        """Make a device the current one."""

    def module(self, program: Program, key: KernelKey, /) -> Any:
        """Return the kernels that run a program."""

    def norm_module(self, dtype: str, /) -> Any:
        """Return the kernels that reduce gradients of a dtype to what their norm is computed from."""

    def products_module(self, compute_dtype: str, /) -> Any:
        """Return the kernels that slice operands of products of matrices and scale integer products back."""

    def totals_module(self) -> Any:
        """Return the kernels that join parts of totals over all parameters."""

    def arguments(self, values: Sequence[float], dtype: str, device: Any, /) -> list[Any]:
        """Return numbers of a dtype as arguments of a kernel."""

    def unrounded(self, values: Sequence[Any], device: Any, /) -> list[Any]:
        """Return scalars of a step that are not rounded as arguments of a kernel."""

    def workspace(self, words: int, device: Any, /) -> tuple[Any, int]:
        """Return memory of the device for that many words of 64 bits, and its address."""

    def words(self, memory: Any, count: int, /) -> list[int]:
        """Wait for the device, and return the first words of such memory."""

    def chunk_of(self, step: Pass, space: Space, /) -> int:
        """Return how many elements of a pass are a chunk, given the space of what it reduces."""

    def tables(
        self, module: Any, addresses: Sequence[Sequence[int]], sizes: Sequence[int], chunk: int, device: Any, /
    ) -> Iterable[Any]:
        """Yield what tells each launch where its parameters are and how many elements they have, so many of them a chunk."""

    def launch(self, module: Any, kernel: str, table: Any, arguments: Sequence[Any], device: Any, /) -> None:
        """Run a kernel on all parameters of a table."""

    def call(self, module: Any, kernel: str, blocks: int, arguments: Sequence[Any], device: Any, /) -> None:
        """Run a kernel that takes arrays and integers, in so many blocks."""

    def scalars_of_norm(
        self, module: Any, norm: GradientNorm, given: Sequence[Any], count: int, dtype: str, device: Any, /
    ) -> Any:
        """Return an array, made on the device, of the rounded scalars that need the norm, given those of the host they need."""

    def new_norm(self, device: Any, /) -> GradientNorm:
        """Return a norm whose words are zero."""

    def largest(self, norm: GradientNorm, /) -> list[Any]:
        """Return the argument of a kernel that looks for the largest gradient."""

    def sums(self, norm: GradientNorm, /) -> list[Any]:
        """Return the arguments of a kernel that adds up, given the largest gradient."""
