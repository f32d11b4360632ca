"""portopt's optimizers as optax transformations.

optax adds updates to parameters, so the transformation returns updates u with `p + u = q`, for the old parameter p and the new
one q. There is not such a u for any p and q; where there is none, u is the rounded difference. `step` returns q itself.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from portopt.hyperparameters import Alias, is_array, unknown_argument
from portopt.optimizer import Optimizer, OptimizerState
from portopt_jax._backend import backend, register_for_export

_LARGEST_COUNT = 2**31 - 1


class PortoptState(NamedTuple):
    """What a transformation of `to_optax` carries from step to step; all its leaves are arrays.

    Attributes:
        count: number of finished steps, int32 of shape (); it stays at the largest int32 once it is there.
        slots: slot name to a tree shaped like the parameters; a scalar of the state is two uint32 words that hold a float64.
    """

    count: Any
    slots: dict[str, Any]


register_for_export(PortoptState)


class _CarryingState(NamedTuple):
    """A `PortoptState` inside of `step`, with what the last update turned the parameters into.

    It goes through whatever surrounds the transformation, conditions and accumulation included, as any state does.
    """

    count: Any
    slots: dict[str, Any]
    parameters: Any
    updates: Any


_carrying: ContextVar[bool] = ContextVar("portopt_jax_carrying", default=False)


@contextlib.contextmanager
def _init_carries() -> Iterator[None]:
    token = _carrying.set(True)
    try:
        yield
    finally:
        _carrying.reset(token)


def to_optax(
    optimizer: Optimizer, *, slot_dtype: str | None = None, update_dtype: str | None = None, **hyperparameters: Any
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer as an optax transformation.

    Its updates are differences of parameters, so it goes last in an `optax.chain`, and `update` needs `params`. An extra
    argument of `update` that is the name of a numeric hyperparameter is its value for this step, and one that is the name of a
    further input of the rule, such as `hessian`, is that tree, in the structure of the parameters; others are ignored.

    Args:
        optimizer: any portopt optimizer.
        slot_dtype: dtype of the slots, as in `Optimizer.init`.
        update_dtype: `"float32"` gives float32 updates for float16 and bfloat16 parameters, which need them to get all bits from
            `optax.apply_updates`; by default updates have the parameter's dtype.
        **hyperparameters: values of numeric hyperparameters in place of the optimizer's own: Python numbers or 0-d arrays,
            traced ones too, and for the learning rate a schedule of portopt. None stands for the optimizer's own.

    Raises:
        TypeError: `optimizer` is no portopt optimizer, or a hyperparameter is unknown.
        ValueError: a hyperparameter is outside its range, or `update_dtype` is not one of those above.

    Example:
        >>> import jax.numpy as jnp, optax, portopt, portopt_jax
        >>> tx = portopt_jax.to_optax(portopt.SGD(learning_rate=0.5))
        >>> params = jnp.asarray([1.0, 2.0])
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.asarray([1.0, 1.0]), state, params)
        >>> optax.apply_updates(params, updates).tolist(), int(state.count)
        ([0.5, 1.5], 1)
        >>> updates, state = tx.update(jnp.asarray([1.0, 1.0]), state, params, learning_rate=0.25)
        >>> updates.tolist()
        [-0.25, -0.25]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"to_optax takes an optimizer such as portopt.Adam(), but {optimizer!r} of type {type(optimizer).__name__} was given"
        )
    if update_dtype not in (None, "float32"):
        raise ValueError(
            f"to_optax update_dtype must be None, for the dtype of each parameter, or 'float32', but {update_dtype!r} was given"
        )
    names = _hyperparameter_names(optimizer)
    own = _given(optimizer, names, hyperparameters)
    arrays = {name: value for name, value in own.items() if is_array(value)}
    known = {name: value for name, value in own.items() if name not in arrays}
    rule = optimizer.replace(**known) if known else optimizer

    def init(params: Any) -> PortoptState | _CarryingState:
        params = _arrays(params, "params")
        slots = rule.init(params, slot_dtype=slot_dtype).slots if _has_arrays(params) else _empty_slots(rule, params)
        count = jnp.zeros((), jnp.int32)
        if _carrying.get():
            updates = jax.tree.map(lambda p: jnp.zeros_like(p, _update_dtype(p, update_dtype)), params)
            return _CarryingState(count, slots, params, updates)
        return PortoptState(count, slots)

    def update(grads: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        _check_state(rule, state)
        if params is None:
            raise ValueError(
                f"the updates of {type(rule).__name__} are new parameters less old ones, so it needs the old ones: "
                "tx.update(grads, state, params)"
            )
        values = {names[name]: value for name, value in extra_args.items() if name in names and value is not None}
        finished = jnp.minimum(state.count, _LARGEST_COUNT - 1)
        if not _has_arrays(params):
            return grads, state._replace(count=finished + 1)
        params, grads = _arrays(params, "params"), _arrays(grads, "grads")
        values |= {n: _arrays(extra_args[n], n) for n in rule.inputs if extra_args.get(n) is not None}
        slots = jax.tree.map(jnp.asarray, state.slots)
        new, after = rule.apply(params, grads, OptimizerState(finished, slots), **{**arrays, **values})
        updates = _differences(params, new, grads, update_dtype)
        state = state._replace(count=finished + 1, slots=after.slots)
        return updates, state._replace(parameters=new, updates=updates) if isinstance(state, _CarryingState) else state

    return optax.GradientTransformationExtraArgs(init, update)


def optax_factory(optimizer: Optimizer) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """Return a function of the hyperparameters of `optimizer` that `optax.inject_hyperparams` takes.

    Its parameters are the numeric hyperparameters, `learning_rate` first. One that is not given keeps the optimizer's value,
    in float64; one that is given becomes an array in the dtype of the parameters, as optax has it.

    Example:
        >>> import jax.numpy as jnp, optax, portopt, portopt_jax
        >>> adam = optax.inject_hyperparams(portopt_jax.optax_factory(portopt.Adam(beta_1=0.8)))
        >>> tx = adam(learning_rate=optax.linear_schedule(0.5, 0.0, 10))
        >>> params = jnp.asarray([1.0, 2.0])
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> state.hyperparams["learning_rate"].item()
        0.5
    """
    names = _hyperparameter_names(optimizer)

    def factory(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        return to_optax(optimizer, **signature.bind(*args, **kwargs).arguments)

    kinds = inspect.Parameter
    parameters = [
        kinds(name, kinds.POSITIONAL_OR_KEYWORD if name == "learning_rate" else kinds.KEYWORD_ONLY, default=None)
        for name in names
    ]
    parameters.sort(key=lambda parameter: parameter.kind)
    signature = factory.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks for
    factory.__name__ = factory.__qualname__ = type(optimizer).__name__
    return factory


def step(tx: Any, params: Any, grads: Any, state: Any, **extra_args: Any) -> tuple[Any, Any]:
    """Do one step of a transformation that contains `to_optax`; return parameters and state.

    In place of `tx.update` and `optax.apply_updates`. Where the update that leaves `tx` is the one that the portopt optimizer
    made, the new parameter has the bits of `Optimizer.apply`; elsewhere it is the sum of parameter and update. It works through
    `chain`, `masked`, `partition`, `inject_hyperparams`, `MultiSteps` and `apply_if_finite`.

    Args:
        tx: `to_optax(...)`, or a transformation made of it.
        params: the parameters before the step.
        grads: gradients in the same structure.
        state: what `tx.init` or the previous step returned.
        **extra_args: extra arguments of `tx.update`.

    Raises:
        ValueError: there is no portopt optimizer in `tx`, or it does not see parameters in the shape of `params`.

    Example:
        >>> import jax.numpy as jnp, optax, portopt, portopt_jax
        >>> tx = optax.chain(optax.clip_by_global_norm(1.0), portopt_jax.to_optax(portopt.Adam()))
        >>> params = {"w": jnp.asarray([1.0, 2.0])}
        >>> params, state = portopt_jax.step(tx, params, {"w": jnp.asarray([3.0, 4.0])}, tx.init(params))
        >>> params["w"].tolist()
        [0.9990000128746033, 1.9989999532699585]
    """
    params = _arrays(params, "params")
    nodes, definition = jax.tree.flatten(state, is_leaf=_is_ours)
    with _init_carries():
        models = jax.tree.leaves(jax.eval_shape(tx.init, params), is_leaf=_is_ours)
    if not any(map(_is_ours, nodes)):
        raise ValueError(
            "the state given to step holds no state of a portopt optimizer: give the transformation made with "
            "portopt_jax.to_optax and its own state, or use tx.update and optax.apply_updates"
        )
    if len(models) != len(nodes) or any(_is_ours(m) != _is_ours(n) for m, n in zip(models, nodes, strict=True)):
        raise ValueError("the state given to step is not one of this transformation: start from tx.init(params)")
    carrying = [_carry(n, m, params) if _is_ours(n) else n for n, m in zip(nodes, models, strict=True)]
    updates, after = tx.update(grads, jax.tree.unflatten(definition, carrying), params, **extra_args)
    new = jax.tree.map(_add, params, updates, is_leaf=lambda x: x is None)
    nodes, definition = jax.tree.flatten(after, is_leaf=_is_ours)
    for i, node in enumerate(nodes):
        if isinstance(node, _CarryingState):
            new = jax.tree.map(_choose, node.parameters, node.updates, new, updates, is_leaf=_is_absent)
            nodes[i] = PortoptState(node.count, node.slots)
    return new, jax.tree.unflatten(definition, nodes)


def _hyperparameter_names(optimizer: Optimizer) -> dict[str, str]:
    """Map the name of each numeric hyperparameter, and each other name of it alone, to its own name."""
    numeric = optimizer.numeric_hyperparameters()
    aliases = {
        name: value.targets[0]
        for name in dir(type(optimizer))
        if isinstance(value := getattr(type(optimizer), name), Alias)
        and value.targets[1:] == ()
        and value.dialect is None
    }
    own = {name: name for name in sorted(numeric, key=lambda name: name != "learning_rate")}
    return {**own, **{name: target for name, target in aliases.items() if target in numeric}}


def _given(optimizer: Optimizer, names: Mapping[str, str], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in hyperparameters.items():
        if name not in names:
            raise unknown_argument(f"to_optax({type(optimizer).__name__})", name, names)
        if value is None:
            continue
        if names[name] in given:
            raise TypeError(f"to_optax was given {name!r} and another name of it at once; give only one of them")
        given[names[name]] = value
    return given


def _check_state(optimizer: Optimizer, state: Any) -> None:
    if not isinstance(state, PortoptState | _CarryingState):
        raise TypeError(
            f"the state of {type(optimizer).__name__} must be the PortoptState that tx.init or the previous step returned, but "
            f"{type(state).__name__} was given"
        )


def _arrays(tree: Any, name: str) -> Any:
    """Return a tree of JAX arrays, given one of those, NumPy arrays or Python numbers."""

    def array(path: Any, leaf: Any) -> Any:
        try:
            return jnp.asarray(leaf)
        except TypeError:
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {leaf!r:.80} of type {type(leaf).__name__}, which is no array; leave it "
                "out, or put None in its place"
            ) from None

    return jax.tree_util.tree_map_with_path(array, tree)


def _has_arrays(tree: Any) -> bool:
    return bool(jax.tree.leaves(tree))


def _empty_slots(optimizer: Optimizer, params: Any) -> dict[str, Any]:
    """Return the slots of a tree without arrays, such as the part of a masked tree that is all masked."""
    scalars = {name: backend.stored_scalar(value) for name, value in optimizer.scalar_slots.items()}
    return {**scalars, **dict.fromkeys(map(str, optimizer.slots), params)}


def _update_dtype(p: Any, wanted: str | None) -> Any:
    return jnp.dtype(wanted) if wanted is not None and p.dtype.itemsize < jnp.dtype(wanted).itemsize else p.dtype


@functools.partial(jax.jit, static_argnums=3)
def _differences(params: Any, new: Any, grads: Any, wanted: str | None) -> Any:
    def difference(p: Any, q: Any, g: Any) -> Any:
        return None if g is None else _difference(q, p, _update_dtype(p, wanted))

    return jax.tree.map(difference, params, new, grads, is_leaf=lambda x: x is None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _difference(q: Any, p: Any, dtype: Any) -> Any:
    """Return an update u with `p + u = q` in the dtype of p, if there is one, else the difference, rounded to `dtype`.

    If the rounded difference is no such u, a neighbour of it can be: q is a power of two then, and the sum a tie. Where p is
    already q, the update is the zero that also leaves -0 and infinities as they are.
    """
    wide = q.astype(dtype) - p.astype(dtype)
    reached = _add(p, wide)
    toward = jnp.where(reached < q, jnp.inf, -jnp.inf).astype(dtype)
    neighbour = jnp.nextafter(wide, toward)
    u = jnp.where((reached != q) & (_add(p, neighbour) == q), neighbour, wide)
    same = (q == p) & (jnp.signbit(q) == jnp.signbit(p))
    return jnp.where(same, jnp.copysign(jnp.zeros_like(p), p).astype(dtype), u)


@_difference.defjvp
def _difference_jvp(dtype: Any, primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    q, p = tangents
    return _difference(*primals, dtype), q.astype(dtype) - p.astype(dtype)


def _add(p: Any, u: Any) -> Any:
    if p is None or u is None:
        return p
    # Updates of another dtype are meant to be, whatever promotion the user's own code may do.
    with jax.numpy_dtype_promotion("standard"):
        return (p + u).astype(p.dtype)


def _choose(carried: Any, made: Any, new: Any, update: Any) -> Any:
    """Return the carried parameter where the update is the one that was made for it, else what there is."""
    if _is_absent(carried) or made is None or update is None:
        return new
    return jnp.where(update == made, carried, new)


def _carry(state: Any, model: Any, params: Any) -> _CarryingState:
    """Return a state in whose place `update` puts new parameters: as long as it does not, they are the old ones."""

    def placed(seen: Any, p: Any) -> Any:
        if _is_absent(seen):
            return seen
        if getattr(p, "shape", None) != seen.shape:
            raise ValueError(f"shape {getattr(p, 'shape', None)} of a parameter is seen as {seen.shape}")
        return p

    try:
        parameters = jax.tree.map(placed, model.parameters, params, is_leaf=_is_absent)
    except ValueError as error:
        raise ValueError(
            "step cannot follow this transformation, since the portopt optimizer in it sees other shapes or another structure "
            f"than that of params ({error}); use tx.update and optax.apply_updates"
        ) from error
    updates = jax.tree.map(lambda u, p: jnp.zeros_like(p, u.dtype), model.updates, parameters)
    return _CarryingState(state.count, state.slots, parameters, updates)


def _is_ours(x: object) -> bool:
    return isinstance(x, PortoptState | _CarryingState)


def _is_absent(x: object) -> bool:
    return x is None or isinstance(x, optax.MaskedNode)
