"""A step as one call of a host kernel inside an XLA computation, where that computation is for one CPU device.

XLA computes a step in one loop a result, each of which reads its operands from memory again, and its loops over small inner
dimensions are slow; the kernel that NumPy's arrays get passes over memory once. To JAX, the step is one primitive. Its
operations in XLA (`_backend.py`) stand in wherever the kernel cannot: under vmap and differentiation, on other platforms, in
computations for several devices, in exported ones, and without numba.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from portopt import __version__
from portopt.kernels.groups import grouped, positions
from portopt.kernels.host import norm_stages, planned_totals
from portopt.kernels.host.compiler import available, compile_kernel, default_flush
from portopt.kernels.host.kernel import can_run as has_kernel
from portopt.kernels.host.norm import norm_source
from portopt.kernels.host.reduction_source import first_words
from portopt.kernels.host.source import kernel_source
from portopt.kernels.host.staged_source import staged_source
from portopt.kernels.host.staged_steps import shared_steps, stages_of
from portopt.kernels.host.totals import can_be_reduced
from portopt.kernels.key import KernelKey
from portopt.kernels.totals import can_total, reducing
from portopt.program import GIVEN, Program
from portopt.program.draws import Place
from portopt.program.interpreter import StepScalars
from portopt_jax import _cuda, _handler, _norm_handler
from portopt_jax._scalars import JaxArithmetic, lowering_for, step_number

InXla = Callable[[Program, StepScalars, Sequence[Mapping[str, Any]], Sequence[Place] | None], list[dict[str, Any]]]
"""Does a step in XLA's operations: takes program, scalars, the arrays of each parameter, and where each is if the program draws;
returns the results of each."""

_Kinds = tuple[tuple[KernelKey, int], ...]
"""What kernels are compiled for, and how many parameters each is for."""

_enabled: ContextVar[bool] = ContextVar("portopt_jax_kernels", default=True)
_registered: set[str] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Within it, what is traced leaves the whole step to XLA."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def enabled() -> bool:
    """Tell whether this is not within `without_kernels`."""
    return _enabled.get()


def can_run(program: Program) -> bool:
    """Tell whether steps of a program may be given to kernels."""
    if not has_kernel(program):
        return False
    return may_call()


def may_call() -> bool:
    """Tell whether what is traced may hold calls of kernels."""
    with_jit = not jax.config.jax_disable_jit  # type: ignore[attr-defined]  # JAX defines its settings at run time
    return with_jit and enabled() and not _is_inside_shard_map() and available() and _handler.supported()


def _is_inside_shard_map() -> bool:
    """Tell whether JAX traces one device's part of a computation, where it follows which values differ between devices.

    Of XLA's operations it knows how that comes from the operands.
    """
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def pack(values: Sequence[Any]) -> Any:
    """Return scalars, Python numbers or traced, as one float64 array; must be called with x64 enabled."""
    if all(isinstance(value, float | int) for value in values):
        return np.array(values, np.float64)
    return jnp.stack([jnp.asarray(value).astype(jnp.float64) for value in values])


def run(
    program: Program,
    inputs: Any,
    step: Any,
    parameters: Sequence[Mapping[str, Any]],
    in_xla: InXla,
    places: Sequence[Place] | None = None,
    *,
    in_place: bool,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Do a step.

    Args:
        program: what to run.
        inputs: the scalar inputs but for `"t"`, in one float64 array.
        step: `"t"`.
        parameters: the arrays of each parameter.
        in_xla: does the same where the kernel cannot; equal ones do the same.
        places: where each parameter is, a whole one; only for programs that draw.
        in_place: whether results take the memory of what they replace. XLA copies that first where it is still needed.

    Returns:
        New parameter and slots of each parameter, and the new scalars of the state, float64.
    """
    dtypes = ({name: str(array.dtype) for name, array in arrays.items()} for arrays in parameters)
    results: list[dict[str, Any]] = [{} for _ in parameters]
    outputs: dict[str, Any] = {}
    with jax.enable_x64(True):
        operands = [jnp.asarray(inputs), step_number(jnp.asarray(step))]
        for key, _, members in grouped(program, dtypes, in_place=in_place, flush=default_flush()):
            # In the order of the key, which is that of the kernel's results too: JAX sorts what dicts hold.
            rows = [parameters[i][name] for i in members for name, _ in key.dtypes]
            where = () if places is None else tuple(places[i] for i in members)
            found = _step.bind(*operands, *rows, program=program, kernel_key=key, in_xla=in_xla, places=where)
            if program.scalar_outputs:
                outputs = dict(zip(program.scalar_outputs, found.pop(0), strict=True))
            remaining = iter(found)
            for i in members:
                results[i] = {name: next(remaining) for name in program.array_outputs}
    return results, outputs


def norm(gradients: Sequence[Any], in_xla: Callable[[Sequence[Any]], Any]) -> Any:
    """Return the norm of all gradients together, float64.

    Args:
        gradients: one at least.
        in_xla: computes it where the kernel cannot; equal ones do the same.
    """
    by_dtype = positions([str(g.dtype) for g in gradients])
    with jax.enable_x64(True):
        return _norm.bind(*(gradients[i] for members in by_dtype.values() for i in members), in_xla=in_xla)


def total(
    name: str,
    program: Program,
    inputs: Any,
    step: Any,
    parameters: Sequence[Mapping[str, Any]],
    in_xla: Callable[..., Any],
) -> Any | None:
    """Return a total over all parameters, float64; None where there is no kernel for it.

    Args:
        name: of the reduction.
        program: computes the array of each parameter that is reduced.
        inputs: the scalar inputs but for `"t"`, in one float64 array.
        step: `"t"`.
        parameters: the arrays of each parameter.
        in_xla: computes it where the kernel cannot, given name, program, scalars and arrays; equal ones do the same.
    """
    read = dict.fromkeys(["p", "g", *(op.reads for op in program.ops if op.reads is not None)])
    dtypes = [{of: str(arrays[of].dtype) for of in arrays if of in read} for arrays in parameters]
    if not parameters or not can_be_reduced(program, name):
        return None
    groups = list(grouped(reducing(program, name), dtypes, in_place=True, flush=default_flush()))
    rows = [parameters[i][of] for key, _, members in groups for i in members for of, _ in key.dtypes]
    kinds = tuple((key, len(members)) for key, _, members in groups)
    with jax.enable_x64(True):
        operands = [jnp.asarray(inputs), step_number(jnp.asarray(step)), *rows]
        return _total.bind(*operands, name=name, program=program, kinds=kinds, in_xla=in_xla)


def _total_in_xla(*operands: Any, name: str, program: Program, kinds: _Kinds, in_xla: Callable[..., Any]) -> Any:
    scalars = _scalars_of(program, *operands[:2])
    rows = [row for _, of_kind in _rows_of_kinds(kinds, operands) for row in of_kind]
    with jax.enable_x64(True):
        return jnp.asarray(in_xla(name, program, scalars, rows), jnp.float64)


def _rows_of_kinds(kinds: _Kinds, operands: Sequence[Any]) -> list[tuple[KernelKey, list[dict[str, Any]]]]:
    """Return the arrays of each parameter by name, those of a kind together."""
    found, first = [], 2
    for key, count in kinds:
        end = first + count * len(key.dtypes)
        found.append((key, _rows(key, [*operands[:2], *operands[first:end]])))
        first = end
    return found


def _scalars_of(program: Program, inputs: Any, step: Any) -> StepScalars:
    with jax.enable_x64(True):
        names = [name for name in program.scalar_inputs if name != "t"]
        values = {**{name: inputs[i] for i, name in enumerate(names)}, "t": step}
    return StepScalars(program, JaxArithmetic(step), values)


def _total_lowered(
    context: Any, *operands: Any, name: str, program: Program, kinds: _Kinds, in_xla: Callable[..., Any]
) -> Any:
    if len(kinds) > 1 or not _is_for_one_device(context.module_context, "cpu"):
        given = {"name": name, "program": program, "kinds": kinds, "in_xla": in_xla}
        return _number_lowered_in_xla(_total_in_xla, context, *operands, **given)
    ((key, rows),) = _rows_of_kinds(kinds, context.avals_in)
    layout = _handler.layout(stages_of(reducing(program, name)), [row["p"].shape for row in rows], (), apart=False)
    return jax.ffi.ffi_lowering(_register_total(name, program, key))(context, *operands, layout=layout)


def _total_lowered_for_cuda(
    context: Any, *operands: Any, name: str, program: Program, kinds: _Kinds, in_xla: Callable[..., Any]
) -> Any:
    reduced = reducing(program, name)
    any_elements = any(row["p"].size for _, rows in _rows_of_kinds(kinds, context.avals_in) for row in rows)
    # Of sums, what blocks find is alike in all dtypes.
    are_alike = name != "max" or len({key.compute_dtype for key, _ in kinds}) == 1
    can_run = any_elements and are_alike and can_total(reduced)
    if not can_run or not _is_for_one_device(context.module_context, "cuda") or not _cuda.usable():
        given = {"name": name, "program": program, "kinds": kinds, "in_xla": in_xla}
        return _number_lowered_in_xla(_total_in_xla, context, *operands, **given)

    def by_cuda(inputs: Any, step: Any, *arrays: Any) -> Any:
        groups = _rows_of_kinds(kinds, [inputs, step, *arrays])
        return _cuda.total(inputs, step, groups, name, reduced, _registered_as)

    return mlir.lower_fun(by_cuda, multiple_results=False)(context, *operands)


@functools.lru_cache(maxsize=512)
def _register_total(name: str, program: Program, key: KernelKey) -> str:
    """Return the name by which XLA knows the handler of a total."""
    reduced = reducing(program, name)

    def made() -> Any:
        return _handler.make_total_handler(
            compile_kernel(reduced, key),
            len(key.dtypes),
            stages_of(reduced),
            first_words(name, key.compute_dtype),
            planned_totals.kind_and_order(name, key.compute_dtype),
            planned_totals.joining(),
        )

    return _registered_as(f"total {staged_source(reduced, key)}", made, "cpu")


def _norm_in_xla(*gradients: Any, in_xla: Callable[[Sequence[Any]], Any]) -> Any:
    with jax.enable_x64(True):
        return jnp.asarray(in_xla(gradients), jnp.float64)


def _norm_lowered(context: Any, *gradients: Any, **parameters: Any) -> Any:
    elements = sum(of.size for of in context.avals_in)
    if not _is_for_one_device(context.module_context, "cpu") or elements >= norm_stages.MOST_ELEMENTS:
        return _number_lowered_in_xla(_norm_in_xla, context, *gradients, **parameters)
    by_dtype = positions([str(of.dtype) for of in context.avals_in])
    layout = _norm_handler.layout([[context.avals_in[i].size for i in members] for members in by_dtype.values()])
    return jax.ffi.ffi_lowering(_register_norm(tuple(by_dtype)))(context, *gradients, layout=layout)


def _norm_lowered_for_cuda(context: Any, *gradients: Any, **parameters: Any) -> Any:
    elements = sum(of.size for of in context.avals_in)
    is_for_one = _is_for_one_device(context.module_context, "cuda")
    if not is_for_one or elements >= norm_stages.MOST_ELEMENTS or not _cuda.usable():
        return _number_lowered_in_xla(_norm_in_xla, context, *gradients, **parameters)
    return mlir.lower_fun(_norm_by_cuda, multiple_results=False)(context, *gradients, **parameters)


def _norm_by_cuda(*gradients: Any, in_xla: Any) -> Any:
    by_dtype = positions([str(g.dtype) for g in gradients])
    return _cuda.norm([[gradients[i] for i in members] for members in by_dtype.values()], _registered_as)


@functools.lru_cache(maxsize=64)
def _register_norm(dtypes: tuple[str, ...]) -> str:
    """Return the name by which XLA knows the handler of a norm of gradients."""
    sources = [norm_stages.SOURCE, *(norm_source(dtype, default_flush()) for dtype in dtypes)]
    return _registered_as("\n".join(sources), lambda: _norm_handler.make_norm_handler(dtypes), "cpu")


def _rows(key: KernelKey, operands: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the arrays of each parameter by name."""
    columns, arrays = [name for name, _ in key.dtypes], operands[2:]
    rows = (arrays[i : i + len(columns)] for i in range(0, len(arrays), len(columns)))
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _in_xla(
    *operands: Any, program: Program, kernel_key: KernelKey, in_xla: InXla, places: tuple[Place, ...]
) -> list[Any]:
    """Do what the kernel does in XLA's operations."""
    scalars = _scalars_of(program, *operands[:2])
    results = in_xla(program, scalars, _rows(kernel_key, operands), places or None)
    with jax.enable_x64(True):
        outputs = [pack(list(scalars.outputs().values()))] if program.scalar_outputs else []
    return [*outputs, *(result[name] for result in results for name in program.array_outputs)]


def _result_types(
    *operands: Any, program: Program, kernel_key: KernelKey, in_xla: InXla, places: tuple[Place, ...]
) -> list[Any]:
    with jax.enable_x64(True):
        outputs = [jax.core.ShapedArray((len(program.scalar_outputs),), jnp.float64)] if program.scalar_outputs else []
    rows = _rows(kernel_key, operands)
    written = [row[name] for row in rows for name in program.array_outputs]
    return [*outputs, *(jax.core.ShapedArray(operand.shape, operand.dtype) for operand in written)]


def _batched(operands: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> tuple[Any, Any]:
    out_axes = [0 if batched else None for batched in _are_batched(axes, **parameters)]
    results = jax.vmap(functools.partial(_in_xla, **parameters), in_axes=tuple(axes), out_axes=out_axes)(*operands)
    return results, out_axes


def _are_batched(
    axes: Sequence[Any], *, program: Program, kernel_key: KernelKey, in_xla: InXla, places: tuple[Place, ...]
) -> list[bool]:
    """Tell of each result whether it depends on a batched operand."""
    mapped = [axis is not None for axis in axes]
    by_scalars = any(mapped[:2])
    rows, written = _rows(kernel_key, mapped), tuple(program.array_outputs)
    sources = {name: _arrays_behind(program, name) for name in written}
    arrays = [by_scalars or any(row[source] for source in sources[name]) for row in rows for name in written]
    return [by_scalars, *arrays] if program.scalar_outputs else arrays


def _arrays_behind(program: Program, output: str) -> set[str]:
    """Return the names of the arrays that an output is computed from."""
    pending, found, seen = [program.array_outputs[output]], set(), set()
    while pending:
        i = pending.pop()
        if i in seen:
            continue
        seen.add(i)
        op = program.ops[i]
        if op.reads is not None:
            found.add(op.reads)
        elif op.name not in GIVEN:  # scalars of the step are an operand of their own
            pending.extend(op.args)
    return found


def _differentiated(operands: Sequence[Any], tangents: Sequence[Any], **parameters: Any) -> tuple[Any, Any]:
    return jax.jvp(
        functools.partial(_in_xla, **parameters), tuple(operands), tuple(map(ad.instantiate_zeros, tangents))
    )


def _lowered(
    context: Any, *operands: Any, program: Program, kernel_key: KernelKey, in_xla: InXla, places: tuple[Place, ...]
) -> Any:
    if not _is_for_one_device(context.module_context, "cpu"):
        return _lowered_in_xla(context, *operands, program=program, kernel_key=kernel_key, in_xla=in_xla, places=places)
    kernel_key = _fit(kernel_key, context)
    target = _register(program, kernel_key)
    names = [name for name, _ in kernel_key.dtypes]
    written = [i for i in range(2, len(operands)) if names[(i - 2) % len(names)] in program.array_outputs]
    outputs = int(bool(program.scalar_outputs))
    aliases = {operand: outputs + i for i, operand in enumerate(written)} if kernel_key.in_place else None
    attributes = {}
    if not program.is_elementwise:
        shapes = [row["p"].shape for row in _rows(kernel_key, context.avals_in)]
        attributes["layout"] = _handler.layout(stages_of(program), shapes, [place.number for place in places])
    # XLA tries to fuse what has no side effects with what comes before, in time that grows as the square of its operands. And
    # what nobody uses JAX has left out by now.
    lowering = jax.ffi.ffi_lowering(target, operand_output_aliases=aliases, has_side_effect=True)
    return lowering(context, *operands, **attributes)


def _lowered_for_cuda(
    context: Any, *operands: Any, program: Program, kernel_key: KernelKey, in_xla: InXla, places: tuple[Place, ...]
) -> Any:
    parameters = {"program": program, "kernel_key": kernel_key, "in_xla": in_xla, "places": places}
    can_run = _cuda.can_run(program) and _is_for_one_device(context.module_context, "cuda")
    if not can_run or not _cuda.usable():
        return _lowered_in_xla(context, *operands, **parameters)
    key = _fit(kernel_key, context)
    by_cuda = functools.partial(_cuda.step, program=program, key=key, registered=_registered_as, places=places)
    return mlir.lower_fun(by_cuda, multiple_results=True)(context, *operands)


def _fit(key: KernelKey, context: Any) -> KernelKey:
    """Return the key of the kernel that takes least: one in place only where XLA need not copy what it overwrites."""
    return replace(key, in_place=key.in_place and _may_overwrite(context))


def _may_overwrite(context: Any) -> bool:
    """Tell whether a step may overwrite its operands without XLA copying all of them first.

    If none of the computation's arguments is donated, it would; inside a loop or a function, it need not.
    """
    operations: Any = context.module_context.module.body.operations
    inside = mlir.ir.InsertionPoint.current.block.owner
    for function in operations:
        attributes = function.operation.attributes
        if "sym_name" in attributes and mlir.ir.StringAttr(attributes["sym_name"]).value == "main":
            given = [mlir.ir.DictAttr(of) for of in attributes["arg_attrs"]] if "arg_attrs" in attributes else []
            is_donated = any(mark in of for of in given for mark in ("tf.aliasing_output", "jax.buffer_donor"))
            return is_donated or inside.operation != function.operation
    return True


def _lowered_in_xla(context: Any, *operands: Any, **parameters: Any) -> Any:
    with lowering_for(*(context.platforms or context.module_context.platforms)):
        return mlir.lower_fun(_in_xla, multiple_results=True)(context, *operands, **parameters)


def _is_for_one_device(module: Any, platform: str) -> bool:
    """Tell whether XLA will run the module on one device of this process; what JAX does not say is taken for no."""
    devices = getattr(module.axis_context, "num_devices", None)
    exported = getattr(getattr(module, "lowering_parameters", None), "for_export", True)
    return devices == 1 and not exported and tuple(module.platforms) == (platform,)


@functools.lru_cache(maxsize=512)
def _register(program: Program, key: KernelKey) -> str:
    """Return the name by which XLA knows the kernel's handler."""
    source = kernel_source(program, key) if program.is_elementwise else staged_source(program, key)

    def made() -> Any:
        return _handler.make_handler(
            compile_kernel(program, key),
            len(key.dtypes),
            len(program.array_outputs),
            in_place=key.in_place,
            has_outputs=bool(program.scalar_outputs),
            stages=None if program.is_elementwise else stages_of(program),
            shared_steps=() if program.is_elementwise else shared_steps(program, key),
        )

    return _registered_as(f"{key.in_place} {source}", made, "cpu")


def _registered_as(content: str, made: Callable[[], Any], platform: str) -> str:
    """Return the name by which XLA knows the handler that calls kernels of some content, after making it if it is new.

    It is the same in each process, since JAX may keep compiled computations on disk.
    """
    name = f"portopt_{hashlib.sha256(f'{__version__} {content}'.encode()).hexdigest()[:32]}"
    with _lock:
        if name not in _registered:
            handler = made()
            ffi: Any = jax.ffi
            ffi.register_ffi_target(name, ffi.pycapsule(handler), platform=platform)
            _registered.add(name)
    return name


def register_in_place(primitive: Any, rule: Any, platform: str) -> None:
    """Register a lowering that stands where the primitive does; JAX would take it from another computation, if it may."""
    may_say = "cacheable" in inspect.signature(mlir.register_lowering).parameters
    mlir.register_lowering(primitive, rule, platform=platform, **({"cacheable": False} if may_say else {}))


def _number_primitive(name: str, of_xla: Callable[..., Any], parameters: Sequence[str]) -> Any:
    """Return a primitive that is one float64 number, which XLA's operations compute where nothing else does.

    Args:
        name: of the primitive.
        of_xla: writes it in XLA's operations.
        parameters: names of what it is given besides arrays.
    """

    def type_of(*operands: Any, **parameters: Any) -> Any:
        with jax.enable_x64(True):
            return jax.core.ShapedArray((), jnp.float64)

    def batched(operands: Sequence[Any], axes: Sequence[Any], **parameters: Any) -> tuple[Any, Any]:
        return jax.vmap(functools.partial(of_xla, **parameters), in_axes=tuple(axes))(*operands), 0

    def differentiated(operands: Sequence[Any], tangents: Sequence[Any], **parameters: Any) -> tuple[Any, Any]:
        of = functools.partial(of_xla, **parameters)
        return jax.jvp(of, tuple(operands), tuple(map(ad.instantiate_zeros, tangents)))

    primitive: Any = Primitive(name)
    primitive.def_impl(
        jax.jit(lambda *operands, **which: primitive.bind(*operands, **which), static_argnames=tuple(parameters))
    )
    primitive.def_abstract_eval(type_of)
    batching.primitive_batchers[primitive] = batched
    ad.primitive_jvps[primitive] = differentiated
    mlir.register_lowering(primitive, functools.partial(_number_lowered_in_xla, of_xla))
    return primitive


def _number_lowered_in_xla(of_xla: Callable[..., Any], context: Any, *operands: Any, **parameters: Any) -> Any:
    with lowering_for(*(context.platforms or context.module_context.platforms)):
        return mlir.lower_fun(of_xla, multiple_results=False)(context, *operands, **parameters)


_step: Any = Primitive("portopt_step")
_step.multiple_results = True
# No parameter may be called `key`: up to version 0.9.1, JAX has an argument of that name where it passes parameters on.
_step.def_impl(
    jax.jit(
        lambda *operands, **which: _step.bind(*operands, **which),
        static_argnames=("program", "kernel_key", "in_xla", "places"),
    )
)
_step.def_abstract_eval(_result_types)
batching.primitive_batchers[_step] = _batched
ad.primitive_jvps[_step] = _differentiated
mlir.register_lowering(_step, _lowered_in_xla)
register_in_place(_step, _lowered, "cpu")
register_in_place(_step, _lowered_for_cuda, "cuda")

_norm = _number_primitive("portopt_norm", _norm_in_xla, ["in_xla"])
mlir.register_lowering(_norm, _norm_lowered, platform="cpu")
register_in_place(_norm, _norm_lowered_for_cuda, "cuda")

_total = _number_primitive("portopt_total", _total_in_xla, ["name", "program", "kinds", "in_xla"])
mlir.register_lowering(_total, _total_lowered, platform="cpu")
register_in_place(_total, _total_lowered_for_cuda, "cuda")
