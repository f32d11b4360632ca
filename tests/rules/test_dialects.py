"""Each dialect of each rule against the framework itself, in float64; and what a dialect means for a rule's arguments."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from support.bits import Array, assert_same_bits, ordinary
from support.dialect_settings import APART, gradients, parameters, rate_at, settings
from support.elsewhere import Elsewhere
from support.optax_trajectories import OWN_CALL, trajectory
from support.places import ROOT
from support.programs import operations, programs
from support.published_formulas import FORMULAS
from support.turns import in_turn

import portopt
from portopt.dialects import DIALECTS, Dialect
from portopt.hyperparameters import Alias, listed
from portopt.rules.settings import other_values
from portopt.rules.settings import settings as settings_of
from portopt_tools.command_line import main

TOLERANCE = 1e-12
"""Relative to the largest magnitude on the way. The frameworks order factors and powers differently in the last bits."""

RULES = {rule.__name__: rule for rule in portopt.RULES}
EACH = [(rule, dialect) for rule in portopt.RULES for dialect in rule.dialects()]
each_rule_and_dialect = pytest.mark.parametrize(
    ("rule", "dialect"), EACH, ids=[f"{rule.__name__}-{dialect}" for rule, dialect in EACH]
)
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def each_setting(
    dialect: str, having: Callable[[str], bool] = lambda rule: True, turns: int = 1
) -> pytest.MarkDecorator:
    """Parametrize with the settings of the rules that have a dialect, and a counterpart in its framework.

    Where the framework compiles each, one of so many in turns: a changed formula of portopt shows in its committed vector.
    """
    chosen = in_turn([setting for setting in settings(dialect) if having(setting[0])], 0, turns)
    return pytest.mark.parametrize(
        ("rule", "number", "arguments"), chosen, ids=[f"{rule}-{n}" for rule, n, _ in chosen]
    )


def portopt_trajectory(rule: str, dialect: str | None, arguments: Mapping[str, Any]) -> list[list[Array]]:
    """Return the parameters after each step."""
    optimizer = RULES[rule](**{**({"dialect": dialect} if dialect else {}), **arguments})
    params = parameters()
    state = optimizer.init(params)
    found = []
    with portopt.interpreted():  # a kernel for each combination of options would take long to compile
        for step, gradient in enumerate(gradients()):
            given: Any = optimizer.learning_rate
            rate = rate_at(step, given)
            params, state = optimizer.apply(params, gradient, state, learning_rate=rate)
            found.append(params)
    return found


def assert_close(actual: list[list[Array]], expected: list[list[Any]], tolerance: float = TOLERANCE) -> None:
    for i in range(len(parameters())):
        ours, theirs = np.asarray([p[i] for p in actual]), np.asarray([p[i] for p in expected], np.float64)
        error = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
        assert error <= tolerance, f"parameter {i}: off by {error:.2g} relative"
        assert np.max(np.abs(theirs - parameters()[i])) > 1e-6, f"parameter {i} hardly moves"


# torch


def torch_class(rule: str) -> Any:
    """Return the class of torch that has a rule's name, whatever its case; None if there is none."""
    return next((value for name, value in vars(torch.optim).items() if name.lower() == rule.lower()), None)


def aliases(rule: str) -> dict[str, Alias]:
    return {name: value for name in dir(RULES[rule]) if isinstance(value := getattr(RULES[rule], name), Alias)}


def torch_arguments(rule: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments under the names that torch's class has for them, which are the rule's other names in that dialect."""
    known = inspect.signature(torch_class(rule)).parameters
    found = dict(arguments)
    defaults = RULES[rule].defaults("torch")
    for name, alias in aliases(rule).items():
        if name in known and not found.keys().isdisjoint(alias.targets):
            values = tuple(found.pop(target, defaults[target]) for target in alias.targets)
            found[name] = values if len(values) > 1 else values[0]
    return found


def torch_trajectory(rule: str, arguments: Mapping[str, Any]) -> list[list[Array]]:
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in parameters()]
    optimizer = torch_class(rule)(tensors, **torch_arguments(rule, arguments))
    initial_rate = optimizer.param_groups[0]["lr"]
    found = []
    for step, gradient in enumerate(gradients()):
        optimizer.param_groups[0]["lr"] = rate_at(step, initial_rate)
        for tensor, g in zip(tensors, gradient, strict=True):
            tensor.grad = torch.tensor(g)
        optimizer.step()
        found.append([tensor.detach().numpy().copy() for tensor in tensors])
    return found


@pytest.mark.usefixtures("float64_scalars")
@each_setting("torch", having=lambda rule: rule not in APART and torch_class(rule) is not None)
def test_torch_dialect_is_the_formula_of_torch(rule: str, number: int, arguments: Mapping[str, Any]) -> None:
    assert_close(portopt_trajectory(rule, "torch", arguments), torch_trajectory(rule, arguments))


def test_nadam_of_torch_as_it_comes_agrees_to_float32() -> None:
    """With its default dtype, float32, torch keeps the product of the momenta in float32, whatever the parameters are."""
    arguments = {"learning_rate": 0.01}
    ours, theirs = portopt_trajectory("Nadam", "torch", arguments), torch_trajectory("Nadam", arguments)
    assert_close(ours, theirs, tolerance=1e-6)
    with pytest.raises(AssertionError, match="off by"):
        assert_close(ours, theirs)


@pytest.mark.parametrize("rule", [rule for rule in portopt.RULES if "torch" in rule.dialects()])
def test_defaults_of_torch_are_torchs(rule: type[portopt.Optimizer]) -> None:
    name = rule.__name__
    if torch_class(name) is None or name in APART:
        return
    theirs = {n: p.default for n, p in inspect.signature(torch_class(name)).parameters.items()}
    ours = {n: v for n, v in rule.defaults("torch").items() if n not in ("dialect", "clipnorm", "clipvalue")}
    for argument, value in torch_arguments(name, ours).items():
        assert theirs[argument] == value, argument


# optax


OPTAX_NAMES = {
    "epsilon": ("eps",), "beta_1": ("b1",), "beta_2": ("b2",), "rho": ("decay",),
    "initial_accumulator_value": ("initial_scale",),
}  # fmt: skip
"""Names that functions of optax have for some arguments, unless they have portopt's."""


def optax_function(rule: str, given: Iterable[str] = ()) -> Any:
    """Return optax's function of a rule's name, or the one with weight decay if that is given; None if there is none."""
    function = getattr(optax, rule.lower(), None)
    if (
        function is not None
        and "weight_decay" in given
        and "weight_decay" not in inspect.signature(function).parameters
    ):
        function = getattr(optax, f"{rule.lower()}w", function)
    return function


def optax_names(function: Any, names: Iterable[str]) -> dict[str, str]:
    known = inspect.signature(function).parameters
    return {
        name: next((other for other in (name, *OPTAX_NAMES.get(name, ())) if other in known), name) for name in names
    }


def optax_transformation(rule: str, arguments: Mapping[str, Any]) -> Any:
    """Return the transformation that optax has for a rule and options."""
    given = dict(arguments)
    rate = given.pop("learning_rate", RULES[rule].defaults("optax")["learning_rate"])

    def schedule(count: Any) -> Any:
        return jnp.where(count < len(gradients()) // 2, rate_at(0, rate), rate_at(len(gradients()), rate))

    amsgrad = given.pop("amsgrad", False)
    decay = given.pop("weight_decay", None) if amsgrad else None
    function = optax.amsgrad if amsgrad else optax_function(rule, given)
    names = optax_names(function, given)
    given = {names[name]: value for name, value in given.items()}
    if not amsgrad:
        return function(schedule, **given)
    without_rate = function(optax.constant_schedule(-1.0), **given)  # cancels the sign of the rate
    tail = [] if decay is None else [optax.add_decayed_weights(decay)]
    return optax.chain(without_rate, *tail, optax.scale_by_learning_rate(schedule))


def optax_trajectory(rule: str, arguments: Mapping[str, Any]) -> list[list[Array]]:
    with jax.enable_x64(True):
        return trajectory(optax_transformation(rule, arguments), parameters(), gradients())


# Those with a call of their own are compared with NumPy, and that with optax: each comparison is compiled, which takes long.
@each_setting("optax", having=lambda rule: rule not in OWN_CALL and optax_function(rule) is not None, turns=3)
def test_optax_dialect_is_the_formula_of_optax(rule: str, number: int, arguments: Mapping[str, Any]) -> None:
    assert_close(portopt_trajectory(rule, "optax", arguments), optax_trajectory(rule, arguments))


@pytest.mark.parametrize("rule", [rule for rule in portopt.RULES if "optax" in rule.dialects()])
def test_defaults_of_optax_are_optaxs(rule: type[portopt.Optimizer]) -> None:
    """Apart from the learning rate, for which optax has no default."""
    function = optax_function(rule.__name__)
    if function is None or rule.__name__ in OWN_CALL:
        return
    with_decay = optax_function(rule.__name__, ["weight_decay"])
    theirs, further = (
        {name: p.default for name, p in inspect.signature(f).parameters.items()} for f in (function, with_decay)
    )
    names = optax_names(function, rule.defaults("optax"))
    for name, value in rule.defaults("optax").items():
        if name in ("learning_rate", "dialect", "clipnorm", "clipvalue", "amsgrad"):
            continue
        if name == "weight_decay" and name not in theirs:
            assert value == 0.0  # optax has it on in functions of their own, such as adamw
            assert name in further
            continue
        # optax says None where portopt's value for "off" is 0.
        assert (theirs[names[name]] or 0) == value, name


# Keras 3


@pytest.fixture(scope="module")
def keras3(elsewhere: Elsewhere) -> Any:
    environment = {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    return elsewhere.call("keras3_run", "results", **environment)


@each_setting("keras3")
def test_keras3_dialect_is_the_formula_of_keras_3(
    rule: str, number: int, arguments: Mapping[str, Any], keras3: Any
) -> None:
    if rule not in keras3["defaults"]:
        return
    assert_close(portopt_trajectory(rule, "keras3", arguments), keras3["trajectories"][f"{rule}/{number}"])


@pytest.mark.parametrize("rule", [rule for rule in portopt.RULES if "keras3" in rule.dialects()])
def test_defaults_of_keras3_are_those_of_keras_3(rule: type[portopt.Optimizer], keras3: Any) -> None:
    ignored = {name for c in rule.counterparts if c.namespace == "keras.optimizers" for name in c.ignored}
    theirs = {
        name: value
        for name, value in keras3["defaults"].get(rule.__name__, {}).items()
        if name not in ignored and not name.startswith(("use_ema", "ema_"))
    }
    assert {name: rule.defaults("keras3").get(name) for name in theirs} == theirs


# Packages that are not installed here


PUBLISHED = [
    (rule, dialect, number, arguments)
    for rule, dialect in FORMULAS
    for number, arguments in enumerate(settings_of(RULES[rule], dialect))
]


@pytest.mark.parametrize(
    ("rule", "dialect", "number", "arguments"), PUBLISHED, ids=[f"{rule}-{n}" for rule, _, n, _ in PUBLISHED]
)
def test_rule_is_the_formula_of_its_package(
    rule: str, dialect: str | None, number: int, arguments: Mapping[str, Any]
) -> None:
    given = {**arguments}
    rate = given.pop("learning_rate", RULES[rule].defaults(dialect)["learning_rate"])
    rates = [rate_at(step, rate) for step in range(len(gradients()))]
    trajectories = [
        list(FORMULAS[rule, dialect](p, [gradient[i] for gradient in gradients()], rates, **given))
        for i, p in enumerate(parameters())
    ]
    assert_close(portopt_trajectory(rule, dialect, arguments), [list(step) for step in zip(*trajectories, strict=True)])


@each_rule_and_dialect
def test_settings_cover_every_option_of_a_dialect(rule: type[portopt.Optimizer], dialect: str) -> None:
    given = {name for arguments in settings_of(rule, dialect) for name in arguments}
    assert given == set(rule.defaults(dialect)) - {"dialect", "clipnorm", "clipvalue"}


# The dialect as an option


def test_default_dialect_is_the_first() -> None:
    for rule in portopt.RULES:
        for dialect in rule.dialects()[:1]:
            assert rule().dialect == dialect  # type: ignore[attr-defined]  # rules with dialects have it
            assert rule() == rule(dialect=dialect)
            assert "dialect" not in rule().get_config()
            assert "dialect" not in repr(rule())


def test_default_dialect_of_the_rules_of_keras_2_is_keras_2() -> None:
    assert all(rule.dialects()[0] == "keras2" for rule in portopt.RULES if "keras2" in rule.dialects())
    assert portopt.Adam.dialects() == tuple(DIALECTS)


@each_rule_and_dialect
def test_optimizer_of_a_dialect_survives_every_kind_of_copy(rule: type[portopt.Optimizer], dialect: str) -> None:
    optimizer = rule(dialect=dialect, learning_rate=0.25)
    optimizer.program(shape=(3, 4))
    serialized = json.loads(json.dumps(portopt.serialize(optimizer)))
    for again in (
        portopt.deserialize(serialized),
        copy.deepcopy(optimizer),
        copy.copy(optimizer),
        pickle.loads(pickle.dumps(optimizer)),
        optimizer.replace(),
    ):
        assert again == optimizer
        assert hash(again) == hash(optimizer)
        assert again.numeric_hyperparameters() == optimizer.numeric_hyperparameters()
        assert again.get_config() == optimizer.get_config()
    config = dict(serialized["config"])
    assert config.pop("dialect", rule.dialects()[0]) == dialect
    assert set(config) == {name for name, value in rule.defaults(dialect).items() if value is not None} - {
        "dialect"
    } | ({"epsilon"} & set(rule.defaults(dialect)))


def test_dialects_are_different_optimizers() -> None:
    for rule in portopt.RULES:
        assert len({rule(learning_rate=0.1, dialect=dialect) for dialect in rule.dialects()}) == len(rule.dialects())


def test_dialect_can_be_replaced() -> None:
    assert portopt.Adam(0.1, epsilon=1e-3).replace(dialect="optax") == portopt.Adam(0.1, dialect="optax", epsilon=1e-3)
    assert portopt.SGD(dialect="torch", learning_rate=0.5).replace(dialect="keras2") == portopt.SGD(0.5)
    with pytest.raises(TypeError, match="SGD was given 'dampening', which does not exist in the dialect 'keras2'"):
        portopt.SGD(dialect="torch", momentum=0.5, dampening=0.5).replace(dialect="keras2")


def test_none_stands_for_the_default_of_what_keras_2_lacks() -> None:
    assert portopt.Adam(weight_decay=None, maximize=None) == portopt.Adam()
    assert portopt.Adam(dialect="keras3", weight_decay=None, epsilon=None).get_config()["weight_decay"] == 0.0
    assert portopt.Adam(dialect="torch", epsilon=None).epsilon == 1e-8
    portopt.set_epsilon(1e-3)
    assert portopt.Adam(dialect="torch", epsilon=None).epsilon == 1e-8


def test_unknown_dialect_is_refused() -> None:
    message = r"^Adam dialect must be 'keras2', 'keras3', 'torch' or 'optax', but {} was given$"
    with pytest.raises(ValueError, match=message.format("'pytorch'")):
        portopt.Adam(dialect="pytorch")  # type: ignore[arg-type]  # the error is the subject
    with pytest.raises(TypeError, match=message.format("None")):
        portopt.Adam(dialect=None)  # type: ignore[arg-type]  # the error is the subject
    with pytest.raises(ValueError, match=r"^Adam has no dialect 'pytorch': it has keras2, keras3, torch, optax$"):
        portopt.Adam.defaults("pytorch")


@each_rule_and_dialect
def test_option_of_another_dialect_is_refused(rule: type[portopt.Optimizer], dialect: str) -> None:
    """In the constructor, and for one step, before anything is changed."""
    foreign = {name for other in rule.dialects() for name in rule.defaults(other)} - set(rule.defaults(dialect))
    optimizer, p = rule(dialect=dialect), np.ones(2)
    state = optimizer.init(p)
    for name in foreign:
        having = listed([f"dialect={d!r}" for d in rule.dialects() if name in rule.defaults(d)], "or")
        message = rf"'{name}', which does not exist in the dialect '{dialect}': leave it out, or choose {having}$"
        owner = next(d for d in rule.dialects() if name in rule.defaults(d))
        value = other_values(rule, owner)[name]
        with pytest.raises(TypeError, match=f"^{rule.__name__} was given {message}"):
            rule(dialect=dialect, **{name: value})
        with pytest.raises(TypeError, match=rf"^{rule.__name__}\.apply was given {message}"):
            optimizer.apply_(p, np.ones(2), state, **{name: value})
        assert getattr(optimizer, name) is None
    assert_same_bits(p, np.ones(2))


def test_options_that_do_not_go_together_are_refused() -> None:
    message = r"^SGD nesterov needs momentum above 0 and no dampening in the dialect 'torch', but momentum=0\.{}"
    with pytest.raises(ValueError, match=message.format(0)):
        portopt.SGD(dialect="torch", nesterov=True)
    with pytest.raises(ValueError, match=message.format(5)):
        portopt.SGD(dialect="torch", nesterov=True, momentum=0.5, dampening=0.5)
    with pytest.raises(ValueError, match=r"^Adam amsgrad and nesterov do not go together, but both were given"):
        portopt.Adam(dialect="optax", amsgrad=True, nesterov=True)


def test_feature_that_needs_a_slot_cannot_be_switched_on_for_a_step() -> None:
    for optimizer in (portopt.SGD(dialect="torch"), portopt.RMSprop(dialect="optax")):
        name = type(optimizer).__name__
        with pytest.raises(
            ValueError,
            match=rf"^{name}\.apply was given 'momentum', which is off in this optimizer, so that its state lacks the slot "
            "moment: construct an optimizer with momentum and begin with the state from its init$",
        ):
            optimizer.apply(np.ones(2), np.ones(2), optimizer.init(np.ones(2)), momentum=0.5)
    optimizer = portopt.SGD(dialect="torch", momentum=0.5)
    optimizer.apply(np.ones(2), np.ones(2), optimizer.init(np.ones(2)), momentum=0.25, dampening=0.5)


def test_what_only_init_reads_cannot_be_given_for_a_step() -> None:
    optimizer = portopt.Adagrad(dialect="torch")
    with pytest.raises(TypeError, match=r"Adagrad\.apply: 'initial_accumulator_value' is fixed at construction"):
        optimizer.apply(np.ones(2), np.ones(2), optimizer.init(np.ones(2)), initial_accumulator_value=0.5)


def test_lists_of_weights_are_keras_2s_only() -> None:
    optimizer = portopt.Adam(dialect="torch")
    state = optimizer.init(np.ones(2))
    message = (
        "^get_weights and set_weights are about the lists of Keras 2, but the dialect of this Adam is 'torch': keep the state "
        "itself, or choose dialect='keras2'$"
    )
    with pytest.raises(ValueError, match=message):
        optimizer.get_weights(state)
    with pytest.raises(ValueError, match=message):
        optimizer.set_weights(state, [])


# Slots and programs


def test_slots_have_one_name_in_every_dialect_and_are_there_only_if_used() -> None:
    with_momentum = {portopt.SGD, portopt.LARS}
    assert all(rule(dialect=name).slots == rule().slots for rule, name in EACH if rule not in with_momentum)
    for name in portopt.LARS.dialects():
        assert portopt.LARS(dialect=name, momentum=0.0).slots == ()  # type: ignore[arg-type]  # a name of a dialect
        assert portopt.LARS(dialect=name, momentum=0.5).slots == ("moment",)  # type: ignore[arg-type]
    others: tuple[Dialect, ...] = ("keras3", "torch", "optax")
    for dialect in others:
        assert portopt.SGD(dialect=dialect).slots == ()
        assert portopt.SGD(dialect=dialect, momentum=0.5).slots == ("moment",)
        every = portopt.RMSprop(dialect=dialect, momentum=0.5, centered=True)
        assert every.slots == ("accumulator", "average_gradient", "moment")
    assert portopt.Nadam(dialect="optax").init(np.ones(1)).slots.keys() == {"m", "v"}


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize(("dtype", "slot_dtype"), [("float64", None), ("float32", None), ("float32", "bfloat16")])
def test_slots_begin_at_the_value_that_the_rule_says(library: str, dtype: str, slot_dtype: str | None) -> None:
    backend = portopt.get_backend(library)
    with backend.dtype_context(dtype):
        p = backend.from_numpy(np.ones(3, dtype), "cpu")
        state = portopt.Adagrad(dialect="keras3").init([p], slot_dtype=slot_dtype)
        found = backend.to_numpy(state.slots["accumulator"][0])
    wanted = {"float64": 0.1, "float32": float(np.float32(0.1))}[dtype] if slot_dtype is None else 0.10009765625
    assert str(found.dtype) == (slot_dtype or dtype)
    assert found.astype(np.float64).tolist() == [wanted] * 3


def test_momentum_of_torch_begins_with_the_first_gradient() -> None:
    optimizer = portopt.SGD(1.0, momentum=0.5, dampening=0.75, dialect="torch")
    p = np.zeros(1)
    state = optimizer.init(p)
    for moment in (8.0, 6.0, 5.0):
        p, state = optimizer.apply(p, np.full(1, 8.0), state)
        assert state.slots["moment"][0] == moment


@each_rule_and_dialect
def test_option_of_a_dialect_that_is_off_adds_no_operation(rule: type[portopt.Optimizer], dialect: str) -> None:
    fields = {name: field for name, field in rule.hyperparameters(dialect).items() if field.is_numeric}
    off = {name: field.off for name, field in fields.items() if field.is_optional}
    plain = rule(dialect=dialect, **off)
    for name in off.keys() - {"clipnorm", "clipvalue"}:
        assert all(name not in program.scalar_inputs for program in programs(plain))
        with_it = {"momentum": 0.5} if name == "dampening" else {}
        on = plain.replace(**{name: other_values(rule, dialect)[name]}, **with_it)
        assert any(name in program.scalar_inputs for program in programs(on))
        # None may as well stand for another value.
        assert off[name] is None or operations(plain) < operations(on)


@each_dialect
def test_clipping_is_the_same_in_every_dialect(dialect: str) -> None:
    g = ordinary((4,), "float64", 3)
    clipped = np.clip(g * (1.0 / np.linalg.norm(g)), -0.25, 0.25)
    optimizer = portopt.SGD(1.0, dialect=dialect, clipnorm=1.0, clipvalue=0.25)  # type: ignore[arg-type]  # a parameter
    found = optimizer.apply(np.zeros(4), g, optimizer.init(np.zeros(4)))[0]
    np.testing.assert_allclose(found, -clipped, rtol=1e-15)


# The page and the command


def make_dialect_tables() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "make_dialect_tables", ROOT / "scripts" / "make_dialect_tables.py", submodule_search_locations=None
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_page_of_dialects_is_up_to_date() -> None:
    page = (ROOT / "docs" / "dialects.md").read_text(encoding="utf-8")
    assert page == make_dialect_tables().render(), "docs/dialects.md is out of date: run `make api`"


def test_page_of_dialects_follows_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_dialect_tables()
    monkeypatch.setattr(portopt.SGD, "__doc__", "Summary.\n\n" + "".join(f"- {d}: `x`\n" for d in DIALECTS))
    assert "| optax | `x` |" in module.render()
    monkeypatch.setattr(portopt.SGD, "__doc__", "Summary.\n\n- keras2: `x`\n")
    with pytest.raises(
        SystemExit,
        match="the docstring of SGD must have one line `- dialect: formula` for each of its dialects, in order: "
        "keras2, keras3, torch, optax",
    ):
        module.render()


@each_dialect
def test_show_prints_the_program_of_a_dialect(dialect: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "adamax", "--dialect", dialect]) == 0
    assert capsys.readouterr().out == f"{portopt.Adamax(dialect=dialect).program()}\n"  # type: ignore[arg-type]  # a parameter


def test_show_refuses_a_dialect_without_the_options_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = '{"class_name": "SGD", "config": {"decay": 0.5}}'
    assert main(["show", config, "--dialect", "torch"]) == 2
    assert "portopt show: SGD was given 'decay', which does not exist in the dialect 'torch'" in capsys.readouterr().err
