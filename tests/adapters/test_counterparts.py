"""Counterparts: a rule of a user's that states them is translated and compared; those of the built-in rules are what they say."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import portopt
import portopt_torch
from portopt.backend import get_backend
from portopt.counterparts import Counterpart
from portopt.interchange.correspondence import most_specific
from portopt.interchange.frameworks import get_framework
from portopt.interchange.nearest import counterpart_of
from portopt_tools.bench.contenders import PEERS, Inputs, why_not_compared
from portopt_tools.bench.shapes import ShapeSet

pytestmark = pytest.mark.needs("jax", "optax", "torch")


class Heavy(portopt.Optimizer):
    """Gradient descent with momentum, whose slot is what is added to the parameter."""

    slots = ("velocity",)
    counterparts = (
        Counterpart("torch.optim.SGD", {"velocity": "-momentum_buffer"}, names={"mass": "momentum"}, counts=False),
        Counterpart("optax.sgd", {"velocity": "-trace"}, names={"mass": "momentum"}, counts=False),
    )

    mass: float = portopt.hyperparameter(default=0.5, at_least=0, at_most=1)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        velocity = self.mass * slots.velocity - g
        return p + c.lr * velocity, {"velocity": velocity}


class Derived(Heavy):
    """It may compute anything."""


class Unknown(portopt.Optimizer):
    """A rule that no other framework has."""

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.lr * g, {}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `Heavy` found in place of SGD, which has the same counterparts."""
    monkeypatch.setattr(portopt.SGD, "counterparts", ())
    portopt.register(Heavy)


def descend(native: Any, w: Any, steps: int) -> None:
    for _ in range(steps):
        w.grad = torch.ones(2)
        native.step()


class TestARuleOfAUsers:
    def test_becomes_its_counterpart_and_goes_on(self) -> None:
        opt, w = Heavy(0.25, mass=0.75), torch.nn.Parameter(torch.ones(2))
        params, state = opt.apply(torch.ones(2), torch.ones(2), opt.init(w))
        with torch.no_grad():
            w.copy_(params)
        native = portopt.to_native(opt, state, "torch", w)
        assert (type(native), native.defaults["momentum"]) == (torch.optim.SGD, 0.75)
        assert native.state[w]["momentum_buffer"].tolist() == [1, 1]
        descend(native, w, 1)
        params, _ = opt.apply(params, torch.ones(2), state)
        assert w.tolist() == params.tolist()

    @pytest.mark.usefixtures("registered")
    def test_is_found_for_its_counterpart_once_it_is_registered(self) -> None:
        w = torch.nn.Parameter(torch.ones(2))
        native = torch.optim.SGD([w], 0.25, momentum=0.75)
        descend(native, w, 2)
        opt, state = portopt.from_native(native)
        assert opt == Heavy(0.25, mass=0.75)
        assert state.slots["velocity"][0].tolist() == [-1.75, -1.75]
        with pytest.raises(ValueError, match=r"no counterpart of dampening=0\.5 of SGD"):
            portopt.from_native(torch.optim.SGD([w], 0.25, momentum=0.75, dampening=0.5))

    @pytest.mark.usefixtures("registered")
    def test_is_what_from_torch_makes_of_its_counterpart_and_to_torch_undoes(self) -> None:
        w = torch.nn.Parameter(torch.ones(2))
        native = torch.optim.SGD([{"params": [w], "momentum": 0.75, "name": "label"}], 0.25)
        descend(native, w, 2)
        converted = portopt_torch.from_torch(native)
        assert type(converted.rule) is Heavy
        group = converted.param_groups[0]
        assert (group["mass"], group["lr"], group["name"]) == (0.75, 0.25, "label")
        assert converted.state[w]["velocity"].tolist() == [-1.75, -1.75]
        again = converted.to_torch()
        assert again.param_groups[0]["momentum"] == 0.75
        assert again.state[w]["momentum_buffer"].tolist() == [1.75, 1.75]
        with pytest.raises(ValueError, match=r"no counterpart of dampening=0\.5 of SGD"):
            portopt_torch.from_torch(torch.optim.SGD([w], 0.25, momentum=0.75, dampening=0.5))

    def test_is_compared_with_its_counterpart(self) -> None:
        found = counterpart_of(get_framework("torch"), Heavy(0.25))
        assert found is not None
        assert (found.factory, found.arguments) == (torch.optim.SGD, {"lr": 0.25, "momentum": 0.5})
        for peer in PEERS.values():
            assert why_not_compared(peer, Heavy()) is None
            for contender in peer.contenders(Heavy(), get_backend(peer.backend)):
                contender.prepare(Inputs(Heavy(), ShapeSet("small", ((2,),))))()

    @pytest.mark.parametrize("rule", [Unknown, Derived])
    def test_without_counterparts_of_its_own_is_neither_compared_nor_translated(
        self, rule: type[portopt.Optimizer]
    ) -> None:
        opt, w = rule(), torch.nn.Parameter(torch.ones(2))
        assert counterpart_of(get_framework("torch"), opt) is None
        for peer in PEERS.values():
            assert "has no counterpart" in (why_not_compared(peer, opt) or "")
        with pytest.raises(ValueError, match=f"torch has no counterpart of {rule.__name__}; translated are SGD"):
            portopt.to_native(opt, opt.init(w), "torch", w)


class AdamW(portopt.Optimizer):
    """A rule of the counterpart's name."""

    counterparts = (Counterpart("torch.optim.AdamW"),)


class Free(portopt.Optimizer):
    """A rule that fixes less of the counterpart than Adam does."""

    counterparts = (Counterpart("torch.optim.AdamW"),)


@pytest.mark.parametrize("rule", [AdamW, Free])
def test_a_counterpart_becomes_the_rule_of_its_name_or_that_which_fixes_least(rule: type[portopt.Optimizer]) -> None:
    vocabulary = get_framework("torch").vocabulary
    possible = [c for r in (portopt.Adam, rule) for c in vocabulary.correspondences(r) if c.name == "AdamW"]
    assert len(possible) == 2
    for order in (possible, possible[::-1]):
        assert most_specific(order).rule is rule


@pytest.mark.parametrize(
    ("rule", "difference"),
    [
        (portopt.SGD(nesterov=True), ""),
        (portopt.Adagrad(), "it has epsilon under the root, and portopt's keras2 beside the root"),
        (portopt.Nadam(), "it has no schedule_decay"),
        (portopt.Adam(dialect="optax"), ""),
    ],
    ids=repr,
)
def test_how_a_compared_formula_differs_is_said(rule: portopt.Optimizer, difference: str) -> None:
    found = counterpart_of(get_framework("optax"), rule)
    assert found is not None
    assert found.difference == difference


@pytest.mark.parametrize(
    ("inner", "name", "difference"),
    [
        (portopt.AdamW(beta_1=0.0, dialect="optax"), "adamw", ""),
        (
            portopt.AdamW(beta_1=0.0, weight_decay=0.1),
            "adamw",
            "its inner rule is AdamW in the dialect 'optax', and portopt's in 'torch'",
        ),
        (portopt.SGD(0.25, dialect="torch", weight_decay=0.1), "sgd", ""),
        (portopt.SGD(0.25), "sgd", "its inner rule is SGD in the dialect 'optax', and portopt's in 'keras2'"),
    ],
    ids=repr,
)
def test_a_rule_made_of_rules_is_compared_with_one_around_the_like(
    inner: portopt.Optimizer, name: str, difference: str
) -> None:
    opt = portopt.ScheduleFree(inner, beta=0.75)
    found = counterpart_of(get_framework("optax"), opt)
    assert found is not None
    assert found.name == f"optax.contrib.schedule_free_{name}"
    assert (found.arguments["learning_rate"], found.difference) == (inner.learning_rate, difference)
    native = portopt.NativeOptimizer(found.factory, **found.arguments)
    with native.arrays.dtype_context("float64"):
        ours = theirs = np.asarray([1.0, -2.0])
        state, native_state = opt.init(ours), native.init(theirs)
        for g in ([1.0, -0.5], [0.25, 2.0], [-3.0, 1.0]):
            ours, state = opt.apply(ours, np.asarray(g), state)
            theirs, native_state = native.apply(theirs, np.asarray(g), native_state, learning_rate=inner.learning_rate)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6 if difference else 1e-12)


def test_a_rule_around_another_than_a_framework_has_is_compared_with_nothing() -> None:
    with pytest.raises(ValueError, match="no counterpart of ScheduleFree with inner=Adagrad"):
        counterpart_of(get_framework("optax"), portopt.ScheduleFree(portopt.Adagrad()))
    assert counterpart_of(get_framework("torch"), portopt.ScheduleFree()) is None


def test_decay_is_in_the_rates_that_a_compared_optimizer_is_given() -> None:
    found = counterpart_of(get_framework("torch"), portopt.Adagrad(0.5, dialect="torch", decay=0.25))
    assert found is not None
    assert found.arguments["lr"] == 0.5
    assert found.arguments["lr_decay"] == 0.0


STATED = [
    (rule, counterpart)
    for rule in portopt.RULES
    for counterpart in rule.counterparts
    if counterpart.namespace in ("torch.optim", "optax")
]


@pytest.mark.parametrize(("rule", "counterpart"), STATED, ids=[f"{r.__name__}-{c.name}" for r, c in STATED])
class TestTheCounterpartsOfTheRules:
    def test_take_the_arguments_that_are_stated(self, rule: type[portopt.Optimizer], counterpart: Counterpart) -> None:
        vocabulary = get_framework(counterpart.namespace.partition(".")[0]).vocabulary
        (found,) = [c for c in vocabulary.correspondences(rule) if c.counterpart is counterpart]
        taken = inspect.signature(vocabulary.find(found.name)).parameters
        assert {name.partition(".")[0] for name in found.hyperparameters} <= set(taken)
        assert set(counterpart.ignored) <= set(taken)
        known = rule.defaults(found.dialect)
        assert {*counterpart.names, *counterpart.fixed, *counterpart.lacks, *counterpart.near} <= set(known)
        assert {*counterpart.needs, *counterpart.needs.values()} <= set(known)

    def test_have_epsilon_where_it_is_stated(self, rule: type[portopt.Optimizer], counterpart: Counterpart) -> None:
        framework = get_framework(counterpart.namespace.partition(".")[0])
        plain = counterpart_of(framework, rule())
        if plain is None or plain.name != counterpart.name:
            return  # another is nearer to the default dialect
        if counterpart.epsilon and "epsilon" not in rule.defaults():
            return  # it has two, Adafactor's
        # Gradients as small as epsilon, which change, show where epsilon stands.
        known = rule.defaults().keys() - set(counterpart.lacks)
        telling = {n: v for n, v in {"epsilon": 1e-2, "beta_2": 0.5}.items() if n in known}
        found = counterpart_of(framework, rule(**telling))
        assert found is not None
        opt, native = rule(**telling), portopt.NativeOptimizer(found.factory, **found.arguments)
        ours = theirs = np.zeros(1)
        state, native_state = opt.init(ours), native.init(theirs)
        for g in ([1e-2], [2e-3], [5e-3]):
            ours, state = opt.apply(ours, np.asarray(g), state)
            theirs, native_state = native.apply(theirs, np.asarray(g), native_state)
        assert bool(np.abs(ours - theirs) > 1e-3 * np.abs(ours)) == bool(found.difference), found.difference
