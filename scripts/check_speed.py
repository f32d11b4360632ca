"""Check that what portopt promises to be fast is not half as fast as that.

    python scripts/check_speed.py --out build/results/speed.json

Each case is a piece of work of portopt's and what it is compared with, timed in turns in one process, in one thread. It fails if
portopt is not at least half as many times as fast as the target says, in none of several tries. Of each, the shortest sample
counts: other work on the machine is no failure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax  # noqa: TID253  # what is compared with
import jax.numpy as jnp  # noqa: TID253  # what is compared with
import numpy as np
import optax  # noqa: TID253  # what is compared with
import torch  # noqa: TID253  # what is compared with

import portopt
from portopt_tools.bench import measuring
from portopt_tools.bench.measuring import Step
from portopt_tools.bench.pure import adam_by_hand

TRIES, SAMPLES, SAMPLE_SECONDS = 4, 9, 0.01
SHARE = 0.5
"""Of the target, which is enough."""
FOUR = ((64, 32), (32,), (32, 10), (10,))
"""Shapes of the parameters of a small model."""


class Case(NamedTuple):
    """Something that must be fast.

    Attributes:
        name: what is printed.
        target: how many times as fast as the other portopt is to be.
        prepare: returns a function that does it once, and one that does what it is compared with.
        once: whether each function can be called once only, as what compiles.
    """

    name: str
    target: float
    prepare: Callable[[], tuple[Step, Step]]
    once: bool = False


def planned_steps_of_torch() -> tuple[Step, Step]:
    """`apply_` on four small tensors, and torch's fused Adam."""
    params, grads = ([torch.full(shape, 0.5) for shape in FOUR] for _ in range(2))
    return _in_place(params, grads), _torch_fused(grads)


def planned_steps_of_numpy() -> tuple[Step, Step]:
    """`apply_` on four small NumPy arrays, and torch's fused Adam on such tensors."""
    params, grads = ([np.full(shape, 0.5, np.float32) for shape in FOUR] for _ in range(2))
    return _in_place(params, grads), _torch_fused([torch.full(shape, 0.5) for shape in FOUR])


def planned_steps_on_many_tensors() -> tuple[Step, Step]:
    """`apply_` on a thousand small tensors, and torch's fused Adam."""
    params, grads = ([torch.full((256,), 0.5) for _ in range(1000)] for _ in range(2))
    return _in_place(params, grads), _torch_fused(grads)


def pure_steps_of_numpy() -> tuple[Step, Step]:
    """`apply` on four small NumPy arrays, and Adam written in NumPy's operations."""
    params, grads = ([np.full(shape, 0.5, np.float32) for shape in FOUR] for _ in range(2))
    slots = [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params]

    def by_hand() -> None:
        nonlocal params, slots
        new = [adam_by_hand(*arrays, 1) for arrays in zip(params, grads, *slots, strict=True)]
        params, slots = [p for p, _, _ in new], ([m for _, m, _ in new], [v for _, _, v in new])

    return _pure(list(params), grads), by_hand


def pure_steps_of_torch() -> tuple[Step, Step]:
    """`apply` on four small tensors, and torch's fused Adam."""
    params, grads = ([torch.full(shape, 0.5) for shape in FOUR] for _ in range(2))
    return _pure(params, grads), _torch_fused(grads)


def pure_steps_on_many_arrays() -> tuple[Step, Step]:
    """`apply` on 200 small NumPy arrays, and copying parameters and slots."""
    params, grads = ([np.full((20, 30), 0.5, np.float32) for _ in range(200)] for _ in range(2))
    copies = [params, params, params]

    def copy() -> None:
        nonlocal copies
        copies = [[array.copy() for array in arrays] for arrays in copies]

    return _pure(params, grads), copy


def clipped_steps_of_jax() -> tuple[Step, Step]:
    """A clipped step on four small arrays under a jit that is donated parameters and state, and optax's."""
    ours, other = _clipped()
    return tuple(
        _carried(jax.jit(step, donate_argnums=(0, 2)), _small_arrays(), state) for step, state in (ours, other)
    )  # type: ignore[return-value]  # two


def eager_steps_of_jax() -> tuple[Step, Step]:
    """A step on four small arrays, and the same step jitted."""
    optimizer = portopt.Adam()
    state = optimizer.init(_small_arrays())
    return _carried(optimizer.apply, _small_arrays(), state), _carried(jax.jit(optimizer.apply), _small_arrays(), state)


def compiling_of_jax() -> tuple[Step, Step]:
    """Compiling a clipped step of 300 arrays, and optax's."""
    arrays = [jnp.full((16, 16), 0.5) for _ in range(300)]
    return tuple(
        lambda step=step, state=state: jax.jit(step).lower(arrays, arrays, state).compile()
        for step, state in _clipped(arrays)
    )  # type: ignore[return-value]  # two


CASES = (
    Case("apply, 4 NumPy arrays, against Adam written in NumPy", 2.5, pure_steps_of_numpy),
    Case("apply, 4 tensors, against torch fused", 2.0, pure_steps_of_torch),
    Case("apply, 200 NumPy arrays, against copying parameters and slots", 1 / 1.2, pure_steps_on_many_arrays),
    Case("apply_, 4 tensors, against torch fused", 4.5, planned_steps_of_torch),
    Case("apply_, 4 NumPy arrays, against torch fused", 9.0, planned_steps_of_numpy),
    Case("apply_, 1000 tensors, against torch fused", 8.0, planned_steps_on_many_tensors),
    Case("JAX: clipped jitted step, 4 arrays, against optax", 1.0, clipped_steps_of_jax),
    Case("JAX: eager step, 4 arrays, against the jitted one", 1 / 1.3, eager_steps_of_jax),
    Case("JAX: compiling a clipped step of 300 arrays, against optax", 1.0, compiling_of_jax, once=True),
)


def _in_place(params: Sequence[object], grads: Sequence[object]) -> Step:
    optimizer = portopt.Adam()
    state = optimizer.init(params)

    def step() -> None:
        nonlocal state
        state = optimizer.apply_(params, grads, state)

    return step


def _pure(params: object, grads: object) -> Step:
    optimizer = portopt.Adam()
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.apply(params, grads, state)

    return step


def _torch_fused(grads: Sequence[torch.Tensor]) -> Step:
    params = [torch.nn.Parameter(torch.full_like(grad, 0.5)) for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    step: Step = torch.optim.Adam(params, fused=True).step
    return step


def _small_arrays() -> list[Any]:
    return [jnp.full(shape, 0.5) for shape in FOUR]


def _clipped(params: Sequence[Any] | None = None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return a clipped step of Adam and its state, of portopt and of optax."""
    params = _small_arrays() if params is None else params
    optimizer, other = portopt.Adam(clipnorm=1.0), optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    def step(params: Any, grads: Any, state: Any) -> tuple[Any, Any]:
        updates, state = other.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return (lambda *arguments: optimizer.apply(*arguments), optimizer.init(params)), (step, other.init(params))


def _carried(step: Any, params: Any, state: Any) -> Step:
    grads = jax.tree.map(jnp.copy, params)

    def run() -> None:
        nonlocal params, state
        params, state = step(params, grads, state)
        jax.block_until_ready(params)  # type: ignore[no-untyped-call]  # as JAX has it

    return run


def ratio(case: Case, tries: int = TRIES) -> float:
    """Return how many times as fast as the other portopt was, in the first try in which that was enough, else in the best."""
    best = 0.0
    pair = None if case.once else case.prepare()
    counts = [1, 1] if pair is None else [measuring.steps_per_sample(step, SAMPLE_SECONDS) for step in pair]
    for _ in range(tries):
        samples = measuring.alternate(pair or case.prepare(), counts, 1 if case.once else SAMPLES, lambda: None)
        ours, other = map(min, samples)
        best = max(best, other / ours if ours else math.inf)
        if best >= SHARE * case.target:
            break
    return best


def check(cases: Sequence[Case]) -> list[dict[str, object]]:
    """Print a line for each case, and return what was found."""
    found: list[dict[str, object]] = []
    for case in cases:
        reached = ratio(case)
        passed = reached >= SHARE * case.target
        print(
            f"{'passed' if passed else 'FAILED'}  {case.name}: {reached:.2f} times as fast; the target is {case.target:g}, "
            f"{SHARE * case.target:g} is enough",
            flush=True,
        )
        found.append({"name": case.name, "ratio": reached, "target": case.target, "passed": passed})
    return found


def main(arguments: Sequence[str], cases: Sequence[Case] = CASES) -> int:
    """Return the exit status: 1 if a case fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="the file for the results, as JSON")
    out: Path | None = parser.parse_args(arguments).out
    # torch's other threads, which small tensors hardly need, wait for a processor where there is other work.
    torch.set_num_threads(1)
    found = check(cases)
    failed = sum(not case["passed"] for case in found)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        result = {"passed": len(found) - failed, "failed": failed, "cases": found}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
