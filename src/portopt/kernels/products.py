"""What a product of matrices is made of on a GPU beside the product itself: one launch to slice an operand, one to scale back.

The steps are those of `portopt.program.products`; the library multiplies the slices, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from portopt.kernels.cuda.library import CudaLibrary
from portopt.kernels.cuda.products import MULTIPLIED_TILE, multiplied_source
from portopt.kernels.names import COLUMNS_SLICED, MULTIPLIED, RESCALED, ROWS_SLICED
from portopt.kernels.passes import ACROSS
from portopt.program.products import SLICES, Slices, product_shape, slice_bits


def slices(library: CudaLibrary, xp: Any, compute_dtype: str, x: Any, axis: int) -> Slices:
    """Return the slices of an operand, as `portopt.program.products.slices` does; lines that are not finite are zeros.

    Args:
        library: of the operand.
        xp: its array API namespace.
        compute_dtype: the dtype of the operand.
        x: the operand, without subnormals; none of its axes is empty.
        axis: -1 for a left operand, -2 for a right one.
    """
    if not library.is_dense(x):
        flipped = xp.matrix_transpose(x)
        if library.is_dense(flipped):
            return slices(library, xp, compute_dtype, flipped, -3 - axis).transposed(xp)
        x = library.dense(x)
    shape, device = tuple(x.shape), library.device(x)
    count, beside = shape[axis], 1 if axis == -1 else shape[-1]
    lines, bits = library.size(x) // count, slice_bits(count)
    kernel, across = (ROWS_SLICED, 1) if axis == -1 else (COLUMNS_SLICED, ACROSS)
    with library.on(device):
        integers = library.empty((SLICES[compute_dtype], *shape), "float64", device)
        factor = library.empty((*shape[:-1], 1) if axis == -1 else (*shape[:-2], 1, shape[-1]), "float64", device)
        module = library.products_module(compute_dtype)
        arguments = [x, integers, factor, lines, count, beside, bits]
        library.call(module, kernel, -(-lines // across), arguments, device)
    return Slices(tuple(integers[k] for k in range(SLICES[compute_dtype])), factor, axis, bits)


def multiplied(library: CudaLibrary, xp: Any, a: Any, b: Any) -> Any:
    """Return the product of float64 matrices of integers, of which every sum is exact, by a kernel of this library.

    For captured steps, where array libraries may call no other library.
    """
    shape = product_shape(a.shape, b.shape)
    *batches, rows, columns = shape
    count, device = math.prod(batches), library.device(a)
    with library.on(device):
        a, b = (library.dense(xp.broadcast_to(x, (*batches, *x.shape[-2:]))) for x in (a, b))
        results = library.empty(shape, "float64", device)
        squares = count * -(-rows // MULTIPLIED_TILE) * -(-columns // MULTIPLIED_TILE)
        library.call(
            multiplied_source(), MULTIPLIED, squares, [a, b, results, count, rows, columns, a.shape[-1]], device
        )
    return results


def rescaled(
    library: CudaLibrary, xp: Any, compute_dtype: str, integers: Sequence[Any], left: Slices, right: Slices
) -> Any:
    """Return the product, given its integer products and its operands' slices, as `portopt.program.products.rescaled` does."""
    *batches, rows, columns = integers[0].shape
    device = library.device(integers[0])
    with library.on(device):
        given = list(map(library.dense, integers))
        row_factors = library.dense(xp.broadcast_to(left.factor, (*batches, rows, 1)))
        column_factors = library.dense(xp.broadcast_to(right.factor, (*batches, 1, columns)))
        results = library.empty_like(given[0], compute_dtype)
        size = library.size(results)
        module = library.products_module(compute_dtype)
        arguments = [*given, row_factors, column_factors, results, size, rows, columns, left.bits]
        library.call(module, RESCALED, -(-size // library.chunk), arguments, device)
    return results
