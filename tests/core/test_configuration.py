"""Optimizers by name and config: `get`, `serialize`, `deserialize`, `get_config`, `from_config`, `register`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

import portopt
from portopt.rules.settings import together
from portopt.schedules import CosineDecay

each_rule = pytest.mark.parametrize("rule", portopt.RULES)


@portopt.register
class Signed(portopt.Optimizer):
    """A registered rule."""

    scale: float = portopt.hyperparameter(default=1.0, at_least=0)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        return p - c.lr * self.scale * xp.sign(g), {}


@each_rule
def test_every_rule_is_found_by_name_in_any_case(rule: type[portopt.Optimizer]) -> None:
    name = rule.__name__
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        assert portopt.get(spelling) == rule()


def test_optimizer_is_found_as_itself() -> None:
    optimizer = portopt.SGD(0.5)
    assert portopt.get(optimizer) is optimizer


@each_rule
def test_config_gives_an_equal_optimizer(rule: type[portopt.Optimizer]) -> None:
    for optimizer in (
        rule(),
        rule(learning_rate=0.1, clipnorm=1.5),
        rule(lr=0.3, clipvalue=0.25, clipnorm=2),
        rule(learning_rate=CosineDecay(0.1, steps=10, warmup_steps=3)),
    ):
        config = optimizer.get_config()
        assert rule.from_config(config) == optimizer
        serialized = json.loads(json.dumps(portopt.serialize(optimizer)))
        assert serialized["class_name"] == rule.__name__
        for again in (portopt.deserialize(serialized), portopt.get(serialized)):
            assert again == optimizer
            assert type(again) is rule


@each_rule
def test_config_holds_the_floats_that_were_given(rule: type[portopt.Optimizer]) -> None:
    """Not 0.10000000149011612, which Keras 2.3.1 reads back from float32."""
    fields = rule.hyperparameters()
    given = {
        name: next(x for x in (0.1, 1.1, -0.1, 7.0) if x in (fields[name].range or ()))
        for name in rule.numeric_hyperparameters()
        if "." not in name
    }
    given = together(rule, None, given)
    assert given.keys() >= {"clipnorm"}
    config = rule(**given).get_config()
    for name, value in given.items():
        assert type(config[name]) is float
        assert repr(config[name]) == repr(value)


@each_rule
def test_config_lists_clipping_only_where_it_is_on(rule: type[portopt.Optimizer]) -> None:
    assert not {"clipnorm", "clipvalue", "lr"} & rule().get_config().keys()
    assert rule(clipnorm=1).get_config()["clipnorm"] == 1.0
    assert "clipvalue" not in rule(clipnorm=1).get_config()


def test_config_holds_epsilon_as_it_was_at_construction() -> None:
    portopt.set_epsilon(1e-3)
    optimizer = portopt.Adam()
    portopt.set_epsilon(1e-5)
    assert optimizer.get_config()["epsilon"] == 1e-3
    assert portopt.get(portopt.serialize(optimizer)) == optimizer
    assert portopt.get({"class_name": "adam", "config": {"epsilon": None}}).get_config()["epsilon"] == 1e-5


def test_old_names_are_taken() -> None:
    """Configs that Keras 2.2 wrote have `lr`."""
    config = {"lr": 0.5, "momentum": 0.25, "decay": 0.0, "nesterov": True}
    assert portopt.get({"class_name": "sgd", "config": config}) == portopt.SGD(0.5, 0.25, nesterov=True)


def test_config_is_left_alone() -> None:
    config = {
        "class_name": "AdaM",
        "config": {"lr": {"class_name": "Constant", "config": {"value": 0.5}}, "beta_1": 0.5},
    }
    before = copy.deepcopy(config)
    first = portopt.deserialize(config)
    assert config == before
    assert portopt.get(config) == first
    assert portopt.Adam.from_config(config["config"]) == first  # type: ignore[arg-type]  # a dict of both kinds of values
    assert config == before


def test_config_may_be_any_mapping() -> None:
    frozen = MappingProxyType({"class_name": "sgd", "config": MappingProxyType({"lr": 0.5})})
    assert portopt.get(frozen) == portopt.SGD(0.5)


def test_changing_a_config_changes_no_optimizer() -> None:
    optimizer = portopt.SGD(0.5)
    optimizer.get_config()["learning_rate"] = 0.0
    assert optimizer == portopt.SGD(0.5)


# Errors


@pytest.mark.parametrize(
    ("name", "nearest"), [("adm", "Adam"), ("rms_prop", "RMSprop"), ("sdg", "SGD"), ("Nadamm", "Nadam")]
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^unknown optimizer: '{name}'; did you mean '{nearest}'\? known are SGD, RMSprop, Adagrad, Adadelta, Adam, "
        r"Adamax, Nadam, .*and classes given to portopt\.register$",
    ):
        portopt.get(name)


def test_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(ValueError, match=r"^unknown optimizer: 'xyzzy'; known are SGD, "):
        portopt.get({"class_name": "xyzzy", "config": {}})


@pytest.mark.parametrize("identifier", [None, 3, portopt.SGD, ["adam"], b"adam"], ids=repr)
def test_identifier_of_another_type_is_refused(identifier: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared as a whole
        portopt.get(identifier)
    assert str(caught.value) == (
        f"could not interpret the optimizer identifier {identifier!r} of type {type(identifier).__name__}: "
        "give a name such as 'adam', a dict with 'class_name' and 'config', or an optimizer instance"
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"class_name": "sgd"},
        {"config": {}},
        {"class_name": "sgd", "config": None},
        {"class_name": "sgd", "config": [1]},
    ],
    ids=repr,
)
def test_incomplete_config_is_refused(config: Any) -> None:
    for read in (portopt.get, portopt.deserialize):
        with pytest.raises(ValueError, match=r"^improper config format: .*'class_name' and 'config'"):
            read(config)


def test_config_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^improper config format: 'adam'; "):
        portopt.deserialize("adam")  # type: ignore[arg-type]  # the error is the subject


def test_values_in_a_config_are_checked_like_arguments() -> None:
    with pytest.raises(ValueError, match=r"SGD momentum must be in \[0, 1\], but 5 was given"):
        portopt.get({"class_name": "sgd", "config": {"momentum": 5}})
    with pytest.raises(TypeError, match="SGD got an unknown argument 'epsilon'"):
        portopt.get({"class_name": "sgd", "config": {"epsilon": 1e-7}})
    with pytest.raises(TypeError, match="SGD was given learning_rate and lr at once"):
        portopt.get({"class_name": "sgd", "config": {"lr": 0.5, "learning_rate": 0.5}})


# Classes of a user's own


def test_registered_class_is_found_by_name() -> None:
    assert portopt.get("signed") == Signed()
    optimizer = Signed(0.5, scale=2)
    assert portopt.serialize(optimizer) == {"class_name": "Signed", "config": {"learning_rate": 0.5, "scale": 2.0}}
    assert portopt.deserialize(portopt.serialize(optimizer)) == optimizer


def test_register_returns_the_class_and_may_be_repeated() -> None:
    assert portopt.register(Signed) is Signed


@pytest.mark.parametrize("name", ["Adam", "adam", "SIGNED"])
def test_taken_name_is_refused(name: str) -> None:
    other = type(name, (portopt.Optimizer,), {})
    with pytest.raises(ValueError, match=rf"^the name '{name}' is taken by .*(Adam|Signed); rename the class$"):
        portopt.register(other)
    assert type(portopt.get("adam")) is portopt.Adam
    assert type(portopt.get("signed")) is Signed


@pytest.mark.parametrize("value", [int, "Adam", None, portopt.SGD(), lambda: None], ids=lambda v: type(v).__name__)
def test_only_subclasses_can_be_registered(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^only a subclass of portopt\.Optimizer can be registered, but .* was given$"):
        portopt.register(value)


def test_custom_objects_are_known_for_one_call() -> None:
    class Local(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
            return p - c.lr * g, {}

    config = {"class_name": "local", "config": {"lr": 0.5}}
    assert portopt.deserialize(config, custom_objects={"Local": Local}) == Local(0.5)
    with pytest.raises(ValueError, match="unknown optimizer: 'local'"):
        portopt.deserialize(config)


def test_custom_objects_go_before_known_classes() -> None:
    assert portopt.deserialize({"class_name": "SGD", "config": {}}, {"sgd": portopt.Adam}) == portopt.Adam()
