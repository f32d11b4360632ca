"""Steps and norms on a GPU as calls of kernels in CUDA C, of all arrays at once, inside an XLA computation.

XLA makes a loop of each parameter, and takes long to compile many, and the scalars. Where a first trial does not go well, XLA's
operations do it all.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    REDUCED_CHUNK,
    source_for_inputs_on_device,
)
from portopt.kernels.cuda.staged_source import cut, staged_source_for_inputs_on_device
from portopt.kernels.cuda.tables import Chunks, words_of_few
from portopt.kernels.cuda.totals import total_of_parts_source, totals_source
from portopt.kernels.key import KernelKey
from portopt.kernels.launch import JOINED
from portopt.kernels.names import LARGEST_JOINED, SCALARS_OF_INPUTS, SUM_SQUARES, SUMS_JOINED, TOTAL_OF_PARTS, UPDATE
from portopt.kernels.norm_dependence import WORDS_OF_PART, all_on_device, with_given_totals
from portopt.kernels.passes import can_pass, number_of_parts, passes_of, words_of
from portopt.program import Program
from portopt.program.draws import Place
from portopt_jax import _launching
from portopt_jax._launching import Kernel, Word

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


def can_run(program: Program) -> bool:
    """Tell whether kernels can do the steps of a program."""
    if program.is_elementwise:
        return True
    # New scalars of the state are made before any array has been looked at.
    return can_pass(program) and program.parameter_scalars.isdisjoint(program.scalar_outputs.values())


def step(
    inputs: Any,
    number: Any,
    *arrays: Any,
    program: Program,
    key: KernelKey,
    registered: Registered,
    places: Sequence[Place] = (),
) -> list[Any]:
    """Do a step.

    Args:
        inputs: the scalar inputs but for the number of the step, in one float64 array.
        number: of the step, int32.
        arrays: those of each parameter, as the key orders them.
        program: of which `can_run` is true.
        key: of the kernels.
        registered: returns the name of a handler of some content for a platform, made by a function if it is new.
        places: where each parameter is, if the program draws.

    Returns:
        The new scalars of the state in one float64 array, if there are any, then parameter and slots of each parameter.
    """
    columns = len(key.dtypes)
    rows = [arrays[i : i + columns] for i in range(0, len(arrays), columns)]
    kinds: type[_Elementwise | _Staged] = _Elementwise if program.is_elementwise else _Staged
    kernels = kinds(program, key)
    numbers = [of.number for of in places] or [0] * len(rows)
    found: list[Any] = []
    with jax.enable_x64(True):
        given = inputs if inputs.size else jnp.zeros(1, jnp.float64)
        for part in _parts(list(zip(rows, numbers, strict=True)), columns, kernels.columns):
            launches = kernels.launches([(row[0].shape, own) for row, own in part])
            outputs, *results = _updated(given, number, [row for row, _ in part], kernels, launches, registered)
            found += [*([outputs] if program.scalar_outputs and not found else []), *results]
    return found


class _Launches(NamedTuple):
    """What is launched for some parameters.

    Attributes:
        layout: as the handler takes it.
        results: what kernels make beside the new scalars of the state and the arrays.
    """

    layout: Sequence[int]
    results: Sequence[Any]


class _Elementwise:
    """The kernel of an elementwise program."""

    def __init__(self, program: Program, key: KernelKey) -> None:
        self.program = program
        self.key = key
        self.columns = len(key.columns(program))

    def launches(self, parameters: Sequence[tuple[tuple[int, ...], int]]) -> _Launches:
        """Return what is launched for parameters, given shape and number in the tree of each."""
        known = machine()
        assert known is not None
        chunks = Chunks([math.prod(shape) for shape, _ in parameters], CHUNK)
        blocks = min(chunks.number, _BLOCKS_PER_MULTIPROCESSOR * known.multiprocessors)
        # One in any case, for the new scalars of the state.
        return _Launches([max(blocks, 1), *chunks.few()], [])

    def handler(self, words: int, registered: Registered) -> str:
        """Return the name of the handler, given how many words a table has."""
        source = source_for_inputs_on_device(self.program, self.key, words)
        arguments = [Word("operand", 0), Word("operand", 1), Word("result", 0)]

        def made() -> Any:
            kernels = [Kernel(_functions(source, UPDATE), arguments)]
            return _launching.make_launching_handler(
                kernels,
                _addresses(),
                fixed=2,
                fixed_results=1,
                operands=len(self.key.dtypes),
                results=len(self.program.array_outputs),
                in_place=self.key.in_place,
                words=words,
            )

        return registered(f"{self.key.in_place} {source}", made, "CUDA")


class _Staged:
    """The kernels of a program that reduces, or draws: one for the scalars, then one for each pass.

    Args:
        program: what they do.
        key: of the kernels.
        of_total: leave what the first pass finds of a reduction, that of all parameters side by side, and do no more.
    """

    def __init__(self, program: Program, key: KernelKey, *, of_total: bool = False) -> None:
        self.program = program
        self.key = key
        self._of_total = of_total
        self._passes = passes_of(with_given_totals(program))
        self._steps = self._passes.passes[:1] if of_total else self._passes.passes
        self._lengths = len(self._passes.stages.space)
        self._scalars = all_on_device(program)
        # After the arrays: the lengths, the memory for what kernels leave to later ones, the number.
        self.columns = len(key.columns(program)) + self._lengths + 2

    @property
    def words_of_part(self) -> int:
        """How many words a part of a total has."""
        (partial,) = self._passes.partial
        return words_of(self._passes.stages.program.ops[partial].name)

    def launches(self, parameters: Sequence[tuple[tuple[int, ...], int]]) -> _Launches:
        """Return what is launched for parameters, given shape and number in the tree of each."""
        passes = self._passes
        lengths = [passes.stages.lengths(shape) for shape, _ in parameters]
        words = [passes.words(own, REDUCED_CHUNK) for own in lengths]
        first = 0
        if self._of_total:
            words = [self.words_of_part * number_of_parts(math.prod(own), REDUCED_CHUNK) for own in lengths]
            # The parts of a parameter come after its result, for which there is no place.
            first = -1
        places = list(itertools.accumulate(words, initial=first))
        layout = [own[k] for k in range(self._lengths) for own in lengths]
        layout += [*(8 * place for place in places[:-1]), *(number for _, number in parameters)]
        for step in self._steps:
            chunks = Chunks(*cut(passes, step, lengths))
            layout += [chunks.number, *chunks.few()]
        counts = len(self._scalars.rounded_on_device), len(self._scalars.unrounded_on_device), sum(words)
        kinds = jnp.dtype(self.key.compute_dtype), jnp.float64, jnp.int64
        return _Launches(layout, [_Array((max(n, 1),), kind) for n, kind in zip(counts, kinds, strict=True)])

    def handler(self, words: int, registered: Registered) -> str:
        """Return the name of the handler, given how many words a table has."""
        source = staged_source_for_inputs_on_device(self.program, self.key, words)
        scalars = [Word("operand", 0), Word("operand", 1), Word("result", 0), Word("result", 1), Word("result", 2)]
        kinds = self._scalars.rounded_on_device, self._scalars.unrounded_on_device
        arguments = [Word("result", 1 + k) for k, of_kind in enumerate(kinds) if of_kind]

        def made() -> Any:
            return _launching.make_launching_handler(
                [Kernel(_functions(source, step.name), arguments) for step in self._steps],
                _addresses(),
                fixed=2,
                fixed_results=4,
                operands=len(self.key.dtypes),
                results=0 if self._of_total else len(self.program.array_outputs),
                in_place=self.key.in_place and not self._of_total,
                words=words,
                before=Kernel(_functions(source, SCALARS_OF_INPUTS), scalars),
                further=self._lengths + 2,
                workspace=self._lengths,
            )

        return registered(f"{self.key.in_place} {self._of_total} {source}", made, "CUDA")


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
    inputs: Any,
    number: Any,
    rows: Sequence[Sequence[Any]],
    kernels: _Elementwise | _Staged,
    launches: _Launches,
    registered: Registered,
) -> list[Any]:
    """Return the new scalars of the state, and parameter and slots of each parameter."""
    program, key = kernels.program, kernels.key
    names = [name for name, _ in key.dtypes]
    written = [names.index(name) for name in program.array_outputs]
    types = [_Array((max(len(program.scalar_outputs), 1),), jnp.float64), *launches.results]
    pairs = enumerate((r, i) for r in range(len(rows)) for i in written)
    aliases = {2 + r * len(names) + i: len(types) + k for k, (r, i) in pairs} if key.in_place else None
    target = kernels.handler(_words(len(rows), kernels.columns), registered)
    of_rows = [_Array(row[i].shape, row[i].dtype) for row in rows for i in written]
    call: Any = jax.ffi.ffi_call(target, [*types, *of_rows], has_side_effect=True, input_output_aliases=aliases)
    arrays = (array for row in rows for array in row)
    outputs, *results = call(inputs, number, *arrays, layout=np.array(launches.layout, np.int64))
    return [outputs, *results[len(launches.results) :]]


def norm(groups: Sequence[Sequence[Any]], registered: Registered) -> Any:
    """Return the norm of all gradients together, float64, given those of each dtype."""
    known = machine()
    assert known is not None
    with jax.enable_x64(True):
        parts = []
        for gradients in (part for group in groups for part in _parts(group, 1, 1)):
            chunks = Chunks([g.size for g in gradients], REDUCED_CHUNK)
            blocks = min(chunks.number, BLOCKS_PER_MULTIPROCESSOR * known.multiprocessors)
            types = _Array((blocks, WORDS_OF_PART), jnp.int64)
            target = _handler_of_squares(str(gradients[0].dtype), _words(len(gradients), 1), registered)
            call: Any = jax.ffi.ffi_call(target, types, has_side_effect=True)
            parts.append(call(*gradients, layout=np.array([blocks, *chunks.few()], np.int64)))
        return _total_of("norm", "float64", parts, registered)


def total(
    inputs: Any,
    number: Any,
    groups: Sequence[tuple[KernelKey, Sequence[Mapping[str, Any]]]],
    name: str,
    program: Program,
    registered: Registered,
) -> Any:
    """Return a total over all parameters, some of which have elements, float64.

    Args:
        inputs: the scalar inputs but for the number of the step, in one float64 array.
        number: of the step, int32.
        groups: keys of kernels, and the arrays of the parameters that each is for.
        name: of the reduction; a largest element is of parameters of one compute dtype.
        program: reduces an array, and `can_total` is true of it.
        registered: returns the name of a handler of some content for a platform, made by a function if it is new.
    """
    found = []
    with jax.enable_x64(True):
        given = inputs if inputs.size else jnp.zeros(1, jnp.float64)
        for key, parameters in groups:
            kernels, columns = _Staged(program, key, of_total=True), len(key.dtypes)
            rows = [[arrays[of] for of, _ in key.dtypes] for arrays in parameters if arrays["p"].size]
            for part in _parts(rows, columns, kernels.columns) if rows else ():
                launches = kernels.launches([(row[0].shape, 0) for row in part])
                target = kernels.handler(_words(len(part), kernels.columns), registered)
                types = [_Array((1,), jnp.float64), *launches.results]
                call: Any = jax.ffi.ffi_call(target, types, has_side_effect=True)
                of_part = (array for row in part for array in row)
                *_, parts = call(given, number, *of_part, layout=np.array(launches.layout, np.int64))
                found.append(parts.reshape(-1, kernels.words_of_part))
        return _total_of(name, groups[0][0].compute_dtype, found, registered)


def _total_of(name: str, real: str, found: Sequence[Any], registered: Registered) -> Any:
    """Return a total, given the parts that blocks have found of it, the words of each in a row."""
    parts = jnp.concatenate(found) if len(found) > 1 else found[0]
    while len(parts) > JOINED:
        count = -(-len(parts) // JOINED)
        kernel = SUMS_JOINED if name != "max" else LARGEST_JOINED
        # They pass over the place for a result.
        places = [Word("operand", 0, -8), Word("result", 0, -8), Word("layout", 1), Word("layout", 2)]
        target = _handler_of_call(totals_source(), kernel, places, registered)
        join: Any = jax.ffi.ffi_call(target, _Array((count, parts.shape[1]), jnp.int64))
        parts = join(parts, layout=np.array([count, len(parts), JOINED]))
    places = [Word("operand", 0), Word("layout", 1), Word("result", 0)]
    target = _handler_of_call(total_of_parts_source(name, real), TOTAL_OF_PARTS, places, registered)
    total_of: Any = jax.ffi.ffi_call(target, _Array((), jnp.float64))
    return total_of(parts, layout=np.array([1, len(parts)]))


def _words(rows: int, columns: int) -> int:
    """Return how many words the table of a kernel has for so many parameters and addresses of each: one of few numbers."""
    known, needed = machine(), words_of_few(rows, columns)
    assert known is not None
    return next((words for words in (_FEW, _SOME) if needed <= words), known.most_words)


def _handler_of_squares(dtype: str, words: int, registered: Registered) -> str:
    source = norm_source(dtype, words)

    def made() -> Any:
        return _launching.make_launching_handler(
            [Kernel(_functions(source, SUM_SQUARES), [Word("result", 0), Word("layout", 0)])],
            _addresses(),
            fixed=0,
            fixed_results=1,
            operands=1,
            results=0,
            in_place=False,
            words=words,
        )

    return registered(source, made, "CUDA")


def _handler_of_call(source: str, kernel: str, arguments: Sequence[Word], registered: Registered) -> str:
    def made() -> Any:
        return _launching.make_call_handler(Kernel(_functions(source, kernel), arguments), _addresses())

    return registered(f"{kernel} {source}", made, "CUDA")


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
