"""Pieces of steps that have kernels of their own: products of matrices, and totals of all parameters, against NumPy."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

import portopt
from gpu_check.comparison import differing, ordinary, raw
from gpu_check.options import Options
from gpu_check.targets import targets
from portopt.program import products

_SHAPES = (((300, 401), (401, 513)), ((3, 70, 2), (3, 2, 65)), ((2, 1, 20, 3000), (3, 3000, 33)), ((1, 9), (9, 1)))


def compare_products(name: str, options: Options) -> Mapping[str, Any]:
    """Compare products of matrices, also of other layouts, with settings that let the library multiply less precisely."""
    backend, device = targets(options)[name]
    if name == "torch":
        torch = importlib.import_module("torch")
        torch.set_float32_matmul_precision("medium")
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    found = {}
    for dtype in ("float32", "float64"):
        primitives = backend.primitives(dtype)
        for shapes in _SHAPES[1:] if options.small else _SHAPES:
            for kind, a, b in _operands(dtype, shapes):
                with portopt.interpreted(), np.errstate(all="ignore"):
                    numpy: Any = portopt.get_backend("numpy")
                    own = numpy.primitives(dtype)
                    expected = products.matmul(own, own.wide, a, b)
                for layout, put in (("rows", _as_it_is), ("columns", _transposed)):
                    left, right = (put(primitives.xp, lambda x: backend.from_numpy(x, device), x) for x in (a, b))
                    with np.errstate(all="ignore"):
                        actual = backend.to_numpy(products.matmul(primitives, primitives.wide, left, right))
                    wrong = differing(actual.reshape(-1), expected.reshape(-1))
                    case = f"{dtype} {shapes[0]} {kind} {layout}"
                    found[case] = "same" if wrong is None else {"differs": wrong}
    return found


def _operands(dtype: str, shapes: Any) -> Iterator[tuple[str, Any, Any]]:
    def made(make: Callable[..., Any], **arguments: Any) -> list[Any]:
        found = []
        for seed, shape in enumerate(shapes):
            x = make(int(np.prod(shape)), dtype, seed, **arguments).reshape(shape)
            found.append(np.where(np.abs(x) < np.finfo(dtype).tiny, 0, x).astype(dtype))
        return found

    yield "ordinary", *made(ordinary)
    yield "raw", *made(raw, finite=True)
    a, b = made(ordinary)
    a[..., 0, 0], b[..., 0, 0] = np.nan, -np.inf
    yield "not finite", a, b


def _as_it_is(xp: Any, put: Callable[[Any], Any], x: Any) -> Any:
    return put(x)


def _transposed(xp: Any, put: Callable[[Any], Any], x: Any) -> Any:
    return xp.matrix_transpose(put(np.ascontiguousarray(x.mT)))


class _Totals(portopt.Optimizer):
    slots = ()
    scalar_slots: ClassVar[Mapping[str, float]] = dict.fromkeys(("added", "length", "largest", "of_gradients"), 0.0)

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Mapping[str, Any]:
        norm = xp.linalg.vector_norm
        return {"sum": xp.sum(p - g), "norm": norm(p - g), "max": xp.max(p - g), "norm_of_gradients": norm(g)}

    def coefficients(self, t: Any, sum: Any, norm: Any, max: Any, norm_of_gradients: Any, **before: Any) -> Any:
        return {"added": sum, "length": norm, "largest": max, "of_gradients": norm_of_gradients, "rate": norm}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.rate * g, {}


def compare_totals(name: str, options: Options) -> Mapping[str, Any]:
    """Compare totals of many parameters of two dtypes: of ordinary numbers, of words of any bits, and of such with a NaN."""
    backend, device = targets(options)[name]
    sizes = [options.words, 0, 1, 70_000, *range(200)]
    found = {}
    for kind in ("ordinary", "raw", "not finite"):
        trees = []
        for k in (0, 1):
            dtypes = ["float64" if i % 3 == 2 else "float32" for i in range(len(sizes))]
            make: Callable[..., Any] = ordinary if kind == "ordinary" else raw
            given = {} if kind == "ordinary" else {"finite": kind == "raw"}
            trees.append([make(n, d, k, **given) for n, d in zip(sizes, dtypes, strict=True)])
        optimizer = _Totals()
        with portopt.interpreted(), np.errstate(all="ignore"):
            _, expected = optimizer.apply(trees[0], trees[1], optimizer.init(trees[0]))
        params, gradients = ([backend.from_numpy(x, device) for x in tree] for tree in trees)
        with np.errstate(all="ignore"):
            _, actual = optimizer.apply(params, gradients, optimizer.init(params))
        for total, wanted in expected.slots.items():
            value = float(actual.slots[total])
            found[f"{kind} {total}"] = "same" if value.hex() == wanted.hex() else {"differs": [value, wanted]}
    return found
