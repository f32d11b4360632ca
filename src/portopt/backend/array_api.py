"""`ArrayAPIBackend`: all that a backend needs, for a library that follows the array API standard, through the interpreter."""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from portopt.arithmetic import HOST, Arithmetic
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, round_scalar
from portopt.backend.graphs import Graphs
from portopt.backend.modes import IN_PLACE, PURE
from portopt.backend.protocol import ArrayInfo, Arrays, Leaf, MemoryRange, Mode, PlannedStep, Work, described
from portopt.program import Program
from portopt.program.interpreter import ParameterScalars, interpret
from portopt.program.primitives import Primitives
from portopt.program.reductions import Reductions
from portopt.state import OptimizerState
from portopt.trees import STANDARD_TREES, Trees


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
    graphs: Graphs | None = None

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
        return tuple(name for name in COMPUTE_DTYPE if self.has_dtype(name))

    def has_dtype(self, name: str) -> bool:
        """Tell whether the library has the dtype of a name."""
        return hasattr(self.xp, name)

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def dtype(self, name: str) -> Any:
        """Return the library's dtype object; raise `TypeError` if it has none of that name."""
        if not self.has_dtype(name):
            raise TypeError(f"{self.name} has no dtype {name}; it has {', '.join(self.dtypes())}")
        return getattr(self.xp, name)

    def describe(self, array: Any) -> ArrayInfo:
        return ArrayInfo(tuple(array.shape), self.dtype_name(array), str(getattr(array, "device", "cpu")))

    def dtype_name(self, array: Any) -> str:
        """Return the standard name of an array's dtype."""
        return str(array.dtype).rpartition(".")[2]

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        shape = like.shape if shape is None else shape
        return self.xp.full(shape, value, dtype=self.dtype(dtype), **self.on_device(like))

    def full_along(
        self, like: Any, value: float, dtype: str, shape: tuple[int, ...], axes: Sequence[int | None]
    ) -> Any:
        """Return what `full` does, where `axes` are those of `like` that the new array has, None for an axis of its own.

        Override it where an array's axes are spread over devices.
        """
        return self.full(like, value, dtype, shape)

    def copied(self, array: Any, dtype: str) -> Any:
        with self.quiet():
            loaded = self.primitives(COMPUTE_DTYPE[self.dtype_name(array)]).load(array)
            return self.stored(loaded, self.full(array, 0.0, dtype))

    def on_device(self, like: Any) -> dict[str, Any]:
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
                with self.quiet():  # a lazy library computes here
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
        return self.from_own(np.array(array, copy=True), {} if chosen is None else {"device": chosen})

    def from_own(self, array: Any, on_device: Mapping[str, Any]) -> Any:
        """Return a NumPy array, whose memory may be kept, as one of this library."""
        name = array.dtype.name
        if name == "bfloat16":
            narrow, words = self.dtype(name), self.from_own(array.view("uint16"), on_device)
            if hasattr(words, "view"):
                return words.view(narrow)
            return self.xp.astype(self.from_own(array.astype("float32"), on_device), narrow)
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
            return self.reductions("float64").total("norm", *loaded)

    def quiet(self) -> Any:
        """Return a context in which arithmetic gives no warnings: infinities and NaN are results like others."""
        import numpy as np

        return np.errstate(all="ignore")

    def reductions(self, compute_dtype: str) -> Reductions:
        """Return the reductions of arrays of a compute dtype."""
        return Reductions(self.primitives(compute_dtype), self.primitives("float64"), self.arithmetic_of)

    def reductions_of(self, leaf: Leaf) -> Reductions:
        """Return the reductions of a parameter's arrays."""
        return self.reductions_here(leaf)

    def arithmetic_of(self, value: Any) -> Arithmetic:
        """Return the arithmetic for scalars that are computed from one."""
        return self.arithmetic([value])

    def total(self, name: str, works: Sequence[Work]) -> Any:
        with self.quiet():
            parts = self.parts_of_total(name, works, self.reductions_of)
            return self.reductions("float64").combine(name.removeprefix("total_"), parts)

    def parts_of_total(
        self, name: str, works: Sequence[Work], reductions_of: Callable[[Leaf], Reductions]
    ) -> list[Any]:
        """Return what each parameter adds to a total, as `Reductions.partial` does."""
        with self.quiet():
            parts = []
            for program, scalars, parameters in works:
                dims = program.ops[program.array_outputs["x"]].dims
                for leaf, outputs in self._interpreted(Work(program, scalars, parameters)):
                    parts.append(reductions_of(leaf).of(dims).partial(name.removeprefix("total_"), outputs["x"]))
            return parts

    def reductions_here(self, leaf: Leaf) -> Reductions:
        """Return the reductions of a parameter's arrays over the elements at hand."""
        return self.reductions(COMPUTE_DTYPE[leaf.dtypes["p"]])

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        parameters = [arrays for work in works for arrays in work.parameters]
        results = self.results(works, in_place=in_place)
        if not in_place:
            return results
        with self.quiet():
            targets = [arrays[n] for arrays, outputs in zip(parameters, results, strict=True) for n in outputs]
            self.assign_all(targets, [value for outputs in results for value in outputs.values()])
        return [{name: arrays[name] for name in outputs} for arrays, outputs in zip(parameters, results, strict=True)]

    def results(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        """Run programs; return, for each parameter, new arrays, or for a step in place what `assign_all` can write."""
        finished = self.assignable if in_place else self.stored
        with self.quiet():
            return [
                {name: finished(value, leaf[name]) for name, value in outputs.items()}
                for work in works
                for leaf, outputs in self._interpreted(work)
            ]

    def assignable(self, value: Any, like: Any) -> Any:
        """Return a result of a program as `assign_all` takes it; override it where that converts and broadcasts."""
        return self.stored(value, like)

    def _interpreted(self, work: Work) -> Iterator[tuple[Leaf, dict[str, Any]]]:
        """Yield each parameter and what the program makes of it."""
        program, scalars, parameters = work
        rounded: dict[tuple[str, str | None], dict[int, Any]] = {}
        for leaf in described(self, parameters):
            info = leaf.infos["p"]
            compute, like = COMPUTE_DTYPE[info.dtype], leaf["p"]
            key = (compute, info.device)
            if key not in rounded:
                rounded[key] = self.rounded_scalars(program, scalars, compute, like)
            of_parameter = None
            if not program.is_elementwise:
                of_parameter = ParameterScalars(
                    scalars,
                    self.reductions_of(leaf),
                    self.primitives("float64"),
                    functools.partial(self._rounded_like, compute, like),
                    self.arithmetic_of,
                    place=leaf.place,
                )
            primitives = self.primitives(compute).widened_by(lambda: self.primitives("float64"))
            yield leaf, interpret(program, primitives, leaf, rounded[key], of_parameter)

    def _rounded_like(self, compute_dtype: str, like: Any, value: Any) -> Any:
        return self.rounded_scalar(value, compute_dtype, like)

    def rounded_scalars(
        self, program: Program, scalars: Sequence[Any], compute_dtype: str, like: Any
    ) -> dict[int, Any]:
        """Return the result of each of a program's `round` operations, by index, as `rounded_scalar` gives it."""
        return {i: self.rounded_scalar(scalars[j], compute_dtype, like) for i, j in program.rounded_scalars}

    def rounded_scalar(self, value: Any, compute_dtype: str, like: Any) -> Any:
        """Return a float64 scalar, rounded to the compute dtype, as a 0-d array on the device of `like`."""
        rounded = round_scalar(float(value), compute_dtype)
        return self.xp.asarray(rounded, dtype=self.dtype(compute_dtype), **self.on_device(like))

    def stored(self, value: Any, like: Any) -> Any:
        """Return a result of the dtype and shape of `like`, an array of its own."""
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

    def plan(
        self,
        programs: Sequence[Program],
        trees: tuple[Any, Any, OptimizerState],
        parameters: Sequence[Arrays],
        *,
        in_place: bool = True,
        same_arrays: bool = True,
    ) -> PlannedStep | str:
        return f"steps on arrays of {self.name} are not planned"

    def why_not_fused(self, program: Program, parameters: Sequence[Arrays]) -> str | None:
        return f"portopt has no kernels for arrays of {self.name}, so each operation is one of the library's own"

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
