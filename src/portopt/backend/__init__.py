"""What a backend is, and how the backend of an array is found.

A backend makes portopt run on one array library. It is any object with the attributes of `Backend`; packages announce
theirs through the entry-point group `portopt.backends`, ours and others' alike. `ArrayAPIBackend` implements all of it for
a library that follows the array API standard, so a backend usually overrides only what its library does differently.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from portopt.arithmetic import HOST, Arithmetic
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, round_scalar
from portopt.program import Program
from portopt.program.interpreter import interpret
from portopt.program.primitives import Primitives
from portopt.program.reductions import host_norm
from portopt.protocols import SupportsApply
from portopt.state import OptimizerState
from portopt.trees import STANDARD_TREES, Trees

ENTRY_POINT_GROUP = "portopt.backends"

Arrays = Mapping[str, Any]
"""Parameter `"p"`, gradient `"g"` and slots by name: one parameter's arrays."""


class ArrayInfo(NamedTuple):
    """Shape and device must agree between a parameter, its gradient and its slots; None is a device that is not known yet."""

    shape: tuple[int, ...]
    dtype: str
    device: str | None


class MemoryRange(NamedTuple):
    """First and one-past-last byte of an array's memory on one device; equal if the array is empty."""

    device: str
    start: int
    end: int


Step = Callable[..., tuple[Any, OptimizerState]]
"""Takes parameters, gradients, state and hyperparameters of the step; returns new parameters and state."""


@dataclass(frozen=True)
class Mode:
    """One way in which a backend executes steps.

    Attributes:
        name: what the mode is called in tables, such as `"eager"` or `"jit"`.
        step: returns a function that does one step of an optimizer, of which it may ask all that an `Optimizer` has. The
            function may consume its arguments.
        run: does several steps, one for each element of a list of gradients, and returns the final parameters and state.
            The default calls the mode's step for each.
        compiled: whether one step runs as a compiled whole, so that mistakes of a compiler can show.
    """

    name: str
    step: Callable[[Any], Step]
    run: Callable[[Any, Any, Sequence[Any], OptimizerState], tuple[Any, OptimizerState]] | None = None
    compiled: bool = False

    def many(self, optimizer: Any, params: Any, gradients: Sequence[Any], state: OptimizerState) -> tuple[Any, Any]:
        """Do one step for each element of `gradients`."""
        if self.run is not None:
            return self.run(optimizer, params, gradients, state)
        step = self.step(optimizer)
        for gradient in gradients:
            params, state = step(params, gradient, state)
        return params, state


def apply_in_place(optimizer: SupportsApply) -> Step:
    """Return a step that changes the given parameters and state in place."""

    def step(params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        return params, optimizer.apply_(params, grads, state, **hyperparameters)

    return step


_interpreted: ContextVar[bool] = ContextVar("portopt_interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Run programs operation by operation instead of by fused kernels; the bits are the same.

    Example:
        >>> import numpy as np, portopt
        >>> opt, w = portopt.Adam(), np.ones(3)
        >>> with portopt.interpreted():
        ...     w, state = opt.apply(w, np.ones(3), opt.init(w))
    """
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def is_interpreted() -> bool:
    """Tell whether fused kernels are switched off by `interpreted`."""
    return _interpreted.get()


def apply_interpreted(optimizer: SupportsApply) -> Step:
    """Return a step without fused kernels."""

    def step(params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        with interpreted():
            return optimizer.apply(params, grads, state, **hyperparameters)

    return step


PURE = Mode("apply", lambda optimizer: optimizer.apply)
IN_PLACE = Mode("apply_", apply_in_place)
INTERPRETED = Mode("interpreted", apply_interpreted)


@runtime_checkable
class Backend(Protocol):
    """What portopt asks of an array library."""

    name: str
    """The name in `portopt.backends`, tables and messages."""
    install_command: str
    """The command that installs the library."""
    trees: Trees
    """How the library sees nested containers."""
    modes: Mapping[str, Mode]
    """Ways to execute steps, the first one being what `apply` does by default."""
    extra_modes: Mapping[str, Mode]
    """Further ways, which the conformance suite tests but `portopt compare` does not list."""
    settings: Mapping[str, Callable[[], AbstractContextManager[Any]]]
    """Settings of the library, as contexts, under each of which the bits must be the same."""

    def owns(self, leaf: object) -> bool:
        """Tell whether `leaf` is an array of this library, or a container that only this library can flatten."""

    def version(self) -> str:
        """Return the library's version; raise `ImportError` if it cannot be imported."""

    def devices(self) -> Mapping[str, str | None]:
        """Map each device's name to None if it can be used, else to the reason why not."""

    def dtypes(self) -> tuple[str, ...]:
        """Return the names of the supported parameter dtypes that the library has, inside `dtype_context`."""

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which arrays of a dtype can be made; most libraries need nothing."""

    def describe(self, array: Any) -> ArrayInfo:
        """Return shape, dtype name and device of an array; raise `TypeError` for a kind of array that is not supported."""

    def full(self, like: Any, value: float, dtype: str) -> Any:
        """Return a new array of the shape and device of `like`, filled with `value`."""

    def to_numpy(self, array: Any) -> Any:
        """Return a copy of an array as a NumPy array of the same dtype (bfloat16 as that of ml_dtypes)."""

    def from_numpy(self, array: Any, device: str | None) -> Any:
        """Return a copy of a NumPy array as an array of this library on `device`."""

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        """Return the arithmetic for scalars: the host's, unless one of `values` is only known at run time."""

    def scalar(self, value: Any) -> Any:
        """Return a number, 0-d array or stored scalar as a value of the arithmetic that `arithmetic([value])` returns."""

    def stored_scalar(self, value: Any) -> Any:
        """Return an arithmetic's float64 value in the form in which a state keeps it."""

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        """Return the Euclidean norm of all gradients together, in any order of summation the same bits."""

    def update(
        self, program: Program, scalars: Sequence[Any], parameters: Sequence[Arrays], *, in_place: bool
    ) -> list[dict[str, Any]]:
        """Run `program` on each of `parameters`.

        Args:
            program: what to run.
            scalars: the value of each scalar operation, by its index in the program.
            parameters: the arrays of each parameter.
            in_place: write the results into the given parameter and slots. Nothing may have been written when an error is raised.

        Returns:
            New parameter and slots of each, the given ones if `in_place`.
        """

    def plan(self, program: Program, trees: tuple[Any, Any, OptimizerState], parameters: Sequence[Arrays]) -> Any:
        """Return what does further steps in place on these arrays with fewer checks, or None if every step is checked.

        A plan is true as long as its arrays exist, and has `step(optimizer, params, grads, state, overrides)`, which returns
        the new state, or None, with nothing done, if anything is not as it was in the step that it was made after. Its
        `fits(params, grads, state)` tells beforehand whether the arrays are as they were, and `backend` is this one.

        Args:
            program: what the steps run.
            trees: parameters, gradients and state as the step was given them.
            parameters: the arrays of each parameter, in the order of the tree.
        """

    def check_in_place(self, parameters: Sequence[Arrays], paths: Callable[[int], str]) -> None:
        """Raise an error if one of the arrays cannot be changed in place; `paths(i)` names parameter `i`."""


class ArrayAPIBackend:
    """A backend for any library with the array API, through the interpreter.

    Args:
        name: the library's name.
        namespace: returns the array API namespace; called when first needed.
        root: the top-level module of the library's array types; `name` if not given.
        install_command: the command that installs the library.
    """

    trees: Trees = STANDARD_TREES
    modes: Mapping[str, Mode] = {"apply": PURE, "apply_": IN_PLACE}
    extra_modes: Mapping[str, Mode] = {}
    settings: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {}

    def __init__(
        self, name: str, namespace: Callable[[], Any], *, root: str | None = None, install_command: str | None = None
    ) -> None:
        self.name = name
        self.root = root or name
        self.install_command = install_command or f"pip install {name}"
        self._import_namespace = namespace

    def __repr__(self) -> str:
        return f"<portopt backend {self.name}>"

    @functools.cached_property
    def xp(self) -> Any:
        """The array API namespace."""
        return self._import_namespace()

    def owns(self, leaf: object) -> bool:
        return type(leaf).__module__.partition(".")[0] == self.root and hasattr(leaf, "dtype")

    def version(self) -> str:
        root = sys.modules.get(self.root)
        return str(getattr(self.xp, "__version__", getattr(root, "__version__", "unknown")))

    def devices(self) -> Mapping[str, str | None]:
        return dict.fromkeys(self._devices)

    @functools.cached_property
    def _devices(self) -> Mapping[str, Any]:
        """The library's device objects by name; None is that of arrays without a device, which functions then do not take."""
        info = getattr(self.xp, "__array_namespace_info__", None)
        if info is None or not hasattr(self.xp.asarray(0.0), "device"):
            return {"cpu": None}
        return {str(device): device for device in info().devices()}

    def dtypes(self) -> tuple[str, ...]:
        return tuple(name for name in COMPUTE_DTYPE if self._has_dtype(name))

    def _has_dtype(self, name: str) -> bool:
        return hasattr(self.xp, name)

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def dtype(self, name: str) -> Any:
        """Return the library's dtype object; raise `TypeError` if it has none of that name."""
        if not self._has_dtype(name):
            raise TypeError(f"{self.name} has no dtype {name}; it has {', '.join(self.dtypes())}")
        return getattr(self.xp, name)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(tuple(array.shape), self.dtype_name(array), str(getattr(array, "device", "cpu")))

    def dtype_name(self, array: Any) -> str:
        """Return the standard name of an array's dtype."""
        return str(array.dtype).rpartition(".")[2]

    def full(self, like: Any, value: float, dtype: str) -> Any:
        return self.xp.full(like.shape, value, dtype=self.dtype(dtype), **self._on_device(like))

    def _on_device(self, like: Any) -> dict[str, Any]:
        """Return the arguments that put a new array on the device of another; none, if its library knows no devices."""
        device = getattr(like, "device", None)
        return {} if device is None else {"device": device}

    def to_numpy(self, array: Any) -> Any:
        import numpy as np

        if self.dtype_name(array) == "bfloat16":
            # No way of exchange with NumPy has the dtype. By way of float32 only payloads of NaN are lost.
            bfloat16 = importlib.import_module("ml_dtypes").bfloat16
            if hasattr(array, "view") and hasattr(self.xp, "uint16"):
                return self.to_numpy(array.view(self.xp.uint16)).view(bfloat16)
            return self.to_numpy(self.xp.astype(array, self.dtype("float32"))).astype(bfloat16)
        reasons = []
        for name, convert in _ways_to_numpy(array).items():
            try:
                found = np.asarray(convert(array))
            except Exception as error:
                reasons.append(f"{name}: {error!r:.120}")
                continue
            if found.shape == tuple(array.shape) and found.dtype.kind != "O":
                return np.array(found, copy=True)
            reasons.append(f"{name}: gave {found.dtype} of shape {found.shape}")
        raise TypeError(
            f"an array of {self.name} of type {type(array).__name__} cannot be converted to NumPy ({'; '.join(reasons)})"
        )

    def from_numpy(self, array: Any, device: str | None) -> Any:
        import numpy as np

        if device is None or device not in self._devices:
            raise ValueError(f"{self.name} has no device {device!r}; it has {', '.join(self.devices())}")
        chosen = self._devices[device]
        # The copy is made here: not every library has the argument, or takes it as an order.
        return self._from_own(np.array(array, copy=True), {} if chosen is None else {"device": chosen})

    def _from_own(self, array: Any, on_device: Mapping[str, Any]) -> Any:
        """Return a NumPy array, whose memory may be kept, as one of this library."""
        name = array.dtype.name
        if name == "bfloat16":
            narrow, words = self.dtype(name), self._from_own(array.view("uint16"), on_device)
            if hasattr(words, "view"):
                return words.view(narrow)
            return self.xp.astype(self._from_own(array.astype("float32"), on_device), narrow)
        # Without a dtype, some libraries make everything their default one.
        dtype = self.dtype(name) if name in COMPUTE_DTYPE else getattr(self.xp, name, None)
        return self.xp.asarray(array, **({} if dtype is None else {"dtype": dtype}), **on_device)

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        return HOST

    def scalar(self, value: Any) -> Any:
        return value if isinstance(value, int) and not isinstance(value, bool) else float(value)

    def stored_scalar(self, value: Any) -> Any:
        return float(value)

    def primitives(self, compute_dtype: str) -> Primitives:
        """Return the array operations in a compute dtype."""
        return Primitives(self.xp, self.dtype(compute_dtype), compute_dtype)

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        with self.quiet():
            loaded = [self.primitives(COMPUTE_DTYPE[self.dtype_name(g)]).load(g) for g in gradients]
            return host_norm(self.primitives("float64"), loaded)

    def quiet(self) -> Any:
        """Return a context in which arithmetic gives no warnings: infinities and NaN are results like others."""
        import numpy as np

        return np.errstate(all="ignore")

    def update(
        self, program: Program, scalars: Sequence[Any], parameters: Sequence[Arrays], *, in_place: bool
    ) -> list[dict[str, Any]]:
        rounded: dict[tuple[str, str], dict[int, Any]] = {}
        results = []
        with self.quiet():
            for arrays in parameters:
                parameter = arrays["p"]
                compute = COMPUTE_DTYPE[self.dtype_name(parameter)]
                key = (compute, str(getattr(parameter, "device", "")))
                if key not in rounded:
                    rounded[key] = self._rounded(program, scalars, compute, parameter)
                outputs = interpret(program, self.primitives(compute), arrays, rounded[key])
                results.append({name: self._stored(value, arrays[name]) for name, value in outputs.items()})
            if not in_place:
                return results
            targets = [arrays[n] for arrays, outputs in zip(parameters, results, strict=True) for n in outputs]
            self.assign_all(targets, [value for outputs in results for value in outputs.values()])
        return [{name: arrays[name] for name in outputs} for arrays, outputs in zip(parameters, results, strict=True)]

    def _rounded(self, program: Program, scalars: Sequence[Any], compute_dtype: str, like: Any) -> dict[int, Any]:
        return {i: self.rounded_scalar(scalars[j], compute_dtype, like) for i, j in program.rounded_scalars}

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        """Return a float64 scalar, rounded to the compute dtype, as a 0-d array on the device of `like`."""
        rounded = round_scalar(float(value), compute_dtype)
        return self.xp.asarray(rounded, dtype=self.dtype(compute_dtype), **self._on_device(like))

    def _stored(self, value: Any, like: Any) -> Any:
        if value.shape != like.shape:
            value = self.xp.broadcast_to(value, like.shape)
        # A result may be an input itself, or shared by two outputs: each output is an array of its own.
        try:
            return self.xp.astype(value, like.dtype, copy=True)
        except (
            TypeError
        ):  # not every library has the argument; those that lack it change no array but the one assigned to
            return self.xp.astype(value, like.dtype)

    def assign(self, target: Any, value: Any) -> None:
        """Write `value` into `target`."""
        target[...] = value

    def assign_all(self, targets: Sequence[Any], values: Sequence[Any]) -> None:
        """Write each of `values` into its target. Override it where a library can do so without a line of Python in between."""
        for target, value in zip(targets, values, strict=True):
            self.assign(target, value)

    def check_in_place(self, parameters: Sequence[Arrays], paths: Callable[[int], str]) -> None:
        def where(name: str, i: int) -> str:
            return f"params{paths(i)}" if name == "p" else f"state.slots[{name!r}]{paths(i)}"

        written: list[tuple[MemoryRange, str, int]] = []
        for i, arrays in enumerate(parameters):
            for name, array in arrays.items():
                if name == "g":
                    continue
                reason = self.why_read_only(array)
                if reason is not None:
                    raise TypeError(
                        f"{where(name, i)} {reason}, so it cannot be changed in place; copy it, or use apply"
                    )
                written.append((self.memory_range(array), name, i))
        written.sort()
        reaching: list[tuple[MemoryRange, str, int]] = []
        for entry in written:
            memory, name, i = entry
            reaching = [e for e in reaching if e[0].end > memory.start and e[0].device == memory.device]
            for _, other, j in reaching:
                if self.share_memory(parameters[j][other], parameters[i][name]):
                    raise ValueError(
                        f"{where(other, j)} and {where(name, i)} share memory, so an update in place would change it twice; "
                        "give each its own array, or use apply"
                    )
            reaching.append(entry)

    def plan(self, program: Program, trees: tuple[Any, Any, OptimizerState], parameters: Sequence[Arrays]) -> Any:
        return None

    def why_read_only(self, array: Any) -> str | None:
        """Return what keeps an array from being written, such as "is a read-only array"; None if nothing does."""
        return None if hasattr(type(array), "__setitem__") else f"is an immutable array of {self.name}"

    def memory_range(self, array: Any) -> MemoryRange:
        """Return the memory that an array's elements lie in; by default, each array object has its own."""
        return MemoryRange(self.name, id(array), id(array) + 1)

    def share_memory(self, a: Any, b: Any) -> bool:
        """Tell whether two arrays whose memory ranges overlap share an element."""
        return True


def _ways_to_numpy(array: object) -> Mapping[str, Callable[[Any], Any]]:
    """Return the ways to turn an array of any library into one of NumPy, in the order in which they are tried."""
    import numpy as np

    methods = ("numpy", "to_numpy", "asnumpy", "unwrap_numpy", "todense")
    return {
        "numpy.from_dlpack": np.from_dlpack,
        "numpy.asarray": np.asarray,
        **{f"{name}()": operator.methodcaller(name) for name in methods if hasattr(array, name)},
    }


def beside_numbers(array: object) -> str | None:
    """Return what an array carries besides its numbers, a mask or a unit, which arithmetic on numbers would drop; or None."""
    return next((name for name in ("mask", "unit", "units") if hasattr(array, name)), None)


class UnknownBackendError(ValueError):
    """No installed backend has the name that was asked for."""


@functools.cache
def backends() -> Mapping[str, Backend]:
    """Return the installed backends by name, found through the entry-point group `portopt.backends`.

    One that cannot be loaded is left out, with a warning: the others must go on working.
    """
    # It takes longer to import than all of portopt, and nobody needs it before the first step.
    from importlib import metadata

    found: dict[str, tuple[Backend, str]] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in found:
            if found[entry.name][1] == entry.value:
                continue
            raise ValueError(
                f"two packages provide the portopt backend {entry.name!r}: {found[entry.name][1]} and {entry.value}; "
                "uninstall one of them"
            )
        try:
            found[entry.name] = (entry.load(), entry.value)
        except Exception as error:
            warnings.warn(
                f"the portopt backend {entry.name!r} ({entry.value}) cannot be loaded and is left out: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
    return {name: backend for name, (backend, _) in sorted(found.items())}


def get_backend(name: str) -> Backend:
    """Return the backend of that name, an installed one or that of an importable array API library."""
    if name in backends():
        return backends()[name]
    from portopt.backend import unannounced

    backend = unannounced.backend_named(name)
    if backend is None:
        raise UnknownBackendError(f"no backend is named {name!r}; installed are {', '.join(backends())}")
    return backend


def known_backend(name: str) -> Backend:
    """Return the backend of that name if it is installed, or its library is imported already.

    Unlike `get_backend`, it imports nothing for a name, so that the name may come from anywhere.
    """
    from portopt.backend import unannounced

    for backend in (*backends().values(), *_recognized):
        if backend.name == name:
            return backend
    met = unannounced.backend_named(name, may_import=False)
    if met is None:
        raise UnknownBackendError(f"no backend is named {name!r:.80}; installed are {', '.join(backends())}")
    return met


def accept(name: str) -> None:
    """Take arrays of a library without a backend as they are, though the look at its first use finds an operation wrong.

    Steps then have whatever bits the library gives. The announced `backends` are not looked at: for them there is the
    conformance suite.

    Args:
        name: the library's name, as the error has it.

    Raises:
        UnknownBackendError: there is no library of that name.
        ValueError: the library has a backend of its own.

    Example:
        >>> import portopt.backend
        >>> portopt.backend.accept("array_api_strict")
    """
    from portopt.backend import unannounced

    backend = get_backend(name)
    if not isinstance(backend, unannounced.UnannouncedBackend):
        raise ValueError(
            f"{name!r} has a backend of its own, whose operations nobody looks at, so there is nothing to accept"
        )
    backend.is_accepted = True


_by_type: dict[type, Backend] = {}
_recognized: list[Backend] = []
_preferred: Backend | None = None


def recognize(backend: Backend) -> None:
    """Take arrays that `backend` owns from now on, though it is not among the installed `backends()`, which come first."""
    if backend not in _recognized:
        _recognized.append(backend)


@contextlib.contextmanager
def prefer(backend: Backend) -> Iterator[None]:
    """Use `backend` for the arrays it owns, whatever is installed; for testing a backend, in one thread."""
    global _preferred
    before = _preferred
    _by_type.clear()
    _preferred = backend
    try:
        yield
    finally:
        _preferred = before
        _by_type.clear()


def find_backend(leaf: object) -> Backend | None:
    """Return the backend of an array, or None if `leaf` is no array."""
    kind = type(leaf)
    backend = _by_type.get(kind)
    if backend is None:
        candidates = ([] if _preferred is None else [_preferred]) + list(backends().values()) + _recognized
        backend = next((b for b in candidates if b.owns(leaf)), None)
        if backend is None:
            from portopt.backend import unannounced

            backend = unannounced.backend_of(leaf)
            if backend is None:
                return None
        _by_type[kind] = backend
    return backend


def is_preferred(backend: Backend) -> bool:
    """Tell whether a backend is being tested, by `prefer`."""
    return backend is _preferred
