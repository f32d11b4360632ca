"""Hyperparameters: defaults, names, ranges, values for one step, and optimizers as immutable values."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import pickle
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.bits import assert_same_bits, ordinary
from support.libraries import Library, each_library
from support.programs import programs

import portopt
from portopt.hyperparameters import Alias, Range, listed
from portopt.nested import NestedRule
from portopt.rules.settings import together

each_rule = pytest.mark.parametrize("rule", portopt.RULES)

KERAS_DEFAULTS: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False, "decay": 0.0},
    "RMSprop": {"learning_rate": 0.001, "rho": 0.9, "epsilon": 1e-7, "decay": 0.0},
    "Adagrad": {"learning_rate": 0.01, "epsilon": 1e-7, "decay": 0.0},
    "Adadelta": {"learning_rate": 1.0, "rho": 0.95, "epsilon": 1e-7, "decay": 0.0},
    "Adam": {
        "learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "amsgrad": False, "epsilon": 1e-7, "decay": 0.0,
    },
    "Adamax": {"learning_rate": 0.002, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "decay": 0.0},
    "Nadam": {"learning_rate": 0.002, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "schedule_decay": 0.004},
}  # fmt: skip

POSITIONAL = {
    "SGD": ["learning_rate", "momentum", "nesterov"],
    "RMSprop": ["learning_rate", "rho"],
    "Adagrad": ["learning_rate"],
    "Adadelta": ["learning_rate", "rho"],
    "Adam": ["learning_rate", "beta_1", "beta_2", "amsgrad"],
    "Adamax": ["learning_rate", "beta_1", "beta_2"],
    "Nadam": ["learning_rate", "beta_1", "beta_2"],
}

RANGES = {
    "learning_rate": "[0, inf)",
    "clipnorm": "(0, inf)",
    "clipvalue": "(0, inf)",
    "decay": "[0, inf)",
    "momentum": "[0, 1]",
    "rho": "[0, 1)",
    "beta_1": "[0, 1)",
    "beta_2": "[0, 1)",
    "epsilon": "[0, inf)",
    "schedule_decay": "[0, inf)",
}

NUMERIC = [(rule, name) for rule in portopt.RULES for name in rule.numeric_hyperparameters() if "." not in name]
OPTIONS = [
    (rule, name)
    for rule in portopt.RULES
    for name, field in rule.hyperparameters().items()
    if field.range is None and name != "dialect" and not isinstance(field, NestedRule)
]
WHOLE = 2.0
"""A value of hyperparameters that are whole numbers."""

each_numeric = pytest.mark.parametrize(("rule", "name"), NUMERIC)
each_option = pytest.mark.parametrize(("rule", "name"), OPTIONS)


def escaped(text: str) -> str:
    return "".join("\\" + c if c in "[]().+*?" else c for c in text)


# Construction


@pytest.mark.parametrize(("name", "expected"), KERAS_DEFAULTS.items())
def test_defaults_are_those_of_keras(name: str, expected: dict[str, Any]) -> None:
    rule = getattr(portopt, name)
    assert rule.dialects()[0] == "keras2"
    assert set(rule.defaults()) == {*expected, "clipnorm", "clipvalue", "dialect"}
    assert rule().get_config() == expected
    assert {name: getattr(rule(), name) for name in expected} == expected
    assert rule().clipnorm is None
    assert rule().clipvalue is None


@pytest.mark.parametrize(("name", "names"), POSITIONAL.items())
def test_positional_arguments_are_those_of_keras(name: str, names: list[str]) -> None:
    assert [n for n, field in getattr(portopt, name).hyperparameters().items() if not field.kw_only] == names


@each_rule
def test_positional_arguments_come_in_the_order_of_their_declaration(rule: type[portopt.Optimizer]) -> None:
    fields = {name: field for name, field in rule.hyperparameters().items() if not field.kw_only}
    names = list(fields)
    inner = portopt.SGD()
    values = [
        inner
        if isinstance(f, NestedRule)
        else WHOLE
        if f.range is not None and f.range.whole
        else 0.25
        if f.is_numeric
        else next(iter(f.choices), True)
        for f in fields.values()
    ]
    assert rule(*values) == rule(**dict(zip(names, values, strict=True)))
    with pytest.raises(
        TypeError,
        match=rf"{rule.__name__} takes at most {len(names)} positional arguments \({', '.join(names)}\), "
        rf"but {len(names) + 1} were given",
    ):
        rule(*values, 0.25)


@each_rule
def test_signature_shows_every_argument(rule: type[portopt.Optimizer]) -> None:
    parameters = inspect.signature(rule).parameters
    aliases = {name for name in dir(rule) if isinstance(getattr(rule, name), Alias)}
    assert set(parameters) == {
        *aliases,
        *(name for dialect in rule.dialects() or [None] for name in rule.defaults(dialect)),
    }
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name, field in rule.hyperparameters().items() if not field.kw_only]


@each_rule
def test_lr_is_another_name_of_learning_rate(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(lr=0.5)
    assert optimizer == rule(learning_rate=0.5)
    assert optimizer.lr == optimizer.learning_rate == 0.5


@each_rule
def test_both_names_of_the_learning_rate_at_once_are_an_error(rule: type[portopt.Optimizer]) -> None:
    message = f"{rule.__name__} was given learning_rate and lr at once, which are one hyperparameter; give only one"
    with pytest.raises(TypeError, match=message):
        rule(learning_rate=0.5, lr=0.5)
    with pytest.raises(TypeError, match=message):
        rule(learning_rate=0.5, lr=0.5)


def test_argument_given_by_position_and_name_is_an_error() -> None:
    with pytest.raises(TypeError, match="SGD was given momentum at once"):
        portopt.SGD(0.5, 0.5, momentum=0.5)  # type: ignore[misc]  # the error is the subject


@pytest.mark.parametrize(
    ("rule", "name", "nearest"),
    [
        (portopt.SGD, "momentun", "momentum"),
        (portopt.SGD, "learningrate", "learning_rate"),
        (portopt.Adam, "beta1", "beta_1"),
        (portopt.Adam, "epsilom", "epsilon"),
        (portopt.Adam, "clip_norm", "clipnorm"),
        (portopt.Nadam, "schedule_dekay", "schedule_decay"),
    ],
)
def test_unknown_argument_suggests_the_nearest(rule: type[portopt.Optimizer], name: str, nearest: str) -> None:
    with pytest.raises(
        TypeError, match=f"{rule.__name__} got an unknown argument '{name}'; did you mean '{nearest}'\\? allowed are "
    ):
        rule(**{name: 0.5})


def test_argument_like_no_other_gets_the_list_without_a_suggestion() -> None:
    with pytest.raises(
        TypeError, match="SGD got an unknown argument 'xyzzy'; allowed are clipnorm, clipvalue, decay, "
    ):
        portopt.SGD(xyzzy=1)  # type: ignore[call-arg]  # the error is the subject


# Ranges


def samples(allowed: Range) -> tuple[list[float], list[float]]:
    """Return values at and around the ends of a range: those inside, and those outside."""
    candidates = [-math.inf, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1e-300, 0.5, math.nextafter(1, 0), 1.0]
    candidates += [math.nextafter(1, 2), 2.0, 1e308, math.inf, math.nan]

    def fits(x: float) -> bool:
        return (
            math.isfinite(x)
            and not (allowed.at_least is not None and x < allowed.at_least)
            and not (allowed.above is not None and x <= allowed.above)
            and not (allowed.at_most is not None and x > allowed.at_most)
            and not (allowed.below is not None and x >= allowed.below)
            and not (allowed.whole and x % 1 != 0)
        )

    return [x for x in candidates if fits(x)], [x for x in candidates if not fits(x)]


def test_hyperparameters_of_keras_have_one_range_in_every_rule() -> None:
    for rule, name in NUMERIC:
        if name in RANGES:
            # Elsewhere, momentum may be the decay of a mean, of which 1 would keep nothing.
            is_decay = name == "momentum" and "keras2" not in rule.dialects()
            allowed = {RANGES[name], RANGES["beta_1"]} if is_decay else {RANGES[name]}
            assert str(rule.hyperparameters()[name].range) in allowed, (rule, name)
    assert set(RANGES) <= {name for _, name in NUMERIC}


@each_numeric
def test_values_in_the_range_are_kept_as_floats(rule: type[portopt.Optimizer], name: str) -> None:
    allowed = rule.hyperparameters()[name].range
    assert allowed is not None
    inside, _ = samples(allowed)
    for value in inside:
        kept = getattr(rule(**{name: value}), name)
        assert type(kept) is float
        assert kept == value


@each_numeric
def test_values_outside_the_range_are_refused(rule: type[portopt.Optimizer], name: str) -> None:
    allowed = rule.hyperparameters()[name].range
    assert allowed is not None
    _, outside = samples(allowed)
    assert any(math.isnan(x) for x in outside)
    assert math.inf in outside
    for value in outside:
        kind = "an integer " if allowed.whole else ""
        message = (
            f"{rule.__name__} {name} must be {kind}in {escaped(str(allowed))}, but {escaped(repr(value))} was given"
        )
        with pytest.raises(ValueError, match=message):
            rule(**{name: value})


@each_numeric
def test_values_that_are_no_numbers_are_refused(rule: type[portopt.Optimizer], name: str) -> None:
    allowed = escaped(str(rule.hyperparameters()[name].range))
    values: tuple[Any, ...] = (True, "0.5", [0.5], 0.5j, object())
    for value in values:
        with pytest.raises(
            TypeError,
            match=f"{rule.__name__} {name} must be a Python (number|integer) in {allowed}, but .*"
            f"of type {type(value).__name__} was given",
        ):
            rule(**{name: value})


@each_numeric
def test_none_is_refused_where_it_has_no_meaning(rule: type[portopt.Optimizer], name: str) -> None:
    field = rule.hyperparameters()[name]
    if field.off is None or field.none_means is not None:
        rule(**{name: None})
        return
    with pytest.raises(
        TypeError, match=f"{name} must be a Python (number|integer) .* but None of type NoneType was given"
    ):
        rule(**{name: None})


@pytest.mark.parametrize("value", [np.ones(1), np.asarray(0.5), torch.tensor(0.5)], ids=["1-d", "0-d", "tensor"])
def test_array_is_refused_and_the_message_says_where_it_goes(value: Any) -> None:
    with pytest.raises(TypeError, match=r"known only at run time is given to apply: apply\(..., learning_rate=x\)"):
        portopt.SGD(learning_rate=value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)], ids=repr)
def test_real_numbers_of_other_types_become_floats(value: Any) -> None:
    kept = portopt.SGD(learning_rate=value).learning_rate
    assert type(kept) is float
    assert kept == 0.5


def test_integers_become_floats() -> None:
    assert type(portopt.SGD(learning_rate=1).learning_rate) is float
    rate: Any = np.int32(1)
    assert type(portopt.SGD(learning_rate=rate).learning_rate) is float


def test_integer_beyond_all_floats_is_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"SGD learning_rate must be in \[0, inf\)"):
        portopt.SGD(learning_rate=10**400)


@each_option
def test_options_are_booleans_or_names(rule: type[portopt.Optimizer], name: str) -> None:
    choices = rule.hyperparameters()[name].choices
    allowed = listed(map(repr, choices), "or") if choices else "True or False"
    for value in choices or (True,):
        assert getattr(rule(**{name: value}), name) is value
    for wrong in (0 if 1 in choices else 1, 0.0, "yes", None, np.True_):
        error = ValueError if choices and type(wrong) is type(choices[0]) else TypeError
        with pytest.raises(error, match=f"{rule.__name__} {name} must be {allowed}, but "):
            rule(**{name: wrong})


# epsilon


def test_epsilon_none_means_the_default() -> None:
    assert portopt.epsilon() == portopt.Adam().epsilon == portopt.Adam(epsilon=None).epsilon == 1e-7


def test_set_epsilon_changes_optimizers_constructed_later() -> None:
    before = portopt.Adam()
    portopt.set_epsilon(1e-5)
    assert portopt.epsilon() == 1e-5
    assert portopt.Adam().epsilon == 1e-5
    assert portopt.Adam(epsilon=1e-3).epsilon == 1e-3
    assert before.epsilon == before.replace(learning_rate=1.0).epsilon == 1e-7
    assert portopt.Adam.from_config(before.get_config()) == before


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_set_epsilon_refuses_values_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match=r"set_epsilon value must be in \[0, inf\), but .* was given"):
        portopt.set_epsilon(value)
    assert portopt.epsilon() == 1e-7


def test_set_epsilon_refuses_what_is_no_number() -> None:
    with pytest.raises(
        TypeError, match=r"set_epsilon value must be a Python number in \[0, inf\), but '1e-7' of type str"
    ):
        portopt.set_epsilon("1e-7")  # type: ignore[arg-type]  # the error is the subject


# Immutable values


@each_rule
def test_hyperparameters_cannot_be_set(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule()
    for name in (*rule._fields, "lr"):
        with pytest.raises(
            AttributeError,
            match=rf"an optimizer is immutable, so '(learning_rate|{name})' cannot be set: give a value for one step as "
            rf"apply\(..., .*=x\), or make another optimizer with replace\(.*=x\)",
        ):
            setattr(optimizer, name, 0.5)
    assert optimizer == rule()


def test_hyperparameters_cannot_be_deleted() -> None:
    optimizer = portopt.SGD()
    with pytest.raises(AttributeError, match="an optimizer is immutable"):
        del optimizer.learning_rate
    assert optimizer.learning_rate == 0.01


@each_rule
def test_replace_changes_only_what_is_named(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(clipnorm=2.0)
    assert optimizer.replace() == optimizer
    changed = optimizer.replace(learning_rate=0.75)
    assert changed == rule(learning_rate=0.75, clipnorm=2.0)
    assert optimizer.replace(lr=0.75) == changed
    assert optimizer == rule(clipnorm=2.0)


def test_replace_checks_like_the_constructor() -> None:
    with pytest.raises(ValueError, match=r"SGD momentum must be in \[0, 1\], but 2.0 was given"):
        portopt.SGD().replace(momentum=2.0)
    with pytest.raises(TypeError, match="SGD got an unknown argument 'momentun'; did you mean 'momentum'"):
        portopt.SGD().replace(momentun=0.5)
    with pytest.raises(TypeError, match="at once"):
        portopt.SGD().replace(lr=0.5, learning_rate=0.25)


@each_rule
def test_equal_hyperparameters_make_equal_optimizers(rule: type[portopt.Optimizer]) -> None:
    one, other = rule(lr=0.5), rule(learning_rate=0.5)
    one.program(shape=(3, 4))
    assert one == other
    assert hash(one) == hash(other)
    assert one != rule(learning_rate=0.25)
    assert one != rule(learning_rate=0.5, clipvalue=1.0)
    assert len({one, other, rule(learning_rate=0.25)}) == 2


def test_optimizers_of_different_rules_differ() -> None:
    assert portopt.Adagrad(0.5, epsilon=0.1) != portopt.RMSprop(0.5, epsilon=0.1)
    assert portopt.SGD() != "SGD"


@each_rule
def test_repr_gives_the_optimizer_back(rule: type[portopt.Optimizer]) -> None:
    for optimizer in (rule(), rule(learning_rate=0.125, clipnorm=1.5)):
        assert eval(repr(optimizer), vars(portopt)) == optimizer


def test_repr_names_every_hyperparameter_that_is_on() -> None:
    assert repr(portopt.SGD(0.5, clipvalue=2)) == (
        "SGD(learning_rate=0.5, clipvalue=2.0, momentum=0.0, nesterov=False, decay=0.0)"
    )


@each_rule
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_equal_and_work(rule: type[portopt.Optimizer], duplicate: Any) -> None:
    optimizer = rule(learning_rate=0.5, clipnorm=1.0)
    p, g = ordinary((3,), "float32", 1), ordinary((3,), "float32", 2)
    with portopt.interpreted():
        expected = optimizer.apply(p, g, optimizer.init(p))[0]
    twin = duplicate(optimizer)
    assert twin is not optimizer
    assert twin == optimizer
    assert hash(twin) == hash(optimizer)
    with portopt.interpreted():
        assert_same_bits(twin.apply(p, g, twin.init(p))[0], expected)


# Values for one step


def quarter(library: Library) -> list[Any]:
    """Return 0.25 in every form that a step takes."""
    numbers = [0.25, np.float64(0.25), np.float32(0.25), np.asarray(0.25), np.asarray(0.25, np.float16)]
    return [*numbers, torch.tensor(0.25), jnp.asarray(0.25), library.arrays(np.asarray(0.25, np.float32))]


@each_library
def test_learning_rate_for_one_step(library: Library) -> None:
    params, grads = (library.arrays(ordinary((5,), "float32", seed)) for seed in (1, 2))
    optimizer = portopt.Adam(learning_rate=0.5)
    state = optimizer.init(params)
    expected = portopt.Adam(learning_rate=0.25).apply(params, grads, state)[0]
    for value in quarter(library):
        for name in ("learning_rate", "lr"):
            actual = optimizer.apply(params, grads, state, **{name: value})[0]
            assert_same_bits(library.numpy(actual), library.numpy(expected), repr(value))
    again = optimizer.apply(params, grads, state)[0]
    assert_same_bits(library.numpy(again), library.numpy(portopt.Adam(0.5).apply(params, grads, state)[0]))


@each_numeric
def test_every_numeric_hyperparameter_can_be_given_for_one_step(rule: type[portopt.Optimizer], name: str) -> None:
    p, g = ordinary((4,), "float64", 1), ordinary((4,), "float64", 2)
    optimizer = rule()
    state = optimizer.init(p)
    # Kernels take all values in one way, and one for each feature of each rule would take long to compile.
    with contextlib.nullcontext() if rule is portopt.Adam else portopt.interpreted():
        _compare_with_replaced(optimizer, name, p, g, state)


def _compare_with_replaced(optimizer: portopt.Optimizer, name: str, p: Any, g: Any, state: Any) -> None:
    for _ in range(2):
        p, state = optimizer.apply(p, g, state)
    value = values_within(type(optimizer), (0.375, 1.375, -0.375)).get(name, 0.375)
    if set(optimizer.replace(**{name: value}).init(p).slots) != set(state.slots):
        return  # a feature that needs a slot cannot be switched on for a step
    expected = optimizer.replace(**{name: value}).apply(p, g, state)
    actual = optimizer.apply(p, g, state, **{name: value})
    assert_same_bits(actual[0], expected[0])
    for slot, array in expected[1].slots.items():
        assert_same_bits(actual[1].slots[slot], array)


def test_a_feature_whose_value_for_off_is_none_can_be_switched_off_for_one_step() -> None:
    p, g = ordinary((3, 4), "float64", 1), ordinary((3, 4), "float64", 2)
    for bounded, free, given in (
        (portopt.SM3(beta_2=0.5), portopt.SM3(), {"beta_2": None}),
        (portopt.Adafactor(epsilon_1=0.5), portopt.Adafactor(), {"epsilon_1": None}),
    ):
        state = bounded.apply(p, g, bounded.init(p))[1]
        assert_same_bits(bounded.apply(p, g, state, **given)[0], free.apply(p, g, state)[0])
        assert np.any(bounded.apply(p, g, state)[0] != free.apply(p, g, state)[0])


@each_library
def test_clipping_can_be_switched_on_and_off_for_one_step(library: Library) -> None:
    params, grads = (library.arrays(ordinary((5,), "float32", seed)) for seed in (1, 2))
    plain, clipping = portopt.SGD(0.5), portopt.SGD(0.5, clipnorm=0.125, clipvalue=0.0625)
    state = plain.init(params)
    clipped = clipping.apply(params, grads, state)[0]
    unclipped = plain.apply(params, grads, state)[0]
    switched_on = plain.apply(params, grads, state, clipnorm=0.125, clipvalue=0.0625)[0]
    switched_off = clipping.apply(params, grads, state, clipnorm=None, clipvalue=None)[0]
    assert_same_bits(library.numpy(switched_on), library.numpy(clipped))
    assert_same_bits(library.numpy(switched_off), library.numpy(unclipped))
    assert np.any(library.numpy(clipped) != library.numpy(unclipped))


def test_apply_in_place_takes_hyperparameters_for_one_step() -> None:
    p, g = ordinary((4,), "float32", 1), ordinary((4,), "float32", 2)
    optimizer = portopt.SGD(0.5)
    expected = optimizer.apply(p, g, optimizer.init(p), learning_rate=0.25)[0]
    optimizer.apply_(p, g, optimizer.init(p), learning_rate=0.25)
    assert_same_bits(p, expected)


P = np.ones(2, np.float32)


def apply_sgd(**hyperparameters: Any) -> Any:
    optimizer = portopt.SGD()
    return optimizer.apply(P, P, optimizer.init(P), **hyperparameters)


def test_unknown_hyperparameter_for_one_step_suggests_the_nearest() -> None:
    with pytest.raises(
        TypeError, match=r"SGD.apply got an unknown argument 'learningrate'; did you mean 'learning_rate'\? "
    ):
        apply_sgd(learningrate=0.5)


def test_flag_for_one_step_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"SGD.apply: 'nesterov' is fixed at construction; construct another optimizer to change it"
    ):
        apply_sgd(nesterov=True)


def test_two_names_for_one_step_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"SGD.apply was given 'lr' and another name of it at once; give only one of them"
    ):
        apply_sgd(learning_rate=0.5, lr=0.5)


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
@pytest.mark.parametrize("form", [float, np.asarray, torch.tensor, jnp.asarray], ids=["float", "numpy", "torch", "jax"])
def test_value_out_of_range_for_one_step_is_refused(value: float, form: Any) -> None:
    with pytest.raises(
        ValueError, match=r"SGD.apply learning_rate must be in \[0, inf\), but (-0.5|nan|inf) was given"
    ):
        apply_sgd(learning_rate=form(value))
    with pytest.raises(ValueError, match=r"SGD.apply momentum must be in \[0, 1\], but "):
        apply_sgd(momentum=form(value))


@pytest.mark.parametrize(
    "value", [None, "fast", True, [0.5], lambda step: 0.5], ids=["None", "str", "bool", "list", "function"]
)
def test_value_that_is_no_number_for_one_step_is_refused(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"SGD.apply learning_rate must be a Python number .*in \[0, inf\), but .* of type"
    ):
        apply_sgd(learning_rate=value)


@pytest.mark.parametrize("value", [0.5j, "fast", None, True], ids=["complex", "str", "object", "bool"])
def test_array_of_no_real_number_for_one_step_is_refused(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"SGD.apply learning_rate must be a number in \[0, inf\), but .* of dtype .* was given"
    ):
        apply_sgd(learning_rate=np.asarray(value))


@pytest.mark.parametrize("form", [np.ones, torch.ones, jnp.ones], ids=["numpy", "torch", "jax"])
def test_array_with_a_shape_for_one_step_is_refused(form: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"SGD.apply learning_rate must be a Python number or a 0-d array, but an array of shape \(1,\) was given",
    ):
        apply_sgd(learning_rate=form(1))


def test_tensor_that_requires_grad_gives_its_value() -> None:
    optimizer, p = portopt.SGD(), torch.ones(2)
    value = torch.tensor(0.5, requires_grad=True)
    assert torch.equal(optimizer.apply(p, p, optimizer.init(p), learning_rate=value)[0], torch.full((2,), 0.5))


def test_known_value_out_of_range_is_refused_inside_jit() -> None:
    optimizer = portopt.SGD()
    p = jnp.ones(2)
    with pytest.raises(ValueError, match=r"SGD.apply learning_rate must be in \[0, inf\), but -0.5 was given"):
        jax.jit(lambda p, s: optimizer.apply(p, p, s, learning_rate=np.asarray(-0.5)))(p, optimizer.init(p))


# A new value compiles nothing


def values_within(rule: type[portopt.Optimizer], candidates: Sequence[float]) -> dict[str, float]:
    """Return the first of some numbers that is in the range of a hyperparameter, for those of a rule that go together."""
    values = {
        n: next(x for x in (*candidates, WHOLE) if x in (rule.hyperparameter_named(n).range or ()))
        for n in rule.numeric_hyperparameters()
    }
    return together(rule, None, values)


def moved(values: Mapping[str, float], distance: float) -> dict[str, float]:
    """Return other values, away from zero; of whole numbers whole ones."""
    return {n: v + math.copysign(math.ceil(distance) if v == WHOLE else distance, v) for n, v in values.items()}


def test_new_values_use_the_program_that_is_there() -> None:
    optimizer = portopt.Adam()
    program = optimizer.program()
    assert optimizer.program({"learning_rate": 0.5, "beta_1": 0.25}) is program
    assert optimizer.program({"clipnorm": None}) is program
    with_clipping = optimizer.program({"clipnorm": 0.5})
    assert with_clipping is not program
    assert optimizer.program({"clipnorm": 2.0}) is with_clipping


@pytest.mark.parametrize("rule", portopt.RULES)
def test_hyperparameters_are_inputs_of_the_program(rule: type[portopt.Optimizer]) -> None:
    """Two optimizers that differ in values only run one program: no value is baked in."""
    values = values_within(rule, (0.25, 1.25, -0.25))
    one, other = (programs(rule(**given)) for given in (values, moved(values, 0.5)))
    assert one == other
    for name, value in values.items():
        assert any(name in program.scalar_inputs for program in programs(rule(**{name: value})))


# That no rule's program depends on a value is tested above, without compiling anything.
@pytest.mark.parametrize("rule", [portopt.Adam, portopt.Nadam, portopt.LAMB, portopt.Prodigy])
def test_new_values_compile_nothing_under_jit(rule: type[portopt.Optimizer]) -> None:
    optimizer = rule(clipnorm=1.0)
    traces = 0

    @jax.jit
    def step(params: Any, grads: Any, state: Any, values: dict[str, Any]) -> Any:
        nonlocal traces
        traces += 1
        return optimizer.apply(params, grads, state, **values)

    params, grads = jnp.ones(3), jnp.full(3, 0.5)
    state = optimizer.init(params)
    given = [moved(values_within(rule, (0.25, 1.25, -0.25)), distance) for distance in (0.0, 0.25, 0.5)]
    results = [step(params, grads, state, values)[0] for values in given]
    assert traces == 1
    assert step._cache_size() == 1  # type: ignore[attr-defined]  # jax.jit's function has it, its annotation has not
    host, host_grads = np.asarray(params), np.asarray(grads)
    for result, values in zip(results, given, strict=True):
        with portopt.interpreted():
            expected = optimizer.apply(host, host_grads, optimizer.init(host), **values)[0]
        assert_same_bits(np.asarray(result), expected)
