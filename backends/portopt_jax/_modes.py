"""Ways to execute steps under JAX's transformations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from portopt.backend import INTERPRETED, PURE, Mode, Step
from portopt.optimizer import OptimizerState
from portopt_jax._kernel import without_kernels

if TYPE_CHECKING:
    from portopt.optimizer import Optimizer


def _jitted(optimizer: Optimizer) -> Step:
    step: Step = jax.jit(optimizer.apply)
    return step


def _donated(optimizer: Optimizer) -> Step:
    step: Step = jax.jit(optimizer.apply, donate_argnums=(0, 2))
    return step


def _in_xla(optimizer: Optimizer) -> Step:
    def step(*arguments: Any, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        with without_kernels():
            return optimizer.apply(*arguments, **hyperparameters)

    jitted: Step = jax.jit(step)
    return jitted


def _scan(
    optimizer: Optimizer, params: Any, gradients: Sequence[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    def step(carry: tuple[Any, OptimizerState], grads: Any) -> tuple[tuple[Any, OptimizerState], None]:
        return optimizer.apply(carry[0], grads, carry[1]), None

    scan = jax.jit(lambda carry, grads: jax.lax.scan(step, carry, grads))
    (params, state), _ = scan((params, state), _stacked(gradients))
    return params, state


def _scan_differentiated(
    optimizer: Optimizer, params: Any, gradients: Sequence[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    """Do the steps while JAX derives a function of their result, forgetting what it can compute again."""

    def steps(params: Any, stacked: Any) -> tuple[Any, tuple[Any, OptimizerState]]:
        @jax.checkpoint
        def step(carry: tuple[Any, OptimizerState], grads: Any) -> tuple[tuple[Any, OptimizerState], None]:
            return optimizer.apply(carry[0], grads, carry[1]), None

        result, _ = jax.lax.scan(step, (params, state), stacked)
        return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree_util.tree_leaves(result[0])), result

    both = jax.jit(jax.grad(steps, argnums=(0, 1), has_aux=True))
    derivatives, (params, state) = both(params, _stacked(gradients))
    _check_finite(derivatives)
    return params, state


def _scan_with_tangents(
    optimizer: Optimizer, params: Any, gradients: Sequence[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    """Do the steps while JAX computes forward derivatives of their result."""

    def steps(params: Any, stacked: Any) -> tuple[Any, OptimizerState]:
        def step(carry: tuple[Any, OptimizerState], grads: Any) -> tuple[tuple[Any, OptimizerState], None]:
            return optimizer.apply(carry[0], grads, carry[1]), None

        result, _ = jax.lax.scan(step, (params, state), stacked)
        return result

    @jax.jit
    def both(params: Any, stacked: Any) -> tuple[Any, Any]:
        return jax.jvp(steps, (params, stacked), (params, stacked))

    result, tangents = both(params, _stacked(gradients))
    _check_finite(tangents[0])
    return result  # type: ignore[no-any-return]  # as `steps` returns it


def _stacked(gradients: Sequence[Any]) -> Any:
    return jax.tree_util.tree_map(lambda *steps: jnp.stack(steps), *gradients)


def _check_finite(derivatives: Any) -> None:
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree_util.tree_leaves(derivatives)):
        raise ArithmeticError(f"a derivative is not finite: {derivatives}")


def _in_shard_map(optimizer: Optimizer) -> Step:
    """Return a step of the one device of a mesh, to which JAX applies its checks for several.

    Numbers that a rule computes from arrays, of one parameter or in its totals, are each device's own: they leave with an axis
    for the devices.
    """
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("devices")  # type: ignore[no-untyped-call]  # as JAX has it
    same = jax.sharding.PartitionSpec()  # type: ignore[no-untyped-call]  # as JAX has it
    own = {} if optimizer.totals is None else optimizer.scalar_slots

    def apply(params: Any, grads: Any, state: OptimizerState) -> tuple[Any, OptimizerState]:
        params, state = optimizer.apply(params, grads, state)
        return params, _by_slot(lambda name, x: x[None] if name in own or not x.ndim else x, state)

    def step(params: Any, grads: Any, state: OptimizerState) -> tuple[Any, OptimizerState]:
        given = _by_slot(lambda name, x: split if x.ndim and name not in optimizer.scalar_slots else same, state)
        found = {name: same if name in optimizer.scalar_slots and name not in own else split for name in state.slots}
        part = jax.shard_map(
            apply,
            mesh=mesh,
            in_specs=(split, split, given._replace(step=same)),
            out_specs=(split, OptimizerState(same, found)),
        )
        params, new = part(params, grads, state)
        return params, new._replace(
            slots=jax.tree_util.tree_map(lambda x, old: x.reshape(old.shape), new.slots, state.slots)
        )

    jitted: Step = jax.jit(step)
    return jitted


def _by_slot(function: Callable[[str, Any], Any], state: OptimizerState) -> OptimizerState:
    """Return a state with what a function makes of each array of its slots, given the slot's name."""
    slots = {
        name: jax.tree_util.tree_map(functools.partial(function, name), slot) for name, slot in state.slots.items()
    }
    return state._replace(slots=slots)


def _pairs(
    optimizer: Optimizer, params: Any, gradients: Sequence[Any], state: OptimizerState
) -> tuple[Any, OptimizerState]:
    """Do two steps inside one jit, where XLA may look from the first into the second."""

    @jax.jit
    def two(params: Any, first: Any, second: Any, state: OptimizerState) -> tuple[Any, OptimizerState]:
        with without_kernels():
            params, state = optimizer.apply(params, first, state)
            return optimizer.apply(params, second, state)

    for first, second in zip(gradients[::2], gradients[1::2], strict=False):
        params, state = two(params, first, second, state)
    return _in_xla(optimizer)(params, gradients[-1], state) if len(gradients) % 2 else (params, state)


def _vmapped(optimizer: Optimizer) -> Step:
    """Return a step over two lanes: the given arrays, and the same ones reversed."""

    def lanes(tree: Any) -> Any:
        return jax.tree_util.tree_map(lambda x: jnp.stack([x, jnp.flip(x)]), tree)

    def one(p: Any, g: Any, arrays: Any, scalars: Any, step: Any, hyperparameters: Any) -> tuple[Any, OptimizerState]:
        return optimizer.apply(p, g, OptimizerState(step, {**scalars, **arrays}), **hyperparameters)

    both = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None, None, None)))

    def step(params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> tuple[Any, OptimizerState]:
        scalars = {name: state.slots[name] for name in optimizer.scalar_slots}
        arrays = {name: slot for name, slot in state.slots.items() if name not in scalars}
        result = both(lanes(params), lanes(grads), lanes(arrays), scalars, state.step, hyperparameters)
        first: tuple[Any, OptimizerState] = jax.tree_util.tree_map(lambda x: x[0], result)
        return first

    return step


MODES: Mapping[str, Mode] = {
    "eager": Mode("eager", PURE.step, compiled=True),
    "interpreted": INTERPRETED,
    "jit": Mode("jit", _jitted, compiled=True),
    "scan": Mode("scan", _jitted, run=_scan, compiled=True),
}

EXTRA_MODES: Mapping[str, Mode] = {
    "donated": Mode("donated", _donated, compiled=True),
    "in XLA": Mode("in XLA", _in_xla, compiled=True, without_kernels=True),
    "grad": Mode("grad", _jitted, run=_scan_differentiated, compiled=True),
    "jvp": Mode("jvp", _jitted, run=_scan_with_tangents, compiled=True),
    "pairs": Mode("pairs", _in_xla, run=_pairs, compiled=True),
    "shard_map": Mode("shard_map", _in_shard_map, compiled=True),
    "vmap": Mode("vmap", _vmapped, compiled=True),
}
