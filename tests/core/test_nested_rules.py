"""Rules made of rules: what belongs to the inner rule, under which names, in every library; and what is refused."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

import portopt


class Halved(portopt.Optimizer):
    """Does half of the step of another rule."""

    inner: portopt.Optimizer = portopt.rule(default=portopt.Adam())
    part: float = portopt.hyperparameter(default=0.5, at_least=0)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        whole, inner = self.inner.update(xp, p, g, slots.inner, c.inner)
        return p + self.part * (whole - p), {"inner": inner}


class Everything(portopt.Optimizer):
    """Has one of each kind of what a rule can have."""

    slots = ("m", portopt.slot("row", drop="rows", start=1e-3), portopt.slot("rate", shape=(), start="learning_rate"))
    scalar_slots: ClassVar[Mapping[str, float]] = {"largest": 0.0}
    inputs: ClassVar[tuple[str, ...]] = ("hessian",)

    def rows(self, p: Any) -> int:
        return p.ndim - 1  # type: ignore[no-any-return]  # an int

    def slots_for(self, p: Any) -> Any:
        return self.slots if p.ndim >= 2 else ("m", "rate")

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *, hessian: Any) -> Any:
        return {"size": xp.linalg.vector_norm(g)}

    def coefficients(self, t: Any, largest: Any, size: Any) -> Any:
        largest = portopt.scalars.maximum(largest, size)
        return {"lr": self.learning_rate_at(t) / (1 + largest), "largest": largest}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, *, hessian: Any) -> Any:
        m = 0.5 * slots.m + (g if hessian is None else g * hessian)
        new = {"m": m, "rate": slots.rate * 0.5}
        if p.ndim < 2:
            return p - c.lr * slots.rate * m, new
        row = slots.row + xp.sum(g * g, axis=-1, keepdims=True)
        return p - c.lr * slots.rate * m / xp.sqrt(row), {**new, "row": row}


class Pair(portopt.Optimizer):
    """The mean of two rules."""

    first: portopt.Optimizer = portopt.rule(default=portopt.SGD(0.1, momentum=0.9))
    second: portopt.Optimizer = portopt.rule(default=portopt.Nadam(0.01))

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        a, first = self.first.update(xp, p, g, slots.first, c.first)
        b, second = self.second.update(xp, p, g, slots.second, c.second)
        return 0.5 * a + 0.5 * b, {"first": first, "second": second}


def tree(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {n: random.normal(size=s).astype(np.float32) for n, s in {"a": (3, 4), "b": (5,)}.items()}


def words(*trees: Any) -> list[bytes]:
    return [np.asarray(a).tobytes() for t in trees for a in t.values() if a is not None]


def after_steps(
    optimizer: portopt.Optimizer,
    array: Callable[[Any], Any] = np.asarray,
    *,
    in_place: bool = False,
    jit: Callable[[Any], Any] | None = None,
) -> list[bytes]:
    params, grads = ({n: array(a.copy()) for n, a in tree(seed).items()} for seed in (1, 2))
    state, apply = optimizer.init(params), (jit or (lambda f: f))(optimizer.apply)
    for i in range(4):
        given: dict[str, Any] = {"hessian": grads} if i == 1 and optimizer.inputs else {}
        if in_place:
            state = optimizer.apply_(params, grads, state, **given)
        else:
            params, state = apply(params, grads, state, **given)
    return words(params, *(state.slots[name] for name in optimizer.slots))


RULES = [Halved(inner=portopt.SGD(0.1, momentum=0.9)), Pair(), Halved(inner=Halved(inner=Everything(0.1)), part=0.25)]
IDS = ["one", "two", "nested"]


@pytest.mark.parametrize("optimizer", RULES, ids=IDS)
def test_rules_of_rules_have_the_same_bits_interpreted_compiled_and_in_place(optimizer: portopt.Optimizer) -> None:
    with portopt.interpreted():
        expected = after_steps(optimizer)
    assert after_steps(optimizer) == expected
    assert after_steps(optimizer, in_place=True) == expected


@pytest.mark.needs("torch")
@pytest.mark.parametrize("optimizer", RULES, ids=IDS)
def test_torch_has_the_bits_of_numpy(optimizer: portopt.Optimizer) -> None:
    torch = importlib.import_module("torch")
    assert after_steps(optimizer, torch.tensor) == after_steps(optimizer)


@pytest.mark.needs("jax")
@pytest.mark.parametrize("optimizer", RULES, ids=IDS)
def test_jitted_jax_has_the_bits_of_numpy(optimizer: portopt.Optimizer) -> None:
    jax = importlib.import_module("jax")
    assert after_steps(optimizer, jax.numpy.asarray, jit=jax.jit) == after_steps(optimizer)


def test_the_inner_rule_steps_as_it_would_alone() -> None:
    for inner in (portopt.Nadam(0.1), Everything(0.1)):
        alone, outer = after_steps(inner), after_steps(Halved(inner=inner, part=1.0))
        # p + (q - p) is not q to the last bit, but what the inner rule keeps from the gradients is.
        assert outer[2:4] == alone[2:4]


def test_what_an_inner_rule_has_is_named_after_it() -> None:
    optimizer = Halved(inner=Halved(inner=Everything(0.25)))
    assert optimizer.slots == ("inner.inner.m", "inner.inner.row", "inner.inner.rate")
    assert optimizer.scalar_slots == {"inner.inner.largest": 0.0}
    assert optimizer.inputs == ("hessian",)
    assert optimizer.numeric_hyperparameters() == (
        "clipnorm", "clipvalue", "part", "inner.part", "inner.inner.learning_rate"
    )  # fmt: skip
    state = optimizer.init(tree(1))
    assert state.slots["inner.inner.row"]["a"].shape == (3,)
    assert state.slots["inner.inner.row"]["b"] is None
    assert state.slots["inner.inner.rate"]["b"] == np.float32(0.25)


def test_an_elementwise_rule_of_an_elementwise_rule_is_one_kernel() -> None:
    assert Pair().program().is_elementwise
    assert portopt.Lookahead().program().is_elementwise
    assert portopt.ScheduleFree().program().is_elementwise


def test_configs_repr_equality_and_copies_hold_the_inner_rule() -> None:
    optimizer = Pair(
        first=portopt.SGD(portopt.schedules.ExponentialDecay(0.1, 10, 0.5)), second=portopt.Adam(beta_1=0.5)
    )
    config = portopt.serialize(optimizer)
    assert config["config"]["second"] == {"class_name": "Adam", "config": portopt.Adam(beta_1=0.5).get_config()}
    assert Pair.from_config(optimizer.get_config()) == optimizer
    assert portopt.deserialize(config, {"Pair": Pair}) == optimizer
    assert pickle.loads(pickle.dumps(Halved())) == copy.deepcopy(Halved()) == Halved()
    assert Halved(inner=portopt.SGD(0.5)) != Halved(inner=portopt.SGD(0.25))
    assert repr(Halved(inner=portopt.SGD(0.5))) == f"Halved(inner={portopt.SGD(0.5)!r}, part=0.5)"


def test_learning_rate_is_another_name_for_that_of_the_only_inner_rule() -> None:
    optimizer = Halved(inner=portopt.SGD(0.5))
    assert optimizer.learning_rate == optimizer.lr == 0.5
    assert Halved(inner=portopt.SGD(0.5), learning_rate=0.25) == Halved(inner=portopt.SGD(0.25))
    assert optimizer.replace(lr=0.125).inner == portopt.SGD(0.125)
    assert optimizer.replace(part=0.25).inner == portopt.SGD(0.5)
    assert optimizer.replace(**{"inner.momentum": 0.5}).inner == portopt.SGD(0.5, momentum=0.5)
    assert "learning_rate" not in Halved.hyperparameters()
    assert Pair().learning_rate == 0.01  # its own, as it has two inner rules


@pytest.mark.parametrize(
    "given",
    [{"learning_rate": 0.25}, {"lr": 0.25}, {"inner": {"learning_rate": 0.25}}, {"inner": {"lr": 0.25}}],
    ids=repr,
)
def test_values_for_one_step_reach_the_inner_rule(given: dict[str, Any]) -> None:
    params, grads = tree(1), tree(2)
    expected, _ = Halved(inner=portopt.SGD(0.25)).apply(params, grads, Halved(inner=portopt.SGD()).init(params))
    optimizer = Halved(inner=portopt.SGD(0.5))
    found, _ = optimizer.apply(params, grads, optimizer.init(params), **given)
    assert words(found) == words(expected)


def test_an_inner_schedule_counts_the_steps() -> None:
    schedule = portopt.schedules.ExponentialDecay(0.1, 0.5)
    params, grads = tree(1), tree(2)
    scheduled = Halved(inner=portopt.SGD(schedule))
    by_hand = Halved(inner=portopt.SGD())
    states = [scheduled.init(params), by_hand.init(params)]
    others = {n: a.copy() for n, a in params.items()}
    for step in range(4):
        states[0] = scheduled.apply_(params, grads, states[0])
        states[1] = by_hand.apply_(others, grads, states[1], learning_rate=schedule(step))
    assert words(params) == words(others)


def test_clipping_is_the_outer_rules() -> None:
    params, grads = tree(1), tree(2)
    optimizer = Halved(inner=portopt.SGD(1.0), part=1.0, clipnorm=1e-3)
    found, _ = optimizer.apply(params, grads, optimizer.init(params))
    moved = np.sqrt(sum(np.sum((found[n] - params[n]) ** 2) for n in params))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_an_inner_rule_that_clips_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Halved inner is SGD\(.*\), which clips gradients; .*give clipnorm to Halved"
    ):
        Halved(inner=portopt.SGD(clipnorm=1.0))


@pytest.mark.parametrize("inner", ["adam", portopt.Adam, None, 0.1])
def test_what_is_no_optimizer_is_refused_as_an_inner_rule(inner: Any) -> None:
    with pytest.raises(TypeError, match=r"Halved inner must be an optimizer, such as portopt.Adam\(\), but"):
        Halved(inner=inner)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inner": 0.1}, r"Halved.apply was given inner=0.1: .*inner=\{\"learning_rate\": 0.1\}"),
        ({"inner": {"beta_3": 0.1}}, r"SGD.apply got an unknown argument 'beta_3'"),
        (
            {"inner": {"clipnorm": 0.1}},
            r"was given 'clipnorm' for inner; clipping comes before all rules: give it to the outer one",
        ),
        ({"learning_rate": 0.1, "inner": {"learning_rate": 0.1}}, r"'learning_rate' of inner under two names at once"),
        ({"outer": {}}, r"Halved.apply got an unknown argument 'outer'"),
    ],
)
def test_values_for_one_step_that_no_rule_has_are_refused(given: dict[str, Any], message: str) -> None:
    optimizer, params = Halved(inner=portopt.SGD(0.5)), tree(1)
    with pytest.raises(TypeError, match=message):
        optimizer.apply(params, tree(2), optimizer.init(params), **given)


def test_a_value_outside_the_range_of_the_inner_rule_is_refused() -> None:
    optimizer, params = Halved(inner=portopt.SGD(0.5)), tree(1)
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\), but -1.0 was given"):
        optimizer.apply(params, tree(2), optimizer.init(params), learning_rate=-1.0)


def test_new_slots_of_the_inner_rule_that_are_missing_are_named() -> None:
    class Forgetful(Halved):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p, {}

    with pytest.raises(ValueError, match=r"missing \['inner.moment'\], unknown \[\]"):
        Forgetful(inner=portopt.SGD(momentum=0.5)).program()


def test_an_inner_rule_draws_as_it_does_by_itself_and_two_draw_different_numbers() -> None:
    noisy = portopt.NoisySGD(0.5, eta=1.0, seed=7)
    params = {"a": np.ones((3, 4), np.float32), "b": np.ones(7, np.float32)}
    grads = {name: np.zeros_like(p) for name, p in params.items()}
    alone, _ = noisy.apply(params, grads, noisy.init(params))
    outer = portopt.Lookahead(noisy, sync_period=2)
    state = outer.init(params)
    inside, state = outer.apply(params, grads, state)
    assert {n: p.tobytes() for n, p in inside.items()} == {n: p.tobytes() for n, p in alone.items()}
    assert state.slots["inner.key"] == 7.0
    pair = Pair(first=noisy, second=noisy)
    mean, _ = pair.apply(params, grads, pair.init(params))
    assert mean["a"].tobytes() != alone["a"].tobytes()
