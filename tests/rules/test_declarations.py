"""What an author declares in a class: dialects of any set, and mistakes, which are said when the class is made."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits

import portopt
from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, fixed, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule
from portopt.rules.settings import other_values, settings


class Descent(DialectRule):
    """A rule of two dialects, of which the default one is not the first of all."""

    dialect: Dialect = dialect_option(default="optax", others=("keras3",))
    learning_rate: Any = hyperparameter(default=per_dialect(optax=0.5, keras3=0.25), at_least=0, kw_only=False)
    factor: float | None = hyperparameter(default=per_dialect(optax=2.0), at_least=0)
    b1: Any = alias("factor", dialect="optax", default=None, kw_only=True)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        return p - c.lr * g * (self.factor if self.factor is not None else 1.0), {}


def step(optimizer: portopt.Optimizer) -> float:
    p = np.ones(1)
    return float(optimizer.apply(p, np.ones(1), optimizer.init(p))[0][0])


def test_rule_has_the_dialects_that_it_states_and_the_first_is_its_default() -> None:
    assert Descent.dialects() == ("optax", "keras3")
    assert Descent() == Descent(dialect="optax")
    assert Descent().get_config() == {"learning_rate": 0.5, "factor": 2.0}
    assert Descent(dialect="keras3").get_config() == {"learning_rate": 0.25, "weight_decay": 0.0, "dialect": "keras3"}
    assert (step(Descent()), step(Descent(dialect="keras3"))) == (0.0, 0.75)
    assert step(Descent(dialect="keras3", weight_decay=1.0)) == 0.5


def test_other_dialects_are_refused_by_name() -> None:
    message = r"^Descent dialect must be 'optax' or 'keras3', but 'torch' was given$"
    with pytest.raises(ValueError, match=message):
        Descent(dialect="torch")
    with pytest.raises(ValueError, match=message):
        Descent().replace(dialect="torch")
    with pytest.raises(ValueError, match=message):
        Descent.from_config({"dialect": "torch"})
    with pytest.raises(ValueError, match=r"^Descent has no dialect 'torch': it has optax, keras3$"):
        Descent.defaults("torch")


def test_what_none_of_its_dialects_has_is_no_argument() -> None:
    assert "maximize" not in inspect.signature(Descent).parameters
    assert Descent().maximize is None
    with pytest.raises(TypeError, match=r"^Descent got an unknown argument 'maximize'"):
        Descent(maximize=True)
    with pytest.raises(AttributeError, match="an optimizer is immutable, so 'maximize' cannot be set"):
        Descent().maximize = True
    with pytest.raises(
        TypeError, match=r"'weight_decay', which does not exist in the dialect 'optax'.*dialect='keras3'$"
    ):
        Descent(weight_decay=0.5)


def test_optimizer_of_any_dialect_survives_copies_and_configs() -> None:
    dialects: tuple[Dialect, ...] = ("optax", "keras3")
    for dialect in dialects:
        optimizer = Descent(0.125, dialect=dialect)
        config = portopt.serialize(optimizer)
        for again in (
            portopt.deserialize(config, {"Descent": Descent}),
            pickle.loads(pickle.dumps(optimizer)),
            optimizer.replace(),
        ):
            assert again == optimizer
            assert_same_bits(np.asarray(step(again)), np.asarray(step(optimizer)))
    assert Descent(0.125).replace(dialect="keras3") == Descent(0.125, dialect="keras3")


def test_settings_worth_testing_are_of_the_dialects_that_a_rule_has() -> None:
    assert settings(Descent) == settings(Descent, "optax") == [{}, {"learning_rate": 0.05, "factor": 1.0}]
    assert other_values(Descent, "keras3") == {"weight_decay": 0.1}


def test_subclass_with_fewer_dialects_has_less() -> None:
    class TorchAdam(portopt.Adam):
        dialect: Dialect = dialect_option(default="torch")
        decoupled_weight_decay: bool = fixed(True)

    assert TorchAdam.dialects() == ("torch",)
    assert set(portopt.Adam.defaults("torch")) - set(TorchAdam.defaults()) == {"decoupled_weight_decay"}
    optimizer = TorchAdam(0.5, weight_decay=0.25, betas=(0.5, 0.5))
    same = portopt.Adam(0.5, 0.5, 0.5, weight_decay=0.25, decoupled_weight_decay=True, dialect="torch")
    assert optimizer.decoupled_weight_decay is True
    assert_same_bits(np.asarray(step(optimizer)), np.asarray(step(same)))
    assert "decoupled_weight_decay" not in optimizer.get_config()
    with pytest.raises(TypeError, match=r"^TorchAdam got an unknown argument 'decoupled_weight_decay'"):
        TorchAdam(decoupled_weight_decay=False)  # type: ignore[call-arg]  # the error is the subject
    with pytest.raises(TypeError, match=r"^TorchAdam got an unknown argument 'decay'"):
        TorchAdam(decay=0.5)


def declare(**members: Any) -> type[portopt.Optimizer]:
    return type("Mine", (portopt.Optimizer,), members)


def declare_with_dialects(**members: Any) -> type[portopt.Optimizer]:
    return type("Mine", (DialectRule,), {"dialect": dialect_option(default="torch", others=("optax",)), **members})


def annotated() -> None:
    class Mine(portopt.Optimizer):
        beta: float


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no value": (annotated, r"^Mine beta has no default: write beta: float = portopt\.hyperparameter\(default="),
    "default below the range": (
        lambda: declare(beta=hyperparameter(default=-1.0, at_least=0, below=1)),
        r"^Mine beta: the default -1\.0 is outside its own range \[0, 1\)$",
    ),
    "default of a dialect outside the range": (
        lambda: declare_with_dialects(beta=hyperparameter(default=per_dialect(torch=0.5, optax=2.0), below=1)),
        r"^Mine beta: the default 2\.0 of the dialect 'optax' is outside its own range \(-inf, 1\)$",
    ),
    "default that is no number": (
        lambda: declare(beta=hyperparameter(default="0.9", at_least=0)),  # type: ignore[arg-type]  # the error is the subject
        r"^Mine beta: the default '0\.9' must be a number in its range \[0, inf\)$",
    ),
    "off outside the range": (
        lambda: declare(beta=hyperparameter(default=0.5, above=0, off=0.0)),
        r"^Mine beta: the value 0\.0 for off is outside its own range \(0, inf\)$",
    ),
    "plain value for an inherited one": (
        lambda: declare(learning_rate=0.5),
        (
            r"^Mine learning_rate is 0\.5, but it inherits a hyperparameter of that name: to change its default or range, "
            r"declare it anew, learning_rate = portopt\.hyperparameter\(default=\.\.\.\); if it has no .*, write fixed\(0\.5\)$"
        ),
    ),
    "name of a method": (
        lambda: declare(init=option(default=False)),
        r"^Mine declares a hyperparameter 'init', but every optimizer has another 'init', of Optimizer: give",
    ),
    "name of an argument of apply": (
        lambda: declare(grads=option(default=False)),
        r"^Mine declares a hyperparameter 'grads', but that is the name of an argument of apply: give it another$",
    ),
    "name of the parameter": (
        lambda: declare(p=option(default=False)),
        r"^Mine declares a hyperparameter 'p', but in a step that is the parameter p",
    ),
    "other name of nothing": (
        lambda: declare(b1=alias("beta_1")),
        r"^Mine b1 is another name of 'beta_1', which Mine does not declare: it has learning_rate, clipnorm, clipvalue$",
    ),
    "other name in no dialect": (
        lambda: declare(rate=alias("learning_rate", dialect="torch")),
        r"^Mine rate is a name in the dialect 'torch', but the dialects of Mine are none$",
    ),
    "slots is a string": (
        lambda: declare(slots="m"),
        r"^Mine slots must be a tuple of names, such as \('m',\), but 'm' was given$",
    ),
    "slots is a set": (
        lambda: declare(slots={"m"}),
        r"^Mine slots must be a tuple of names, such as \(\"m\", \"v\"\), but",
    ),
    "slot named like a hyperparameter": (
        lambda: declare(slots=("clipnorm",)),
        r"^Mine has a slot 'clipnorm', but that is a hyperparameter's: rename the slot$",
    ),
    "slot named like the parameter": (
        lambda: declare(slots=("m", "p")),
        r"^Mine has a slot 'p', but that is the parameter's: rename the slot$",
    ),
    "slot named like the gradient": (
        lambda: declare(slots=("g",)),
        r"^Mine has a slot 'g', but that is the gradient's: rename the slot$",
    ),
    "slot that stands there twice": (
        lambda: declare(slots=("m", "m")),
        r"^Mine has a slot 'm', but that is the name of another slot: rename the slot$",
    ),
    "slot that is no identifier": (
        lambda: declare(slots=("first moment",)),
        r"^Mine has a slot 'first moment', but update reads slots as attributes: choose an identifier$",
    ),
    "scalar_slots is a tuple": (
        lambda: declare(scalar_slots=("m_schedule",)),
        r"^Mine scalar_slots must map names to first values, such as \{\"m_schedule\": 1\.0\}, but \('m_schedule',\) was given$",
    ),
    "scalar_slots without a number": (
        lambda: declare(scalar_slots={"m_schedule": None}),
        r"^Mine scalar_slots must map names to first values",
    ),
    "defaults of dialects without dialects": (
        lambda: declare(beta=hyperparameter(default=per_dialect(torch=0.5))),
        (
            r"^Mine beta has a default for each dialect, but Mine has no dialects: give one default, or state the dialects, "
            r"dialect: Dialect = dialect_option\(default='torch'\)$"
        ),
    ),
    "default of a dialect that the rule has not": (
        lambda: declare_with_dialects(beta=hyperparameter(default=per_dialect(keras2=0.5, torch=0.5))),
        r"^Mine beta has a default for 'keras2', but the dialects of Mine are 'torch' and 'optax': leave it out, or add",
    ),
    "default of an unknown dialect": (
        lambda: per_dialect(tensorflow=0.5),
        r"^per_dialect was given tensorflow, but the dialects are keras2, keras3, torch, optax$",
    ),
    "no default of any dialect": (per_dialect, r"^per_dialect needs at least one dialect with its default"),
    "unknown dialect": (
        lambda: dialect_option(default="tensorflow"),  # type: ignore[arg-type]  # the error is the subject
        r"^dialect_option was given tensorflow, but the dialects are keras2, keras3, torch, optax$",
    ),
    "option with a number": (
        lambda: option(default=3),
        r"^the default of an option must be True or False, but 3 was given; declare a number as portopt\.hyperparameter\(",
    ),
    "option with a number in a dialect": (
        lambda: option(default=per_dialect(torch=False, optax=None)),
        r"^the default of an option must be True or False, but None was given",
    ),
    "option with a default that is no choice": (
        lambda: option(default="halves", choices=("rows", "columns")),
        r"^the default of an option with choices must be 'rows' or 'columns', but 'halves' was given$",
    ),
    "option with a choice of a dialect that is none": (
        lambda: option(default=per_dialect(torch="rows", optax=True), choices=("rows", "columns")),
        r"^the default of an option with choices must be 'rows' or 'columns', but True was given$",
    ),
    "constructor": (
        lambda: declare(__init__=lambda self, gamma: None),
        r"^Mine has an __init__, its own, but an optimizer is made anew from its hyperparameters: .* Declare each argument in",
    ),
    "inherited constructor": (
        lambda: type("Mine", (Constructing, portopt.Optimizer), {}),
        r"^Mine has an __init__, that of Constructing, but an optimizer is made anew",
    ),
    "two defaults": (
        lambda: dialect_option(default="torch", others=("optax", "torch")),
        r"^dialect_option was given torch, optax, torch; each dialect stands there once, the default one first$",
    ),
}


class Constructing:
    def __init__(self, gamma: float) -> None:
        self.gamma = gamma


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistake_is_said_when_the_class_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_slots_of_a_property_are_checked_with_the_optimizer() -> None:
    class Mine(portopt.Optimizer):
        @property
        def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
            return "m"  # type: ignore[return-value]  # the error is the subject

    with pytest.raises(TypeError, match=r"^Mine slots must be a tuple of names, such as \('m',\), but 'm' was given$"):
        Mine()


def test_slot_that_starts_at_no_hyperparameter_is_refused() -> None:
    message = r"^Mine has a slot 'm' that starts at 'gamma', which is no hyperparameter of it: allowed are a number, 'p', and "
    with pytest.raises(TypeError, match=message):
        type("Mine", (portopt.Optimizer,), {"slots": (portopt.slot("m", start="gamma"),)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (), "drop": 0}, r"the slot 'm' was given more than one of shape, drop and keep"),
        ({"drop": 0, "keep": 1}, r"the slot 'm' was given more than one of shape, drop and keep"),
        ({"shape": (3,)}, r"the slot 'm' was given the shape \(3,\): allowed are \(\), one number a parameter, and"),
        (
            {"drop": 0.5},
            r"the slot 'm' was given drop=0.5: allowed are an axis, a tuple of axes, and the name of a method",
        ),
        ({"keep": (0, "x")}, r"the slot 'm' was given keep=\(0, 'x'\): allowed are an axis"),
        (
            {"start": None},
            r"the slot 'm' was given start=None: allowed are a number, 'p', and the name of a hyperparameter",
        ),
        ({"start": True}, r"the slot 'm' was given start=True"),
    ],
)
def test_slot_says_what_it_may_be_given(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        portopt.slot("m", **arguments)


def test_rule_without_an_update_says_what_to_write() -> None:
    class Mine(portopt.Optimizer):
        pass

    p = np.ones(1)
    with pytest.raises(
        NotImplementedError, match=r"^Mine must define update.*such as `return p - c\.lr \* g, \{\}` without slots$"
    ):
        Mine().apply(p, p, Mine().init(p))
