"""Steps and norms on a GPU as calls of kernels in CUDA C, of all arrays at once, inside an XLA computation.

XLA makes a loop of each parameter, and takes long to compile many, and the scalars. Where a first trial does not go well, XLA's
operations do it all.
"""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from portopt.kernels.cuda import driver, kernels, nvrtc
from portopt.kernels.cuda.norm import norm_source
from portopt.kernels.cuda.source import (
    BLOCKS_PER_MULTIPROCESSOR,
    CHUNK,
    MOST_BLOCKS,
    REDUCED_CHUNK,
    norm_of_parts_source,
    source_for_inputs_on_device,
)
from portopt.kernels.cuda.tables import Chunks, words_of_few
from portopt.kernels.key import KernelKey
from portopt.kernels.names import NORM_OF_PARTS, SUM_SQUARES, UPDATE
from portopt.kernels.norm_dependence import WORDS_OF_PART
from portopt.program import Program
from portopt_jax import _launching
from portopt_jax._launching import Word

_FEW, _SOME, _MANY = 60, 500, 4000
"""How many words a table has in a launch's arguments. The last is more than older drivers, compilers and devices take."""
_BLOCKS_PER_MULTIPROCESSOR = 16
"""At most, for each of them computes the scalars of the step; about twice as many as run at once."""
_MANY_FROM, _MANY_ON = (12, 1), 70
_MOST_OPERANDS = 1000
"""Of a call, where it may be divided."""
_MOST_SECONDS = 120.0
"""How long a trial may take."""

_Array: Any = jax.ShapeDtypeStruct
Registered = Callable[[str, Callable[[], Any], str], str]

_trying: ContextVar[bool] = ContextVar("portopt_jax_trying", default=False)


class _Machine(NamedTuple):
    """What kernels are launched on.

    Attributes:
        devices: the numbers of the devices, as the driver has them.
        multiprocessors: of the smallest one.
        addresses: of the driver's functions that handlers call.
        most_words: the most words of a table in a launch's arguments.
    """

    devices: tuple[int, ...]
    multiprocessors: int
    addresses: tuple[int, int]
    most_words: int


@functools.cache
def machine() -> _Machine | None:
    """Return what there is to launch kernels on; None where handlers cannot launch any."""
    try:
        numbers = tuple(sorted(device.local_hardware_id or 0 for device in _devices()))
        found = [driver.device(number) for number in numbers]
        compiler = nvrtc.compiler(driver.driver().version() // 1000)
    except RuntimeError:
        return None
    many = driver.driver().version() >= 1000 * _MANY_FROM[0] + 10 * _MANY_FROM[1]
    many = many and _release(compiler.version) >= _MANY_FROM and min(of.capability for of in found) >= _MANY_ON
    processors = min(of.multiprocessors for of in found)
    return _Machine(numbers, processors, driver.driver().addresses_for_launching(), _MANY if many else _SOME)


def _devices() -> Sequence[Any]:
    found: Sequence[Any] = jax.local_devices(backend="cuda")
    return found


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def usable() -> bool:
    """Tell whether computations for a GPU may call kernels: there is all that it needs, and a trial has had the right bits."""
    return machine() is not None and (_trying.get() or _tried())


@functools.cache
def _tried() -> bool:
    found: list[str] = []
    # A thread of its own, for JAX is tracing in this one.
    thread = threading.Thread(target=lambda: found.append(_found_in_trial()), daemon=True)
    thread.start()
    thread.join(_MOST_SECONDS)
    if found != [""]:
        reason = "".join(found) or "a trial did not end"
        message = f"JAX's computations call no kernels of portopt on this GPU, and take longer, for {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return found == [""]


def _found_in_trial() -> str:
    """Return what is wrong with kernels on the first device; nothing if all is right."""
    library: Any = importlib.import_module("portopt")
    token = _trying.set(True)
    try:
        rng = np.random.default_rng(0)
        params, grads, slot = ([rng.standard_normal(n, np.float32) for n in (5, 1, 70001)] for _ in range(3))
        optimizer = library.SGD(0.1, momentum=0.9, clipnorm=1.0)
        state = optimizer.init(params)
        given = params, grads, state._replace(slots=dict.fromkeys(state.slots, slot))
        found = jax.jit(optimizer.apply)(*jax.device_put(given, _devices()[0]))
        with library.interpreted():  # which compiles nothing
            wanted = optimizer.apply(*given)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        wrong = any(np.shape(b) and np.asarray(a).tobytes() != b.tobytes() for a, b in pairs)
        return "a step has wrong bits" if wrong else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _trying.reset(token)


def step(inputs: Any, number: Any, *arrays: Any, program: Program, key: KernelKey, registered: Registered) -> list[Any]:
    """Do a step.

    Args:
        inputs: the scalar inputs but for the number of the step, in one float64 array.
        number: of the step, int32.
        arrays: those of each parameter, as the key orders them.
        program: an elementwise one.
        key: of the kernels.
        registered: returns the name of a handler of some content for a platform, made by a function if it is new.

    Returns:
        The new scalars of the state in one float64 array, if there are any, then parameter and slots of each parameter.
    """
    columns = len(key.dtypes)
    rows = [arrays[i : i + columns] for i in range(0, len(arrays), columns)]
    found: list[Any] = []
    with jax.enable_x64(True):
        given = inputs if inputs.size else jnp.zeros(1, jnp.float64)
        for part in _parts(rows, columns, len(key.columns(program))):
            outputs, *results = _updated(given, number, part, program, key, registered)
            found += [*([outputs] if program.scalar_outputs and not found else []), *results]
    return found


def _parts(rows: Sequence[Any], operands: int, columns: int) -> Iterator[Sequence[Any]]:
    """Divide parameters among calls, given how many operands and addresses each has: at least one call."""
    known = machine()
    assert known is not None
    # XLA's time grows as the square of a call's operands.
    most = _MOST_OPERANDS // operands
    while words_of_few(most, columns) > known.most_words:
        most -= 1
    calls = max(-(-len(rows) // most), 1)
    return (rows[k * len(rows) // calls : (k + 1) * len(rows) // calls] for k in range(calls))


def _updated(
    inputs: Any, number: Any, rows: Sequence[Sequence[Any]], program: Program, key: KernelKey, registered: Registered
) -> list[Any]:
    """Return the new scalars of the state, and parameter and slots of each parameter."""
    known = machine()
    assert known is not None
    chunks = Chunks([row[0].size for row in rows], CHUNK)
    names = [name for name, _ in key.dtypes]
    written = [names.index(name) for name in program.array_outputs]
    types = [_Array((max(len(program.scalar_outputs), 1),), jnp.float64)]
    types += [_Array(row[i].shape, row[i].dtype) for row in rows for i in written]
    pairs = enumerate((r, i) for r in range(len(rows)) for i in written)
    aliases = {2 + r * len(names) + i: 1 + k for k, (r, i) in pairs} if key.in_place else None
    target = _handler_of_step(program, key, _words(len(rows), len(key.columns(program))), registered)
    call: Any = jax.ffi.ffi_call(target, types, has_side_effect=True, input_output_aliases=aliases)
    blocks = max(min(chunks.number, _BLOCKS_PER_MULTIPROCESSOR * known.multiprocessors, MOST_BLOCKS), 1)
    layout = np.array([blocks, *chunks.few()], np.int64)
    return list(call(inputs, number, *(array for row in rows for array in row), layout=layout))


def norm(groups: Sequence[Sequence[Any]], registered: Registered) -> Any:
    """Return the norm of all gradients together, float64, given those of each dtype."""
    known = machine()
    assert known is not None
    with jax.enable_x64(True):
        parts = []
        for gradients in (part for group in groups for part in _parts(group, 1, 1)):
            chunks = Chunks([g.size for g in gradients], REDUCED_CHUNK)
            blocks = min(chunks.number, BLOCKS_PER_MULTIPROCESSOR * known.multiprocessors, MOST_BLOCKS)
            types = _Array((blocks, WORDS_OF_PART), jnp.int64)
            target = _handler_of_squares(str(gradients[0].dtype), _words(len(gradients), 1), registered)
            call: Any = jax.ffi.ffi_call(target, types, has_side_effect=True)
            parts.append(call(*gradients, layout=np.array([blocks, *chunks.few()], np.int64)))
        whole = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
        norm_of: Any = jax.ffi.ffi_call(_handler_of_norm(registered), _Array((), jnp.float64))
        return norm_of(whole, layout=np.array([len(whole)]))


def _words(rows: int, columns: int) -> int:
    """Return how many words the table of a kernel has for so many parameters and addresses of each: one of few numbers."""
    known, needed = machine(), words_of_few(rows, columns)
    assert known is not None
    return next((words for words in (_FEW, _SOME) if needed <= words), known.most_words)


def _handler_of_step(program: Program, key: KernelKey, words: int, registered: Registered) -> str:
    source = source_for_inputs_on_device(program, key, words)

    def made() -> Any:
        return _launching.make_launching_handler(
            _functions(source, UPDATE),
            _addresses(),
            [("operand", 0), ("operand", 1), ("result", 0)],
            fixed=2,
            fixed_results=1,
            operands=len(key.dtypes),
            results=len(program.array_outputs),
            in_place=key.in_place,
            words=words,
        )

    return registered(f"{key.in_place} {source}", made, "CUDA")


def _handler_of_squares(dtype: str, words: int, registered: Registered) -> str:
    source = norm_source(dtype, words)

    def made() -> Any:
        return _launching.make_launching_handler(
            _functions(source, SUM_SQUARES),
            _addresses(),
            [("result", 0), ("layout", 0)],
            fixed=0,
            fixed_results=1,
            operands=1,
            results=0,
            in_place=False,
            words=words,
        )

    return registered(source, made, "CUDA")


def _handler_of_norm(registered: Registered) -> str:
    source = norm_of_parts_source()
    arguments: list[Word] = [("operand", 0), ("layout", 0), ("result", 0)]

    def made() -> Any:
        return _launching.make_call_handler(_functions(source, NORM_OF_PARTS), _addresses(), arguments)

    return registered(source, made, "CUDA")


def _addresses() -> tuple[int, int]:
    known = machine()
    assert known is not None
    return known.addresses


def _functions(source: str, name: str) -> list[int]:
    """Return a kernel on each device by its number; zeros where there is none."""
    known = machine()
    assert known is not None
    return [
        kernels.function(source, name, number) if number in known.devices else 0
        for number in range(max(known.devices) + 1)
    ]
