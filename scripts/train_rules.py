"""Train small models with each rule and with optax's own optimizer of it, and write the losses into docs/trainings.md.

Usage: python scripts/train_rules.py [RULE ...], rules without which the table is left as it is; all if none is named.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import portopt
from portopt.interchange.frameworks import get_framework
from portopt.interchange.nearest import counterpart_of
from portopt_tools.compare import digits

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "trainings.md"
START, END = "<!-- trainings -->", "<!-- /trainings -->"
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Learning rates that are tried; the one with the lowest loss at the end counts."""
SEED = 0

Loss = Callable[[Any, Any], Any]
Start = Callable[[Any], Any]
Step = Callable[[Any, Any, Any, Any, Any], Any]
Evaluated = Callable[[Any, Any], Any]
LossAt = Callable[[float], float]


class Task(NamedTuple):
    """What is trained.

    Attributes:
        parameters: those at first.
        batches: the data of each step, stacked.
        loss: of parameters and the data of a step.
        whole: the data by which the end is judged.
    """

    parameters: Any
    batches: Any
    loss: Loss
    whole: Any


@functools.cache
def handwritten_digits() -> Task:
    """Return a perceptron, 64-32-10, on scikit-learn's handwritten digits: ten epochs in batches of 32."""
    data = digits.load_digits(SEED)
    bias, kernel, output_bias, output_kernel = map(jnp.asarray, digits.initial_parameters(SEED, "float32"))
    images, labels = jnp.asarray(data.train_images, jnp.float32), jnp.asarray(data.train_labels)
    rows = digits.batches(SEED, len(images), 32, 10)

    def loss(p: Any, batch: Any) -> Any:
        x, y = batch
        hidden = jax.nn.relu(x @ p["kernel"] + p["bias"])
        scores = hidden @ p["output_kernel"] + p["output_bias"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, y))

    parameters = {"bias": bias, "kernel": kernel, "output_bias": output_bias, "output_kernel": output_kernel}
    return Task(parameters, (images[rows], labels[rows]), loss, (images, labels))


@functools.cache
def characters() -> Task:
    """Return a transformer of one block that predicts the next character of this package's license: 300 steps of 16 lines."""
    width, heads, length, steps, lines = 32, 4, 32, 300, 16
    text = np.frombuffer((ROOT / "LICENSE").read_bytes(), np.uint8)
    known, codes = np.unique(text, return_inverse=True)
    random = np.random.default_rng(SEED)

    def normal(*shape: int) -> Any:
        return jnp.asarray(random.normal(0, 1 / np.sqrt(shape[0]), shape), jnp.float32)

    parameters = {
        "embedding": normal(len(known), width) * 2,
        "position": normal(length, width),
        "attention": normal(width, 3 * width),
        "projection": normal(width, width),
        "expansion": normal(width, 4 * width),
        "expansion_bias": jnp.zeros(4 * width),
        "contraction": normal(4 * width, width),
        "scale": jnp.ones((2, width)),
        "output": normal(width, len(known)),
    }

    def normalized(x: Any, scale: Any) -> Any:
        return scale * x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)

    def loss(p: Any, batch: Any) -> Any:
        x = p["embedding"][batch[:, :-1]] + p["position"]
        q, k, v = jnp.split(normalized(x, p["scale"][0]) @ p["attention"], 3, axis=-1)
        q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in (q, k, v))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["projection"]
        hidden = jax.nn.relu(normalized(x, p["scale"][1]) @ p["expansion"] + p["expansion_bias"])
        scores = (x + hidden @ p["contraction"]) @ p["output"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch[:, 1:]))

    starts = random.integers(0, len(codes) - length - 1, (steps, lines))
    windows = jnp.asarray(codes[starts[..., None] + np.arange(length + 1)])
    whole = np.arange(0, len(codes) - length - 1, length)
    return Task(parameters, windows, loss, jnp.asarray(codes[whole[:, None] + np.arange(length + 1)]))


TASKS = {"digits": handwritten_digits, "characters": characters}


def trained(task: Task, start: Start, step: Step, evaluated: Evaluated = lambda params, state: params) -> LossAt:
    """Return a function of the learning rate that gives the loss at the end.

    Args:
        task: what is trained.
        start: makes parameters as the optimizer has them, and its state.
        step: makes both after a step, of both, the loss of this step, the learning rate and a random key.
        evaluated: makes the parameters that the loss at the end is of.
    """

    def run(rate: Any) -> Any:
        def one(carry: Any, given: Any) -> Any:
            (params, state), (batch, key) = carry, given
            return step(params, state, lambda p: task.loss(p, batch), rate, key), None

        keys = jax.random.split(jax.random.key(SEED), len(jax.tree.leaves(task.batches)[0]))
        end, _ = jax.lax.scan(one, start(task.parameters), (task.batches, keys))
        return task.loss(evaluated(*end), task.whole)

    compiled = jax.jit(run)
    return lambda rate: float(compiled(rate))


def of_portopt(task: Task, opt: portopt.Optimizer) -> LossAt:
    def start(params: Any) -> Any:
        state = opt.init(params)
        return params, state._replace(step=jnp.asarray(state.step, jnp.int32))

    def step(params: Any, state: Any, loss: Any, rate: Any, key: Any) -> Any:
        gradient = jax.grad(loss)
        inputs = {"hessian": hessian_diagonal(gradient, params, key)} if "hessian" in type(opt).inputs else {}
        return opt.apply(params, gradient(params), state, learning_rate=rate, **inputs)

    def evaluated(params: Any, state: Any) -> Any:
        if isinstance(opt, portopt.ScheduleFree):
            return opt.evaluation_params(params, state)
        return state.slots["slow"] if isinstance(opt, portopt.Lookahead) else params

    return trained(task, start, step, evaluated)


def hessian_diagonal(gradient: Callable[[Any], Any], params: Any, key: Any) -> Any:
    """Return Hutchinson's estimate: with random signs `u`, `u` times the derivative of the gradient along `u`."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    signs = jax.tree.unflatten(
        structure, [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )
    _, along = jax.jvp(gradient, (params,), (signs,))
    return jax.tree.map(jnp.multiply, signs, along)


def of_optax(task: Task, opt: portopt.Optimizer) -> LossAt | None:
    """Return the same with optax's optimizer; None if it has none with the formula."""
    match opt:
        case portopt.ScheduleFree(beta=beta, inner=portopt.AdamW(beta_2=beta_2)):
            adamw = functools.partial(optax.contrib.schedule_free_adamw, b1=beta, b2=beta_2, weight_decay=0.0)
            return with_optax(task, adamw, evaluated=lambda p, state: optax.contrib.schedule_free_eval_params(state, p))
        case portopt.Lookahead(sync_period=period, slow_step_size=size):
            return with_optax(
                task,
                lambda rate: optax.lookahead(optax.adam(rate), int(period), size),
                held=optax.LookaheadParams.init_synced,
                current=lambda params: params.fast,
                evaluated=lambda params, state: params.slow,
            )
        case portopt.Adafactor():
            return with_optax(task, optax.adafactor)
        case portopt.Muon():
            return with_optax(task, optax.contrib.muon)
        case portopt.NoisySGD():
            return with_optax(task, functools.partial(optax.noisy_sgd, seed=SEED))
        case portopt.SophiaG():
            return with_optax(task, functools.partial(optax.contrib.sophia, update_interval=1), asks="obj_fn")
        case _ if opt.dialects() and opt.dialect != "optax":  # type: ignore[attr-defined]  # rules with dialects have it
            return None
    found = counterpart_of(get_framework("optax"), opt)
    if found is None:
        return None
    return with_optax(task, lambda rate: found.factory(**{**found.arguments, found.learning_rate: rate}))


def with_optax(
    task: Task,
    make: Callable[[float], Any],
    *,
    held: Callable[[Any], Any] = lambda params: params,
    current: Callable[[Any], Any] = lambda params: params,
    evaluated: Evaluated = lambda params, state: params,
    asks: str | None = None,
) -> LossAt:
    """Return the loss at the end with one of optax's transformations.

    Args:
        task: what is trained.
        make: the transformation, of the learning rate.
        held: the parameters as the transformation wants them.
        current: those of them at which gradients are taken.
        evaluated: see `trained`.
        asks: the name of the argument of an update that is the loss.
    """

    def loss_at(rate: float) -> float:
        transformation = make(rate)

        def step(params: Any, state: Any, loss: Any, _: Any, __: Any) -> Any:
            more = {} if asks is None else {asks: loss}
            updates, state = transformation.update(jax.grad(loss)(current(params)), state, params, **more)
            return optax.apply_updates(params, updates), state

        def start(params: Any) -> Any:
            return held(params), transformation.init(held(params))

        return trained(task, start, step, evaluated)(rate)

    return loss_at


def in_optax(rule: type[portopt.Optimizer]) -> portopt.Optimizer:
    """Return a rule with its defaults, and it and what is in it in the dialect optax if it has that."""
    if issubclass(rule, portopt.ScheduleFree):
        return rule(portopt.AdamW(dialect="optax", beta_1=0.0, weight_decay=0.0))
    if issubclass(rule, portopt.Lookahead):
        return rule(portopt.Adam(dialect="optax"))
    return rule(**({"dialect": "optax"} if "optax" in rule.dialects() else {}))


def row(rule: type[portopt.Optimizer]) -> str:
    """Return the line of the table about a rule."""
    opt = in_optax(rule)
    cells = [f"`{rule.__name__}`"]
    for make in TASKS.values():
        task = make()
        ours, theirs = of_portopt(task, opt), of_optax(task, opt)
        loss, rate = min((loss, rate) for rate in RATES if np.isfinite(loss := ours(rate)))
        cells += [f"{rate:g}", f"{loss:.4f}", "–" if theirs is None else f"{theirs(rate):.4f}"]
    return f"| {' | '.join(cells)} |"


def main(names: Sequence[str]) -> None:
    chosen = [rule for rule in portopt.RULES if not names or rule.__name__ in names]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    old, _, after = rest.partition(END)
    head = ["rule", *(f"{name}: {what}" for name in TASKS for what in ("rate", "loss", "optax's"))]
    rows = {line.split("`")[1]: line for line in old.splitlines() if line.startswith("| `")}
    for rule in chosen:
        rows[rule.__name__] = row(rule)
        print(rows[rule.__name__], flush=True)
    order = [rule.__name__ for rule in portopt.RULES]
    lines = [rows[name] for name in order if name in rows]
    table = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}", *lines]
    PAGE.write_text(f"{before}{START}\n" + "\n".join(table) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
