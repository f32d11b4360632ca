from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import numpy as np

from portopt.arithmetic import HOST, Arithmetic
from portopt.arithmetic.dtypes import COMPUTE_DTYPE, SMALLEST_NORMAL, round_scalar
from portopt.backend import ArrayInfo, Arrays, Leaf, Mode, Work, is_interpreted
from portopt.imports import imported
from portopt.optimizer import OptimizerState
from portopt.program import Program, products
from portopt.program.draws import Place
from portopt.program.interpreter import ParameterScalars, StepScalars, interpret
from portopt.program.primitives import Primitives
from portopt.program.reductions import Reductions
from portopt.trees import item


class JaxTrees:
    """Any pytree that JAX knows, registered classes included; `None` is a leaf."""

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        jax = importlib.import_module("jax")
        leaves, definition = jax.tree_util.tree_flatten(tree, is_leaf=_is_none)
        return leaves, definition

    def unflatten(self, definition: Any, leaves: Sequence[Any]) -> Any:
        jax = importlib.import_module("jax")
        return jax.tree_util.tree_unflatten(definition, leaves)

    def paths(self, tree: Any) -> list[str]:
        jax = importlib.import_module("jax")
        found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)[0]
        return ["".join(map(_entry, path)) for path, _ in found]


def _is_none(x: object) -> bool:
    return x is None


def _entry(entry: Any) -> str:
    key = getattr(entry, "key", getattr(entry, "idx", None))
    return item(key) if key is not None else str(entry)


class JaxBackend:
    """JAX arrays, concrete or traced. Scalars are computed on the host where they are known, else in the graph."""

    name = "jax"
    install_command = 'pip install "portopt[jax]"'
    trees = JaxTrees()
    graphs = None

    def __repr__(self) -> str:
        return "<portopt backend jax>"

    @functools.cached_property
    def modes(self) -> Mapping[str, Mode]:
        modes: Mapping[str, Mode] = importlib.import_module("portopt_jax._modes").MODES
        return modes

    @functools.cached_property
    def extra_modes(self) -> Mapping[str, Mode]:
        modes: Mapping[str, Mode] = importlib.import_module("portopt_jax._modes").EXTRA_MODES
        return modes

    @functools.cached_property
    def settings(self) -> Mapping[str, Callable[[], AbstractContextManager[Any]]]:
        return {"x64 off": lambda: self._jax.enable_x64(False), "x64 on": lambda: self._jax.enable_x64(True)}

    @functools.cached_property
    def _jax(self) -> Any:
        jax = importlib.import_module("jax")
        register_for_export(OptimizerState)
        return jax

    @functools.cached_property
    def _jnp(self) -> Any:
        return importlib.import_module("jax.numpy")

    def owns(self, leaf: object) -> bool:
        jax = imported("jax")
        if jax is None:
            return False
        if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):  # a union would be made anew for each leaf
            return True
        return leaf is not None and not jax.tree_util.all_leaves([leaf])

    def version(self) -> str:
        return str(self._jax.__version__)

    def devices(self) -> Mapping[str, str | None]:
        found: dict[str, str | None] = {str(device): None for device in self._jax.devices("cpu")}
        names = {"cpu": None} if len(found) == 1 else found
        if self._jax.default_backend() != "cpu":
            names = {**names, **{str(device): None for device in self._jax.devices()}}
        return names

    def dtypes(self) -> tuple[str, ...]:
        return tuple(COMPUTE_DTYPE)

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        return self._jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()

    def describe(self, array: Any) -> ArrayInfo:
        if not (isinstance(array, self._jax.Array) or self._is_abstract(array)):
            raise TypeError(f"{type(array).__name__} is no JAX array")
        if self._is_traced(array) or self._is_abstract(array):
            return ArrayInfo(array.shape, _name(array.dtype), None)
        return ArrayInfo(array.shape, _name(array.dtype), _devices(array.sharding))

    def _is_traced(self, value: object) -> bool:
        return isinstance(value, self._jax.core.Tracer)

    def _is_abstract(self, value: object) -> bool:
        return isinstance(value, self._jax.ShapeDtypeStruct)

    def _refuse_abstract(self, arrays: Iterable[Any]) -> None:
        if any(map(self._is_abstract, arrays)):
            raise TypeError(
                "a jax.ShapeDtypeStruct has shape and dtype, but no values: only init takes it; give a step arrays, or ask "
                "jax.eval_shape(optimizer.apply, params, grads, state) what it would return"
            )

    def full_along(
        self, like: Any, value: float, dtype: str, shape: tuple[int, ...], axes: Sequence[int | None]
    ) -> Any:
        sharding = getattr(like, "sharding", None)
        if self._is_abstract(like) or not isinstance(sharding, self._jax.sharding.NamedSharding):
            return self.full(like, value, dtype, shape)
        of = [*sharding.spec, *[None] * like.ndim]
        spec = self._jax.sharding.PartitionSpec(*(None if axis is None else of[axis] for axis in axes))
        with self._jax.enable_x64(dtype == "float64" or self._jax.config.jax_enable_x64):
            there = self._jax.sharding.NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
            return self._jnp.full(shape, value, dtype=dtype, device=there)

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        """Return a new array like an array; a description of one, like a description."""
        if self._is_abstract(like):
            kept = like.sharding if shape is None else None
            return self._jax.ShapeDtypeStruct(
                like.shape if shape is None else shape, self._jnp.dtype(dtype), sharding=kept
            )
        with self._jax.enable_x64(dtype == "float64" or self._jax.config.jax_enable_x64):
            return self._jnp.full_like(like, value, dtype=dtype, shape=shape)

    def copied(self, array: Any, dtype: str) -> Any:
        if self._is_abstract(array):
            return self.full(array, 0.0, dtype)
        compute = COMPUTE_DTYPE[str(array.dtype)]
        with self._jax.enable_x64(compute == "float64" or self._jax.config.jax_enable_x64):
            loaded = self.primitives(compute).load(array)
            # An array of its own: parameters and state may be donated together.
            return loaded.copy() if str(loaded.dtype) == dtype else self._scalars.narrowed(loaded, dtype)

    def to_numpy(self, array: Any) -> Any:
        self._refuse_abstract([array])
        return np.array(array, copy=True)

    def from_numpy(self, array: Any, device: str | None) -> Any:
        chosen = [d for d in self._jax.devices() if str(d) == device] or [
            d for d in self._all_devices() if d.platform == device
        ]
        if not chosen:
            raise ValueError(f"jax has no device {device!r}; it has {', '.join(self.devices())}")
        return self._jax.device_put(self._jnp.array(array, copy=True), chosen[0])

    def _all_devices(self) -> list[Any]:
        return [*self._jax.devices(), *self._jax.devices("cpu")]

    def arithmetic(self, values: Iterable[Any]) -> Arithmetic:
        witness = next(filter(self._is_traced, values), None)
        if witness is None:
            return HOST
        arithmetic: Arithmetic = self._scalars.JaxArithmetic(witness)
        return arithmetic

    @functools.cached_property
    def _scalars(self) -> Any:
        return importlib.import_module("portopt_jax._scalars")

    def scalar(self, value: Any) -> Any:
        if isinstance(value, PendingScalar):
            return value
        if not isinstance(value, self._jax.Array):
            return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
        words = value.dtype == "uint32" and value.shape == (2,)
        if self._is_traced(value):
            return self._scalars.from_words(value) if words else value
        return np.asarray(value).view(np.float64).item() if words else value.item()

    def stored_scalar(self, value: Any) -> Any:
        if isinstance(value, PendingScalar):
            return value.words
        if getattr(value, "dtype", None) == "uint32":
            return value
        return self._scalars.to_words(value)

    def primitives(self, compute_dtype: str) -> Primitives:
        scalars = self._scalars
        smallest = SMALLEST_NORMAL[compute_dtype]
        scale = 2.0**64 if compute_dtype == "float32" else 2.0**512
        overrides: dict[str, Callable[..., Any]] = {
            "flush": lambda x: scalars.flush(x, smallest),
            "load": lambda x: scalars.load(x, compute_dtype),
            "multiply": lambda a, b: scalars.flush_product(a, b, smallest, scale),
            "divide": lambda a, b: scalars.flush_quotient(a, scalars.hidden_divisor(a, b), smallest, scale),
            "sqrt": lambda a: scalars.flush(scalars.square_root(scalars.constant_at_zero(a)), smallest),
            "float64": lambda: self._jax.enable_x64(True),
            "constant": self._constant,
            "rint": scalars.rint,
            "without_negative_zero": scalars.without_negative_zero,
            "leading_exponent": scalars.leading_exponent,
            "power_of_two": scalars.power_of_two,
            "multiply_matrices": scalars.multiply_matrices,
            "arange": lambda count, like: self._jnp.arange(count, dtype="int64"),
            # See _fences.py.
            "plain_divide": lambda a, b: a / scalars.hidden_divisor(a, b),
            "plain_sqrt": lambda a: self._jnp.sqrt(scalars.constant_at_zero(a)),
            "plain_load": lambda x: scalars.plain_load(x, compute_dtype),
        }
        if self._on_cpu:
            # XLA's CPU code flushes sums in hardware; a comparison for each would double the time.
            overrides |= {"add": lambda a, b: a + b, "subtract": lambda a, b: a - b}
        primitives = Primitives(self._jnp, self._jnp.dtype(compute_dtype), compute_dtype, overrides)
        primitives.sliced = functools.partial(self._sliced, compute_dtype)
        return primitives

    def _sliced(self, compute_dtype: str, x: Any, axis: int) -> products.Slices:
        """Return the slices of an operand of a product; what they are scaled by is a number to derivatives."""
        wide = self.primitives("float64")
        # Before the maximum, whose own derivative JAX takes where it has no float64.
        largest = products.largest_magnitudes(wide, self._jax.lax.stop_gradient(x), axis)
        return products.slices(wide, x, axis, x.shape[axis], compute_dtype, largest)

    def _constant(self, value: float, like: Any) -> Any:
        """Return a number as an array like another one, hidden from XLA where it compiles."""
        constant = self._jnp.asarray(value, like.dtype)
        return self._jnp.where(self._scalars.never(like), 1.0, constant) if self._is_traced(like) else constant

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        self._refuse_abstract(gradients)
        if is_interpreted() or any(map(self._is_traced, gradients)):
            return self._gradient_norm(gradients)
        words = self._compiled_norm(list(gradients))
        return self.scalar(words) if self._is_traced(words) else PendingScalar(words)

    @functools.cached_property
    def _compiled_norm(self) -> Any:
        return self._jax.jit(lambda gradients: self.stored_scalar(self._gradient_norm(gradients)))

    def _gradient_norm(self, gradients: Sequence[Any]) -> Any:
        if gradients and not is_interpreted() and self._kernels.may_call():
            return self._kernels.norm(gradients, self._norm_in_xla)
        return self._norm_in_xla(gradients)

    def _norm_in_xla(self, gradients: Sequence[Any]) -> Any:
        with self._jax.enable_x64(True):
            loaded = [self.primitives(COMPUTE_DTYPE[str(g.dtype)]).load(g) for g in gradients]
            wide = self.primitives("float64")
            # Its derivative is asked for outside of this context.
            x64 = functools.partial(self._jax.enable_x64, True)
            return self._reductions_of(wide, wide, self._scalars.JaxArithmetic, x64).total("norm", *loaded)

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        if in_place:
            self._refuse_in_place()
        return [results for work in works for results in self._updated(*work)]

    def _updated(self, program: Program, scalars: Sequence[Any], parameters: Sequence[Arrays]) -> list[dict[str, Any]]:
        self._refuse_abstract(array for arrays in parameters for array in arrays.values())
        if isinstance(scalars, StepScalars) and not is_interpreted() and self._is_concrete(scalars, parameters):
            return self._update_compiled(program, scalars, parameters)
        return self._update_traced(program, scalars, parameters)

    def _update_traced(
        self, program: Program, scalars: Sequence[Any], parameters: Sequence[Arrays]
    ) -> list[dict[str, Any]]:
        places = self._places(program, parameters)
        in_kernel = self._kernels.can_run(program) and _are_whole(places)
        if not isinstance(scalars, StepScalars) or is_interpreted() or not in_kernel:
            return self.update_in_xla(program, scalars, parameters)
        with self._jax.enable_x64(True):
            inputs = self._kernels.pack([_known(scalars.inputs[name]) for name in _inputs_but_t(program)])
        step = scalars.inputs.get("t", 0)
        # The scalars of the state stay the graph's: out of the kernel, all would be batched under vmap if one input is.
        return list(self._kernels.run(program, inputs, step, parameters, self.update_in_xla, places, in_place=True)[0])

    @functools.cached_property
    def _kernels(self) -> Any:
        return importlib.import_module("portopt_jax._kernel")

    def _is_concrete(self, scalars: StepScalars, parameters: Sequence[Arrays]) -> bool:
        arrays = (array for arrays in parameters for array in arrays.values())
        return scalars.arithmetic is HOST and not any(map(self._is_traced, arrays))

    def _update_compiled(
        self, program: Program, scalars: StepScalars, parameters: Sequence[Arrays]
    ) -> list[dict[str, Any]]:
        """Run the whole step as one XLA computation, which JAX keeps for arrays of the same shapes."""
        names, inputs = _inputs_but_t(program), scalars.inputs
        pending = {i: inputs[n].words for i, n in enumerate(names) if isinstance(inputs[n], PendingScalar)}
        known = np.array([0.0 if i in pending else inputs[n] for i, n in enumerate(names)], np.float64)
        words, step = known.view(np.uint32).reshape(-1, 2), int(inputs.get("t", 0))
        places = self._places(program, parameters)
        by_kernel = self._kernels.can_run(program) and _are_whole(places)
        results, outputs = self._compiled_update(
            program, by_kernel, places, words, pending, step, list(map(dict, parameters))
        )
        scalars.provide(outputs)
        return list(results)

    def _places(self, program: Program, parameters: Sequence[Arrays]) -> tuple[Place, ...] | None:
        """Return where the parameters are, for programs that depend on it."""
        if not program.has_draws:
            return None
        return tuple(
            arrays.place if isinstance(arrays, Leaf) else Place.of(0, arrays["p"].shape) for arrays in parameters
        )

    @functools.cached_property
    def _compiled_update(self) -> Any:
        def update(
            program: Program,
            by_kernel: bool,
            places: tuple[Place, ...] | None,
            words: Any,
            pending: Mapping[int, Any],
            t: Any,
            parameters: Sequence[Arrays],
        ) -> tuple[Any, Any]:
            with self._jax.enable_x64(True):
                inputs = self._scalars.from_words(words)
                for i, value in pending.items():
                    inputs = inputs.at[i].set(self._scalars.from_words(value))
                by_name = {name: inputs[i] for i, name in enumerate(_inputs_but_t(program))}
            scalars = StepScalars(program, self._scalars.JaxArithmetic(t), {**by_name, "t": t})
            results, outputs = self._updated_apart(scalars, parameters, places, by_kernel=by_kernel)
            return results, {name: self.stored_scalar(value) for name, value in outputs.items()}

        return self._jax.jit(update, static_argnums=(0, 1, 2))

    def update_apart(self, scalars: StepScalars, parameters: Sequence[Arrays]) -> tuple[list[Any], dict[str, Any]]:
        """Do a step on arrays that stay as they are, as part of a computation.

        Returns:
            New parameter and slots of each parameter, and the new scalars of the state.
        """
        places = self._places(scalars.program, parameters)
        by_kernel = self._kernels.can_run(scalars.program) and _are_whole(places)
        return self._updated_apart(scalars, parameters, places, by_kernel=by_kernel)

    def _updated_apart(
        self, scalars: StepScalars, parameters: Sequence[Arrays], places: tuple[Place, ...] | None, *, by_kernel: bool
    ) -> tuple[list[Any], dict[str, Any]]:
        program = scalars.program
        if not by_kernel:
            return self.update_in_xla(program, scalars, parameters, places), scalars.outputs()
        with self._jax.enable_x64(True):
            inputs = self._kernels.pack([scalars.inputs[name] for name in _inputs_but_t(program)])
        results, outputs = self._kernels.run(
            program, inputs, scalars.inputs.get("t", 0), parameters, self.update_in_xla, places, in_place=False
        )
        return list(results), dict(outputs)

    @property
    def _on_cpu(self) -> bool:
        return not self._scalars.accelerated()

    def update_in_xla(
        self,
        program: Program,
        scalars: Sequence[Any],
        parameters: Sequence[Arrays],
        places: Sequence[Place] | None = None,
    ) -> list[dict[str, Any]]:
        """Do a step in XLA's operations, one by one."""
        results = []
        for arrays, compute, outputs in self._interpreted(program, scalars, parameters, places):
            with self._x64_for(compute):
                results.append({name: self.stored(value, arrays[name]) for name, value in outputs.items()})
        return results

    def total(self, name: str, works: Sequence[Work]) -> Any:
        arrays = [array for work in works for arrays in work.parameters for array in arrays.values()]
        self._refuse_abstract(arrays)
        name = name.removeprefix("total_")
        if len(works) == 1 and any(map(self._is_traced, arrays)):
            found = self._total_by_kernel(name, works[0])
            if found is not None:
                return found
        return self._total_in_xla(name, works)

    def _total_by_kernel(self, name: str, work: Work) -> Any | None:
        """Return a total that a call of a kernel computes; None where there is none."""
        program, scalars, parameters = work
        is_whole = not program.has_draws and not any(getattr(arrays, "is_part", False) for arrays in parameters)
        if is_interpreted() or not is_whole or not isinstance(scalars, StepScalars) or not self._kernels.may_call():
            return None
        with self._jax.enable_x64(True):
            inputs = self._kernels.pack([_known(scalars.inputs[name]) for name in _inputs_but_t(program)])
        step = scalars.inputs.get("t", 0)
        return self._kernels.total(name, program, inputs, step, parameters, self._one_total_in_xla)

    def _one_total_in_xla(
        self, name: str, program: Program, scalars: Sequence[Any], parameters: Sequence[Arrays]
    ) -> Any:
        return self._total_in_xla(name, [Work(program, scalars, parameters)])

    def _total_in_xla(self, name: str, works: Sequence[Work]) -> Any:
        arrays = [outputs["x"] for work in works for _, _, outputs in self._interpreted(*work)]
        with self._jax.enable_x64(True):
            return self.reductions("float64").total(name, *arrays)

    def reductions(self, compute_dtype: str) -> Reductions:
        """Return the reductions of arrays of a compute dtype."""
        return self._reductions_of(
            self.primitives(compute_dtype),
            self.primitives("float64"),
            lambda x: self.arithmetic([x]),
            lambda: self._jax.enable_x64(True),
        )

    @property
    def _reductions_of(self) -> type[Reductions]:
        kind: type[Reductions] = importlib.import_module("portopt_jax._reductions").JaxReductions
        return kind

    def _x64_for(self, compute_dtype: str) -> Any:
        return self._jax.enable_x64(compute_dtype == "float64" or self._jax.config.jax_enable_x64)

    def _interpreted(
        self,
        program: Program,
        scalars: Sequence[Any],
        parameters: Sequence[Arrays],
        places: Sequence[Place] | None = None,
    ) -> Iterator[tuple[Arrays, str, dict[str, Any]]]:
        """Yield each parameter, its compute dtype and what the program makes of it."""
        if self._on_cpu:
            program = importlib.import_module("portopt_jax._fences").without_needless_fences(program)
        places = self._places(program, parameters) if places is None else places
        rounded: dict[str, dict[int, Any]] = {}
        for number, arrays in enumerate(parameters):
            compute = COMPUTE_DTYPE[str(arrays["p"].dtype)]
            never = self._never(scalars, arrays)
            if compute not in rounded:
                rounded[compute] = {i: self._rounded(scalars[j], compute, never) for i, j in program.rounded_scalars}
            of_parameter = None
            if not program.is_elementwise:
                place = None if places is None else places[number]
                of_parameter = ParameterScalars(
                    scalars,
                    self.reductions(compute),
                    self.primitives("float64"),
                    functools.partial(self._rounded, compute=compute, never=never),
                    lambda x: self.arithmetic([x]),
                    lambda: self._jax.enable_x64(True),
                    place,
                )
            with self._x64_for(compute):
                primitives = self.primitives(compute).widened_by(lambda: self.primitives("float64"))
                yield arrays, compute, interpret(program, primitives, arrays, rounded[compute], of_parameter)

    def _never(self, scalars: Sequence[Any], arrays: Arrays) -> Any:
        """Return what hides constants from XLA (see `_scalars.never`), or None where nothing is compiled together.

        An element of an array is the last resort: it is one more use of the array.
        """
        arithmetic: Any = getattr(scalars, "arithmetic", HOST)
        if arithmetic is not HOST:
            return arithmetic.never
        traced = [array for name, array in arrays.items() if name != "p" and self._is_traced(array) and array.size]
        return self._scalars.never(self._jnp.ravel(traced[0])[0]) if traced else None

    def _rounded(self, value: Any, compute: str, never: Any) -> Any:
        with self._jax.enable_x64(True):
            if not isinstance(value, float | int):
                return self._scalars.round_traced(value, compute)
            rounded = self._jnp.asarray(round_scalar(float(value), compute), dtype=compute)
            return rounded if never is None else self._jnp.where(never, self._jnp.ones_like(rounded), rounded)

    def stored(self, value: Any, like: Any) -> Any:
        stored = value if value.dtype == like.dtype else self._scalars.narrowed(value, str(like.dtype))
        return self._jnp.broadcast_to(stored, like.shape)

    def _refuse_in_place(self) -> NoReturn:
        raise TypeError(
            "JAX arrays cannot be changed in place: use params, state = opt.apply(params, grads, state), and donate the "
            "arguments of your jitted step to save the memory"
        )

    def plan(
        self,
        programs: Sequence[Program],
        trees: Any,
        parameters: Sequence[Arrays],
        *,
        in_place: bool = True,
        same_arrays: bool = True,
    ) -> Any:
        if in_place:
            return "JAX arrays cannot be changed in place"
        if any(map(self._is_traced, parameters[0].values() if parameters else ())):
            return "the step is traced, and compiled with what calls it"
        make_plan = importlib.import_module("portopt_jax._plan").make_plan
        found = make_plan(self, programs, trees, parameters, lambda array: _devices(array.sharding))
        return "arrays, containers or the state are not such as a plan knows" if found is None else found

    def why_not_fused(self, program: Program, parameters: Sequence[Arrays]) -> str | None:
        return "it is inside portopt.interpreted()" if is_interpreted() else None

    def check_in_place(self, parameters: Sequence[Arrays], paths: Callable[[int], str]) -> None:
        self._refuse_in_place()


def register_for_export(state: type[Any]) -> None:
    """Let `jax.export` write functions that take or return a state, and read them."""
    name = f"{state.__module__.partition('.')[0]}.{state.__name__}"
    with contextlib.suppress(ValueError):  # somebody has done so already
        importlib.import_module("jax.export").register_namedtuple_serialization(state, serialized_name=name)


class PendingScalar:
    """A float64 that a device may still be computing: a number as soon as one is asked for, which waits for it.

    Attributes:
        words: its bits, an array of two uint32 words.
    """

    def __init__(self, words: Any) -> None:
        self.words = words

    def __float__(self) -> float:
        return float(np.asarray(self.words).view(np.float64).item())


@functools.lru_cache(maxsize=64)
def _name(dtype: Any) -> str:
    return str(dtype)


@functools.lru_cache(maxsize=512)
def _devices(sharding: Any) -> str:
    return ", ".join(sorted(map(str, sharding.device_set)))


def _are_whole(places: Sequence[Place] | None) -> bool:
    return places is None or all(place.shape == place.whole for place in places)


def _known(value: Any) -> Any:
    return float(value) if isinstance(value, PendingScalar) else value


def _inputs_but_t(program: Program) -> list[str]:
    return [name for name in program.scalar_inputs if name != "t"]


backend = JaxBackend()
"""The one that the entry point in `portopt.backends` names."""
