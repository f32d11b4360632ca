"""What Keras' interface gives an optimizer, on each backend of Keras: honoured as by Keras' own optimizers, or refused."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cases.keras_backend import BACKEND, of_this_backend
from cases.keras_cases import (
    RULES,
    arrays,
    assert_same,
    assert_same_weights,
    compiled,
    eager,
    fit,
    model,
    state_of,
    steps_in_portopt,
    to_numpy,
)
from support.bits import assert_same_bits, random_words

import portopt
import portopt_keras
from portopt.backend import get_backend

NAMES = ("kernel", "bias", "scale")


class Shrinking(portopt.Optimizer):
    """A rule of a user that cannot do without weight decay."""

    weight_decay: float = portopt.hyperparameter(default=0.1, above=0)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.lr * (g + self.weight_decay * p), {}


class Remembering(portopt.Optimizer):
    """A rule of a user that has a slot for its weight decay."""

    weight_decay: float = portopt.hyperparameter(default=0.1, at_least=0, off=0.0)

    @property
    def slots(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on an option
        return ("decayed",) if self.weight_decay else ()

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p - c.lr * g, {"decayed": slots.decayed + p} if self.weight_decay else {}


def variables_of(data: list[Any]) -> list[Any]:
    return [keras.Variable(value, name=name, dtype=value.dtype.name) for value, name in zip(data, NAMES, strict=True)]


def steps(optimizer: Any, variables: list[Any], data: list[list[Any]], run: Any = compiled) -> tuple[list[Any], Any]:
    """Return parameters and state after steps in Keras."""
    optimizer.build(variables)
    step = run(optimizer, variables)
    for gradients in data[1:]:
        step([keras.ops.convert_to_tensor(g) for g in gradients])
    return list(map(to_numpy, variables)), state_of(optimizer)


def expected_with_exclusions(
    rule: portopt.Optimizer, data: list[list[Any]], excluded: Sequence[int]
) -> tuple[list[Any], dict[str, Any]]:
    """Return parameters and state after steps of two optimizers, both clipped by the norm of all gradients."""
    parts = (
        (rule, [i for i in range(len(NAMES)) if i not in excluded]),
        (rule.replace(weight_decay=0.0), list(excluded)),
    )
    found: list[Any] = [None] * len(NAMES)
    state: dict[str, Any] = {name: [None] * len(NAMES) for name in rule.slots}
    norms = [get_backend("numpy").gradient_norm(gradients) for gradients in data[1:]]
    for optimizer, indices in parts:
        if not indices:
            continue
        own = [[arrays[i] for i in indices] for arrays in data]
        params, slots = steps_in_portopt(optimizer, own, gradient_norm=norms)
        for k, i in enumerate(indices):
            found[i] = params[k]
            for name in rule.slots:
                state[name][i] = slots[name][k]
        state |= {name: slots[name] for name in rule.scalar_slots}
    return found, {name: state[name] for name in (*rule.scalar_slots, *rule.slots)}


def case_variables_excluded_by_name_or_by_themselves_are_not_decayed_by_the_rule(folder: Path) -> None:
    data = arrays(3, make=random_words)
    adam = portopt.Adam(0.1, dialect="keras3", weight_decay=0.3, clipnorm=0.5, clipvalue=0.2)
    sgd = portopt.SGD(0.1, 0.9, dialect="torch", weight_decay=0.3)
    nadam = portopt.Nadam(0.1, dialect="keras3", weight_decay=0.3)
    for rule, run, given, excluded in of_this_backend(
        (adam, eager, {"var_names": ["^k.*l$", "scale"]}, [0, 2]),
        (sgd, compiled, {"var_names": ["nothing"]}, []),
        (sgd, compiled, {"var_list": (0, 1, 2)}, [0, 1, 2]),
        (nadam, compiled, {"var_list": (2,), "var_names": ["bias"]}, [1, 2]),
        (portopt.Adam(0.1, dialect="optax", weight_decay=0.3, clipnorm=1.5), compiled, {"var_list": (0,)}, [0]),
        always=[(adam, compiled, {"var_names": ["bias"]}, [1])],
    ):
        variables = variables_of(data[0])
        optimizer = portopt_keras.KerasOptimizer(rule)
        arguments: dict[str, Any] = dict(given)
        if "var_list" in arguments:
            arguments["var_list"] = [variables[i] for i in arguments["var_list"]]
        optimizer.exclude_from_weight_decay(**arguments)
        expected = expected_with_exclusions(rule, data, excluded)
        assert_same(steps(optimizer, variables, data, run), expected, f"{rule!r} {given}")


class NoisyDecayed(portopt.NoisySGD):
    """Gradient noise, and weight decay."""

    weight_decay: float = portopt.hyperparameter(default=0.3, at_least=0, off=0.0)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, noise: Any) -> Any:
        p = p - c.lr * self.weight_decay * p if self.weight_decay else p
        return super().update(xp, p, g, slots, c, noise)


def case_what_is_drawn_for_a_variable_does_not_depend_on_which_others_are_excluded_or_move(folder: Path) -> None:
    data = arrays(2)
    decayed, undecayed = NoisyDecayed(0.1, eta=1.0), NoisyDecayed(0.1, eta=1.0, weight_decay=0.0)
    expected = [steps_in_portopt(rule, data)[0] for rule in (decayed, undecayed)]
    variables = variables_of(data[0])
    optimizer = portopt_keras.KerasOptimizer(decayed)
    optimizer.exclude_from_weight_decay(var_list=[variables[0]])
    found, _ = steps(optimizer, variables, data)
    for i, value in enumerate(found):
        assert_same_bits(value, expected[1 if i == 0 else 0][i], f"variable {i}")
    variables = variables_of(data[0])
    optimizer = portopt_keras.KerasOptimizer(undecayed)
    optimizer.build(variables)
    for gradients in data[1:]:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients[1:]], variables[1:])
    for i in range(1, len(variables)):
        assert_same_bits(to_numpy(variables[i]), expected[1][i], f"variable {i}, without the first")


def case_exclusion_takes_the_path_of_a_variable_for_its_name_too(folder: Path) -> None:
    trained = model(optimizer := portopt_keras.SGD(0.0, weight_decay=0.5, dialect="keras3"))
    layer = trained.layers[-1]
    optimizer.exclude_from_weight_decay(var_names=[layer.name])
    optimizer.build(trained.trainable_variables)
    assert [not optimizer._use_weight_decay(v) for v in trained.trainable_variables] == [False, False, True, True]


def case_exclusion_holds_for_the_weight_decay_of_keras_too(folder: Path) -> None:
    data = arrays(2)
    for optimizer in (
        portopt_keras.SGD(0.1, weight_decay=0.5),
        portopt_keras.KerasOptimizer(portopt.SGD(0.1), weight_decay=0.5),
    ):
        for excluded in ([1], [0, 1, 2]):
            copy = type(optimizer).from_config(optimizer.get_config())
            variables = variables_of(data[0])
            copy.exclude_from_weight_decay(var_list=[variables[i] for i in excluded])
            found, _ = steps(copy, variables, data)
            native = keras.optimizers.SGD(0.1, weight_decay=0.5)
            decayed = [i for i in range(len(NAMES)) if i not in excluded]
            without, _ = steps_in_portopt(portopt.SGD(0.1), data)
            for i in excluded:
                assert_same_bits(found[i], without[i])
            if decayed:
                others = [keras.Variable(data[0][i]) for i in decayed]
                native.build(others)
                for gradients in data[1:]:
                    native.apply([keras.ops.convert_to_tensor(gradients[i]) for i in decayed], others)
                for i, variable in zip(decayed, others, strict=True):
                    np.testing.assert_allclose(found[i], to_numpy(variable), rtol=2e-6)


def case_exclusion_holds_for_some_of_the_gradients_and_in_accumulation(folder: Path) -> None:
    data = arrays(2)
    rule = portopt.SGD(0.1, dialect="keras3", weight_decay=0.5)
    variables = variables_of(data[0])
    optimizer = portopt_keras.KerasOptimizer(rule, gradient_accumulation_steps=2)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    means = [(a + b) / np.float32(2) for a, b in zip(data[1], data[2], strict=True)]
    expected, _ = expected_with_exclusions(rule, [data[0], means], [1])
    found, _ = steps(optimizer, variables, data)
    for actual, value in zip(found, expected, strict=True):
        assert_same_bits(actual, value)
    if BACKEND == "jax":
        # Keras' own apply takes a part of the variables on its other backends.
        return
    variables = variables_of(data[0])
    optimizer = portopt_keras.KerasOptimizer(rule)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in data[1][1:]], variables[1:])
    expected, _ = expected_with_exclusions(rule, data[:2], [1])
    for i, value in enumerate([data[0][0], *expected[1:]]):
        assert_same_bits(to_numpy(variables[i]), value)


def case_a_gradient_of_a_wrong_shape_moves_nothing(folder: Path) -> None:
    data = arrays(1)
    variables = variables_of(data[0])
    optimizer = portopt_keras.SGD(0.1, dialect="keras3", weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    gradients = [keras.ops.convert_to_tensor(g) for g in data[1]]
    gradients[1] = keras.ops.ones((7,))
    with pytest.raises(Exception, match=r"[Ss]hape"):  # TensorFlow has errors of its own
        optimizer.apply(gradients, variables)
    for variable, value in zip(variables, data[0], strict=True):
        assert_same_bits(to_numpy(variable), value)


def case_exclusions_are_saved_and_the_run_goes_on_with_the_same_bits(folder: Path) -> None:
    for number, names in enumerate(of_this_backend(["bias"], None, ["kernel"])):
        optimizer = portopt_keras.Adam(0.01, dialect="keras3", weight_decay=0.5, clipnorm=1.0)
        uninterrupted = model(optimizer)
        kernels = [v for v in uninterrupted.trainable_variables if v.name == "kernel"]
        optimizer.exclude_from_weight_decay(None if names else kernels, names)
        fit(uninterrupted)
        path = folder / f"{BACKEND}-excluded-{number}.keras"
        uninterrupted.save(path)
        fit(uninterrupted)
        loaded = keras.models.load_model(path)
        assert json.loads(json.dumps(loaded.optimizer.get_config())) == json.loads(json.dumps(optimizer.get_config()))
        fit(loaded)
        assert_same_weights(loaded, uninterrupted)


def case_exclusions_that_cannot_be_honoured_are_refused(folder: Path) -> None:
    optimizer = portopt_keras.Adam(0.1, dialect="keras3", weight_decay=0.5)
    with pytest.raises(TypeError, match=r"takes var_names as a list of strings, but 'bias' was given: give \['bias'\]"):
        optimizer.exclude_from_weight_decay(var_names="bias")
    variables = [keras.Variable(np.ones(2, np.float32), name="bias")]
    optimizer.build(variables)
    # A loaded optimizer is built, and can still be told.
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([keras.ops.zeros(2)], variables)
    assert to_numpy(variables[0]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"was called on 'adam.*' after a step, in which variables were decayed"):
        optimizer.exclude_from_weight_decay(var_list=variables)
    with pytest.raises(ValueError, match=r"Shrinking weight_decay must be in \(0, inf\), but 0.0 was given"):
        portopt_keras.KerasOptimizer(Shrinking(0.1)).exclude_from_weight_decay(var_names=["bias"])
    with pytest.raises(
        ValueError, match="variables cannot be excluded from the weight decay of Remembering, whose slots are"
    ):
        portopt_keras.KerasOptimizer(Remembering(0.1)).exclude_from_weight_decay(var_names=["bias"])
    optimizer = portopt_keras.Adam(0.1, dialect="keras3", weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=variables)
    with pytest.raises(ValueError, match="one by one, which a config can say only once the optimizer is built"):
        optimizer.get_config()
    optimizer.build(variables)
    copy = portopt_keras.Adam.from_config(optimizer.get_config())
    with pytest.raises(
        ValueError, match=r"excludes variable 0, 'bias' of shape \[2\], from weight decay, but .* with others"
    ):
        copy.build([keras.Variable(np.ones(3, np.float32), name="bias")])


def case_options_do_for_adam_what_they_do_for_that_of_keras(folder: Path) -> None:
    data = arrays(6)
    for options in of_this_backend(
        {"use_ema": True, "ema_momentum": 0.9},
        {"use_ema": True, "ema_overwrite_frequency": 1, "gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 3, "global_clipnorm": 0.5},
        {"loss_scale_factor": 8.0, "clipnorm": 0.1},
        {"loss_scale_factor": 8.0, "gradient_accumulation_steps": 2, "clipvalue": 0.01},
    ):
        for run in (compiled, eager) if "ema_overwrite_frequency" in options else (compiled,):
            results = []
            for optimizer in (
                portopt_keras.KerasOptimizer(portopt.Adam(0.1, dialect="keras3", weight_decay=0.1), **options),
                keras.optimizers.Adam(0.1, weight_decay=0.1, **options),
            ):
                variables = variables_of(data[0])
                optimizer.build(variables)
                step = run(optimizer, variables)
                for gradients in data[1:]:
                    step([keras.ops.convert_to_tensor(g) for g in gradients])
                before = list(map(to_numpy, variables))
                optimizer.finalize_variable_values(variables)
                results.append((before, list(map(to_numpy, variables)), float(optimizer.scale_loss(2.0))))
            for ours, theirs in zip(*results, strict=True):
                for a, e in zip(
                    np.atleast_1d(np.asarray(ours, object)), np.atleast_1d(np.asarray(theirs, object)), strict=True
                ):
                    # Both compute in float32, in another order of operations.
                    np.testing.assert_allclose(a, e, rtol=5e-5, atol=5e-6, err_msg=f"{options} {run.__name__}")


def case_a_compiled_trainer_and_one_that_is_not_give_the_same_weights(folder: Path) -> None:
    found = []
    for options in ({"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}):
        trained = model(portopt_keras.Adam(0.01, dialect="keras3"), **options)
        x = np.ones((4, 64), np.float32)
        with warnings.catch_warnings():
            # Torch's compiler warns of what it does itself.
            warnings.simplefilter("ignore")
            trained.fit(x, np.arange(4), epochs=2, verbose=0, shuffle=False)
        found.append(list(map(to_numpy, trained.trainable_variables)))
    for others in found[1:]:
        for a, e in zip(others, found[0], strict=True):
            # The gradients are the compiler's, whose sums differ in the last bits.
            np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4)


def case_options_that_would_do_nothing_are_refused(folder: Path) -> None:
    for options, error, message in (
        ({"clipnorm": 0.0}, ValueError, r"KerasOptimizer clipnorm must be in \(0, inf\), but 0.0 was given"),
        ({"clipvalue": -1.0}, ValueError, r"clipvalue must be in \(0, inf\), but -1.0 was given"),
        ({"global_clipnorm": float("nan")}, ValueError, r"global_clipnorm must be in \(0, inf\), but nan was given"),
        ({"weight_decay": -0.5}, ValueError, r"weight_decay must be in \[0, inf\), but -0.5 was given"),
        ({"loss_scale_factor": 0.0}, ValueError, r"loss_scale_factor must be in \(0, inf\), but 0.0 was given"),
        ({"use_ema": True, "ema_momentum": 1.5}, ValueError, r"ema_momentum must be in \[0, 1\], but 1.5 was given"),
        ({"gradient_accumulation_steps": 1}, ValueError, "must be an integer of at least 2, or None, but 1 was given"),
        ({"gradient_accumulation_steps": 0}, ValueError, "must be an integer of at least 2, or None, but 0 was given"),
        ({"gradient_accumulation_steps": 2.5}, TypeError, "must be an integer of at least 2, or None, but 2.5 was"),
        (
            {"use_ema": True, "ema_overwrite_frequency": 0},
            ValueError,
            "must be an integer of at least 1, or None, but 0",
        ),
        ({"ema_overwrite_frequency": 3}, ValueError, "was given ema_overwrite_frequency=3 without use_ema"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, ValueError, "Only one of `clipnorm`, `clipvalue` and `global_clipnorm`"),
        ({"jit_compile": True}, TypeError, "jit_compile"),
    ):
        with pytest.raises(error, match=message):
            portopt_keras.KerasOptimizer(portopt.SGD(), **options)
    with pytest.raises(TypeError, match="SGD got an unknown argument 'jit_compile'"):
        portopt_keras.SGD(jit_compile=True)


def case_hyperparameters_that_a_step_would_not_see_cannot_be_set(folder: Path) -> None:
    optimizer = portopt_keras.Adam(clipnorm=1.0)
    for name in ("beta_1", "epsilon", "clipnorm", "decay"):
        with pytest.raises(AttributeError, match=f"'{name}' of 'adam.*' cannot be set.*replace\\({name}=...\\)"):
            setattr(optimizer, name, 0.5)
    with pytest.raises(AttributeError, match="optimizer"):
        optimizer.optimizer = portopt.Adam()
    wrapped = portopt_keras.KerasOptimizer(portopt.Adam())
    with pytest.raises(AttributeError, match=r"'beta_2' of 'adam.*' cannot be set"):
        wrapped.beta_2 = 0.5
    # Keras' own options are read at each step, as for Keras' own optimizers.
    wrapped.clipnorm = 0.5
    assert wrapped.clipnorm == 0.5


def case_lr_is_the_learning_rate(folder: Path) -> None:
    optimizer = portopt_keras.SGD(lr=0.5)
    assert optimizer.lr is optimizer.learning_rate
    optimizer.lr = 0.25
    assert float(optimizer.learning_rate) == 0.25
    assert keras.ops.convert_to_numpy(optimizer.lr) == np.float32(0.25)
    variable = keras.Variable(np.ones(2, np.float32))
    optimizer.apply([keras.ops.ones(2)], [variable])
    assert to_numpy(variable).tolist() == [0.75, 0.75]


def case_a_schedule_of_portopt_can_be_set_as_learning_rate(folder: Path) -> None:
    data, schedule = arrays(3), portopt.schedules.InverseTimeDecay(0.1, 0.3, 2)
    optimizer = portopt_keras.SGD(0.5, momentum=0.9)
    optimizer.learning_rate = schedule
    assert_same(
        steps(optimizer, variables_of(data[0]), data), steps_in_portopt(portopt.SGD(schedule, 0.9), data), "set"
    )
    assert optimizer.get_config()["learning_rate"]["class_name"] == "InverseTimeDecay"


def case_names_are_those_of_the_rules(folder: Path) -> None:
    keras.utils.clear_session()
    assert [portopt_keras.KerasOptimizer(portopt.Adam()).name for _ in range(2)] == ["adam", "adam_1"]
    assert [portopt_keras.Adam().name, portopt_keras.SGD().name] == ["adam_2", "sgd"]
    optimizer = portopt_keras.KerasOptimizer("sgd", name="mine")
    assert optimizer.name == "mine"
    for each in (optimizer, portopt_keras.SGD()):
        assert type(each).from_config(each.get_config()).name == each.name


def case_get_serialize_and_deserialize_know_the_rules(folder: Path) -> None:
    for rule in RULES:
        for name in (rule.__name__, rule.__name__.lower(), f"portopt>{rule.__name__}"):
            assert type(portopt_keras.get(name)) is getattr(portopt_keras, rule.__name__)
    optimizer = portopt_keras.SGD(0.3, 0.9, True, clipvalue=0.5, use_ema=True, name="own")
    assert portopt_keras.get(optimizer) is optimizer
    wrapped = portopt_keras.get(portopt.Adam(beta_1=0.5))
    assert (type(wrapped), wrapped.optimizer) == (portopt_keras.KerasOptimizer, portopt.Adam(beta_1=0.5))
    for each in (optimizer, wrapped):
        config = json.loads(json.dumps(portopt_keras.serialize(each)))
        before = json.dumps(config)
        for read in (portopt_keras.deserialize, portopt_keras.get):
            copy = read(config)
            assert (type(copy), copy.get_config()) == (type(each), each.get_config())
        assert json.dumps(config) == before
        assert keras.optimizers.deserialize(config).get_config() == each.get_config()
    plain = portopt_keras.get(portopt.serialize(portopt.SGD(0.5, dialect="keras3")))
    assert (type(plain), plain.optimizer) == (portopt_keras.SGD, portopt.SGD(0.5, dialect="keras3"))
    rate = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.5)
    scheduled = portopt_keras.deserialize(portopt_keras.serialize(portopt_keras.SGD(rate)))
    assert isinstance(scheduled._learning_rate, keras.optimizers.schedules.ExponentialDecay)


def case_what_get_cannot_read_is_refused(folder: Path) -> None:
    native = keras.optimizers.Adam()
    for identifier, message in (
        ("adamm", "unknown optimizer: 'adamm'; did you mean 'Adam'"),
        (native, r"is an optimizer of Keras itself: .*portopt_keras.Adam\(dialect='keras3'\)"),
        (keras.optimizers.serialize(native), "the config is of 'Adam' of Keras itself"),
        ({"config": {}}, "improper config format"),
        (3, "could not interpret the optimizer identifier 3 of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            portopt_keras.get(identifier)
    with pytest.raises(
        TypeError, match=r"serialize takes an optimizer of portopt_keras, but .* of type Adam was given"
    ):
        portopt_keras.serialize(native)


def case_optimizers_can_be_pickled(folder: Path) -> None:
    for optimizer in (portopt_keras.Nadam(0.5), portopt_keras.KerasOptimizer("adam", use_ema=True)):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        copy = pickle.loads(pickle.dumps(optimizer))
        assert copy.get_config() == optimizer.get_config()
