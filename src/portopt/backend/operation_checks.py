"""A look at an array library that nobody has tested: does each operation of a program give the contract's bits?

Some libraries have approximate roots, lose the sign of zeros, or evaluate a chain of operations otherwise than each of them
alone. One look takes milliseconds: every operation, and then the whole step that is about to be done, runs on words on which
implementations part (zeros, subnormals, ends of ranges, infinities, NaN, random ones), in the library and in NumPy. The
conformance suite is the thorough version of this.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from portopt.arithmetic.dtypes import COMPUTE_DTYPE, SMALLEST_NORMAL
from portopt.backend.array_api import ArrayAPIBackend
from portopt.backend.modes import interpreted
from portopt.backend.protocol import Work
from portopt.backend.registry import get_backend
from portopt.program import DRAWS, REDUCTIONS, Kind, Op, Program, bins
from portopt.program.draws import Place, draw
from portopt.program.products import matmul

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.generic]

_MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
_RANDOM = 192
_ORDINARY = 256
_LENGTH = 6
"""Of each axis of a parameter on which a step that reduces or multiplies is looked at."""

_OPERATIONS = (
    ("less", "xy"), ("less_equal", "xy"), ("equal", "xy"),
    ("logical_and", "mn"), ("logical_or", "mn"), ("logical_not", "m"),
    ("absolute", "x"), ("negative", "x"), ("where", "mxy"), ("load", "r"),
    ("add", "xy"), ("subtract", "xy"), ("multiply", "xy"), ("divide", "xy"), ("sqrt", "x"),
    ("add", "xs"), ("subtract", "sx"), ("multiply", "xs"), ("divide", "sx"), ("less", "xs"), ("where", "msx"),
    ("store", "xr"), ("store", "sr"),
)  # fmt: skip
"""Operations and their operands: arrays `x` and `y` in the compute dtype, masks `m` and `n`, a scalar `s`, and `r` in the
parameter's dtype. What others need comes first, so that the first one that differs is the one that is wrong."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Give no warnings about infinities and NaN, which are among the words, not even where a library computes in threads."""
    import numpy as np

    with _one_at_a_time, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


_one_at_a_time = threading.RLock()
"""What `warnings` restores would otherwise be what another thread's look had set."""


def _forget_other_threads() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class WrongOperationError(TypeError):
    """An array library does an operation otherwise than the arithmetic contract says."""


def check_operations(backend: ArrayAPIBackend, dtype: str, like: Any) -> None:
    """Compare each operation on arrays of `dtype`, on the device of `like`, with NumPy's.

    Raises:
        WrongOperationError: one gives other bits, or raises an error.
    """
    reference, compute = _reference(), COMPUTE_DTYPE[dtype]
    host: dict[str, Any] = {"r": operand(dtype, 0)}
    host |= {name: _flushed(operand(compute, i)) for i, name in enumerate("xy")}
    host |= {"m": host["x"] < host["y"], "n": host["x"] <= 1}
    on_device = backend.on_device(like)
    what = f"the way of {dtype} from NumPy and back"
    given = _result(
        backend, what, lambda: {name: backend.from_own(array.copy(), on_device) for name, array in host.items()}
    )
    for name, array in host.items():
        _compare(backend, what, array, given[name], {})
    for value in (1 / 3, -0.0, SMALLEST_NORMAL[compute], float("inf"), float("nan"), 0.1):
        host["s"] = reference.rounded_scalar(value, compute, host["r"])
        what = f"the scalar {value!r} in {compute}"
        given["s"] = _result(backend, what, functools.partial(backend.rounded_scalar, value, compute, given["r"]))
        _compare(backend, what, host["s"], given["s"], {})
    for name, letters in _OPERATIONS:
        what = f"{name}{' with a scalar' if 's' in letters else ''} in {dtype if 'r' in letters else compute}"
        expected, found = _both(backend, what, functools.partial(_operate, name, letters, compute), host, given)
        _compare(backend, what, expected, found, {letter: host[letter] for letter in letters if letter != "s"})


def _operate(name: str, letters: str, compute: str, backend: ArrayAPIBackend, arrays: Mapping[str, Any]) -> Any:
    function = backend.stored if name == "store" else getattr(backend.primitives(compute), name)
    return function(*(arrays[letter] for letter in letters))


def check_operation(backend: ArrayAPIBackend, name: str, compute: str, like: Any) -> None:
    """Compare an operation that is not of single elements with NumPy's, in a compute dtype, on the device of `like`.

    Args:
        backend: of the library.
        name: one of `REDUCTIONS`, `PRODUCTS` or `DRAWS`.
        compute: `"float32"` or `"float64"`.
        like: an array of the library.

    Raises:
        WrongOperationError: it gives other bits, or raises an error.
    """
    words, numbers = (_flushed(operand(compute, i)) for i in (0, 1))
    ordinary = numbers[-_ORDINARY:].reshape(16, -1)
    for array in (ordinary, _cancelling(ordinary), words[: words.size // 7 * 7].reshape(-1, 7)):
        host = {"x": array, "m": array < 1}
        given = {letter: backend.from_own(x.copy(), backend.on_device(like)) for letter, x in host.items()}
        for what, function in _forms(name, compute):
            expected, found = _both(backend, f"{what} in {compute}", function, host, given)
            _compare(backend, f"{what} in {compute}", expected, found, {})


def _cancelling(ordinary: Any) -> Any:
    """Return large numbers that cancel in every sum, and small ones, which only the last of the bins of `bins` have room for."""
    import numpy as np

    largest, width = 2.0 ** (bins.OFFSET - 1), bins.WIDTH
    numbers = ordinary * ordinary.dtype.type(2.0 ** (bins.OFFSET - 2 * width))
    numbers[:2, :2] = np.array([[largest, -largest], [-largest, largest]])
    return numbers


def _forms(name: str, compute: str) -> Iterator[tuple[str, Callable[[ArrayAPIBackend, Any], Any]]]:
    """Yield what an operation is called and what does it, given a backend and arrays: a matrix `x` and a mask `m`."""
    import numpy as np

    if name in REDUCTIONS:
        letter = "m" if name in ("any", "all", "count") else "x"

        def reduce(b: ArrayAPIBackend, arrays: Any, axes: tuple[int, ...] | None) -> Any:
            found = getattr(b.reductions(compute), name)(arrays[letter], axes)
            return np.asarray(found) if axes is None else found

        yield f"{name} of all elements", lambda b, arrays: reduce(b, arrays, None)
        for axis in (0, 1):
            yield f"{name} along axis {axis}", lambda b, arrays, axis=axis: reduce(b, arrays, (axis,))  # type: ignore[misc]  # binds axis
    elif name in DRAWS:
        yield (
            name,
            lambda b, arrays: draw(
                b.primitives(compute).widened_by(lambda: b.primitives("float64")),
                name.removeprefix("draw_"),
                2**40 + 3,
                7,
                1,
                Place.of(2, arrays["x"].shape),
                arrays["x"],
            ),
        )
    elif name == "matmul":
        yield (
            name,
            lambda b, arrays: matmul(
                b.primitives(compute), b.primitives("float64"), arrays["x"], b.xp.permute_dims(arrays["x"], (1, 0))
            ),
        )
    elif name == "transpose":
        yield name, lambda b, arrays: b.xp.permute_dims(arrays["x"], (1, 0))
    elif name == "reshape":
        yield name, lambda b, arrays: b.xp.reshape(arrays["x"], arrays["x"].shape[::-1])
    elif name == "eye":
        yield (
            name,
            lambda b, arrays: b.primitives(compute).eye(5, b.rounded_scalar(0.5, compute, arrays["x"]), arrays["x"]),
        )


def check_step(backend: ArrayAPIBackend, program: Program, dtypes: Mapping[str, str], like: Any) -> None:
    """Compare a whole step on arrays of these dtypes, on the device of `like`, with NumPy's.

    Raises:
        WrongOperationError: an operation that may be right by itself gives other bits among the others.
    """
    import numpy as np

    host = {name: operand(dtype, i) for i, (name, dtype) in enumerate(dtypes.items())}
    if not program.is_elementwise:
        shapes = _small_shapes(program, like.shape)
        if shapes is None:
            return
        # Ordinary numbers: a NaN would be in every sum.
        host = {name: np.resize(array[-_ORDINARY:], shapes.get(name, shapes["p"])) for name, array in host.items()}
    given = {name: backend.from_own(array.copy(), backend.on_device(like)) for name, array in host.items()}
    # Not the scalars of this step: a rate of zero, as schedules begin with, would hide what is wrong.
    scalars = [op.label if op.name == "constant" else 0.3 + 0.1 * (i % 13) for i, op in enumerate(program.ops)]

    def compare(what: str, program: Program) -> None:
        expected, found = _both(
            backend,
            what,
            lambda b, a: ArrayAPIBackend.update(b, [Work(program, scalars, [a])], in_place=False)[0],
            host,
            given,
        )
        shown = host if program.is_elementwise else {}
        for name in program.array_outputs:
            _compare(backend, f"{what} ({name})", expected[name], found[name], shown)

    try:
        compare(f"a whole step of {program.name}", program)
    except WrongOperationError:
        for i, op in program.array_ops():
            if op.kind is Kind.ARRAY and _fits_the_parameter(op):
                names = program.names()
                text = f"{op.name}({', '.join(names[j] for j in op.args) or op.label})"
                what = f"{op.name} within a step of {program.name}, at {names[i]} = {text}"
                compare(what, Program(program.name, program.ops[: i + 1], {"p": i}))
        raise


def _small_shapes(program: Program, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]] | None:
    """Return shapes of a small parameter and of what is kept of it; None if the program is for lengths of its own."""
    small = tuple(min(length, _LENGTH) for length in shape)
    found = {"p": small}
    for op, name in [
        *((op, op.reads) for op in program.ops if op.reads),
        *((program.ops[i], name) for name, i in program.array_outputs.items()),
    ]:
        dims = tuple(range(len(shape))) if op.dims is None else op.dims
        if any(isinstance(d, str) for d in dims):
            return None
        found.setdefault(name, tuple(small[int(d)] for d in dims if d != -1))
    return None if any(isinstance(d, str) for op in program.ops for d in op.dims or ()) else found


def _fits_the_parameter(op: Op) -> bool:
    return op.dims is None or all(d in (k, -1) for k, d in enumerate(op.dims))


def check_norm(backend: ArrayAPIBackend, dtype: str, like: Any) -> None:
    """Compare the norm of gradients of `dtype`, on the device of `like`, with NumPy's.

    Raises:
        WrongOperationError: it differs.
    """
    import numpy as np

    words = operand(dtype, 0)
    finite = words[np.isfinite(words.astype(np.float64))]
    ordinary = finite[-_ORDINARY:]
    for gradient in (
        ordinary,
        finite,
        finite[:0],
        ordinary * 0,
        np.append(ordinary, np.inf).astype(words.dtype),
        words,
    ):
        given = backend.from_own(gradient.copy(), backend.on_device(like))
        what = f"the norm of gradients of {dtype} (any, max, abs, round, sum)"
        norms = _both(backend, what, lambda b, g: ArrayAPIBackend.gradient_norm(b, [g]), gradient, given)
        _compare(backend, what, np.asarray(norms[0]), np.asarray(norms[1]), {})


def operand(dtype: str, index: int) -> Words:
    """Return one of the operands on which libraries are looked at: a special word of each kind, random words, numbers."""
    import numpy as np

    kind, rng = np.dtype(_reference().dtype(dtype)), np.random.default_rng([index, *dtype.encode()])
    unsigned = np.dtype(f"u{kind.itemsize}")
    smallest = 1 << _MANTISSA_BITS[dtype]
    one, infinity = int(np.ones(1, kind).view(unsigned)[0]), int(np.full(1, np.inf, kind).view(unsigned)[0])
    positive = [
        0,
        1,
        smallest - 1,
        smallest,
        one - 1,
        one,
        one + 1,
        one + smallest // 2,
        infinity - 1,
        infinity,
        infinity + 1,
    ]
    specials = np.array([*positive, *(word | 1 << 8 * kind.itemsize - 1 for word in positive)], unsigned)
    crossed = [np.repeat(specials, specials.size), np.tile(specials, specials.size)]
    parts = [
        crossed[index] if index < 2 else rng.permutation(crossed[0]),
        rng.integers(0, 1 << 8 * kind.itemsize, _RANDOM, unsigned),
    ]
    # With a parameter of zero, what is added to it shows in every bit.
    from_zero = rng.uniform(0.5 if index else 0.0, 2.0 if index else 0.0, _ORDINARY).astype(kind)
    ordinary = (rng.uniform(0.5, 2.0, _ORDINARY) * np.where(rng.random(_ORDINARY) < 0.5 * (index < 2), -1, 1)).astype(
        kind
    )
    words: Words = np.concatenate(
        [np.concatenate(parts).view(kind), _near_smallest_normal(kind, index), from_zero, ordinary]
    )
    return words


def _near_smallest_normal(kind: np.dtype[Any], index: int) -> Words:
    """Return factors whose products, and a quotient, meet the gap between the two ways to flush."""
    import numpy as np

    normal = np.finfo(kind).smallest_normal if kind.kind == "f" else 2.0**-126
    factor = np.random.default_rng(0).uniform(0.5, 1.0, 64).astype(kind)
    below_two = np.nextafter(kind.type(2), kind.type(0))
    pairs: list[Words] = [
        np.append(factor, below_two * kind.type(normal)),
        np.append(kind.type(normal) / factor, kind.type(2)),
    ]
    return pairs[index] if index < 2 else np.ones_like(pairs[0])


def _reference() -> ArrayAPIBackend:
    backend = get_backend("numpy")
    assert isinstance(backend, ArrayAPIBackend)
    return backend


def _flushed(x: Any) -> Any:
    return _reference().primitives(str(x.dtype)).flush(x)


def _both(
    backend: ArrayAPIBackend, what: str, function: Callable[[ArrayAPIBackend, Any], Any], host: Any, given: Any
) -> tuple[Any, Any]:
    """Return what a function gives with NumPy's backend and arrays, operation by operation, and with the library's."""
    with interpreted():
        expected = function(_reference(), host)
    return expected, _result(backend, what, lambda: function(backend, given))


def _result(backend: ArrayAPIBackend, what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        raise _refusal(backend, f"{what} raised {type(error).__name__}: {error!s:.500}") from error


def _compare(backend: ArrayAPIBackend, what: str, expected: Any, result: Any, operands: Mapping[str, Any]) -> None:
    """Raise an error if a library's result differs from NumPy's."""
    import numpy as np

    found = result if isinstance(result, np.ndarray) else _result(backend, what, lambda: backend.to_numpy(result))
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise _refusal(
            backend,
            f"{what} gave {found.dtype} of shape {found.shape}, but {expected.dtype} of shape {expected.shape} is right",
        )
    differs = np.ravel(_words(found) != _words(expected))
    if not differs.any():
        return
    i = int(np.argmax(differs))
    inputs = ", ".join(f"{name} = {np.ravel(array)[i]!s}" for name, array in operands.items())
    raise _refusal(
        backend,
        f"{what} gave {_shown(found, i)}{' for ' if inputs else ''}{inputs}, where {_shown(expected, i)} is right "
        f"({int(differs.sum())} of {differs.size} results differ)",
    )


def _words(array: Words) -> Words:
    """Return the bits of an array, with one pattern for all NaNs."""
    import numpy as np

    if array.dtype == bool:
        return array
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape).copy()
    words[array != array] = np.iinfo(words.dtype).max
    return words


def _shown(array: Words, i: int) -> str:
    value = array.reshape(-1)[i : i + 1]
    return str(value[0]) if array.dtype == bool else f"{value[0]!s} (0x{int(_words(value)[0]):x})"


def _refusal(backend: ArrayAPIBackend, what: str) -> WrongOperationError:
    return WrongOperationError(
        f"{backend.name} {backend.version()} has no backend, and a look at its operations found one that is wrong: {what}. "
        "Convert the arrays to another library's, or write a backend that replaces the operation (docs/writing-a-backend.md); "
        f"portopt.backend.accept({backend.name!r}) takes the library as it is, with other bits"
    )
