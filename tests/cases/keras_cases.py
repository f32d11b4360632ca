"""What holds on each backend of Keras."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cases.keras_backend import BACKEND, of_this_backend
from support import rules_of_each_kind
from support.bits import Array, assert_same_bits, numpy_dtype, ordinary, random_words
from support.case_names import on

import portopt
import portopt_keras
from portopt.arithmetic.dtypes import COMPUTE_DTYPE

SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (4,), ())
RULES = portopt.RULES


class Signed(portopt.Optimizer):
    """A rule of a user, with a scalar in its state."""

    slots = ("average",)
    scalar_slots = {"product": 1.0}  # noqa: RUF012  # a mapping that nothing writes to

    def coefficients(self, t: Any, product: Any) -> Any:
        return {"lr": self.learning_rate_at(t) * product, "product": product * 0.9}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        average = slots.average + 0.1 * g
        return p - c.lr * xp.sign(average), {"average": average}


def arrays(
    count: int, dtype: str = "float32", make: Callable[..., Array] = ordinary, seed: int = 0
) -> list[list[Array]]:
    """Return parameters, then gradients of `count` steps."""
    return [[make(shape, dtype, seed + 10 * step + i) for i, shape in enumerate(SHAPES)] for step in range(count + 1)]


def compiled(optimizer: Any, variables: list[Any], jit_compile: bool = False) -> Callable[[list[Any]], None]:
    """Return a function that does a step as Keras' trainer does: compiled, where its backend compiles."""
    if BACKEND == "jax":
        import jax

        stateless = jax.jit(optimizer.stateless_apply)

        def on_jax(gradients: list[Any]) -> None:
            own = [v.value for v in optimizer.variables]
            new, new_own = stateless(own, gradients, [v.value for v in variables])
            for variable, value in zip([*variables, *optimizer.variables], [*new, *new_own], strict=True):
                variable.assign(value)

        return on_jax
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(  # type: ignore[no-any-return]  # tensorflow is untyped
            lambda gradients: optimizer.apply(gradients, variables), autograph=False, jit_compile=jit_compile
        )
    return lambda gradients: optimizer.apply(gradients, variables)


def steps_in_keras(
    optimizer: Any, data: list[list[Array]], *, run: Any = compiled, before: Any = lambda i: None
) -> tuple[list[Array], dict[str, Any]]:
    """Return parameters and state after steps on `data`, as NumPy arrays."""
    dtype = data[0][0].dtype.name
    variables = [keras.Variable(value, dtype=dtype) for value in data[0]]
    optimizer.build(variables)
    step = run(optimizer, variables)
    for i, gradients in enumerate(data[1:]):
        before(i)
        step([keras.ops.convert_to_tensor(g, dtype=g.dtype.name) for g in gradients])
    return list(map(to_numpy, variables)), state_of(optimizer)


def eager(optimizer: Any, variables: list[Any]) -> Callable[[list[Any]], None]:
    return lambda gradients: optimizer.apply(gradients, variables)


def state_of(optimizer: Any) -> dict[str, Any]:
    scalars = {
        name: to_numpy(variable).astype(np.uint32).view(np.float64)[0]
        for name, variable in optimizer._scalar_slots.items()
    }
    slots = {n: [None if v is None else to_numpy(v) for v in of] for n, of in optimizer._slots.items()}
    return {**scalars, **slots}


def to_numpy(variable: Any) -> Array:
    value = keras.ops.convert_to_numpy(variable)
    # Keras takes bfloat16 through float32 on some backends, which changes no value.
    return np.asarray(value).astype(numpy_dtype(keras.backend.standardize_dtype(variable.dtype)))


def steps_in_portopt(optimizer: Any, data: list[list[Array]], **overrides: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    params, state = data[0], optimizer.init(data[0])
    for i, gradients in enumerate(data[1:]):
        given = {name: values[i] for name, values in overrides.items()}
        params, state = optimizer.apply(params, gradients, state, **given)
    return params, state.slots


def assert_same(actual: tuple[Any, Any], expected: tuple[Any, Any], what: str) -> None:
    for i, (a, e) in enumerate(zip(actual[0], expected[0], strict=True)):
        assert_same_bits(a, e, f"{what}: parameter {i}")
    assert actual[1].keys() == expected[1].keys()
    for name, slot in expected[1].items():
        if isinstance(slot, float):
            assert float(actual[1][name]).hex() == slot.hex(), f"{what}: {name}"
        else:
            for i, (a, e) in enumerate(zip(actual[1][name], slot, strict=True)):
                assert (a is None) == (e is None), f"{what}: {name} {i}"
                if e is not None:
                    assert_same_bits(a, e, f"{what}: {name} {i}")


def case_rules_have_the_bits_of_numpy(folder: Path) -> None:
    data = arrays(4)
    clipped = portopt.SGD(0.1, 0.9, True, clipnorm=0.5, clipvalue=0.2)
    # Rules of the kinds that the next case has not: the adapter knows of no rule.
    rules = of_this_backend(portopt.SGD, portopt.NoisySGD, portopt.Nadam, portopt.Lookahead, always=[portopt.Adam])
    for optimizer in (*(rule(learning_rate=0.013) for rule in rules), clipped):
        wrapped = portopt_keras.KerasOptimizer(optimizer)
        assert_same(steps_in_keras(wrapped, data), steps_in_portopt(optimizer, data), repr(optimizer))


def case_a_step_takes_what_a_rule_needs_beside_gradients(folder: Path) -> None:
    data, rule = arrays(3), portopt.SophiaG(0.1)
    curvature: list[Any] = [[abs(x) for x in of] for of in arrays(2, seed=500)[1:]]
    given: list[Any] = [[curvature[0][0], None, curvature[0][2]], None, curvature[1]]
    expected = [steps_with_inputs(of, data, given) for of in (rule, rule.replace(weight_decay=0.0))]

    variables = [keras.Variable(value) for value in data[0]]
    optimizer = portopt_keras.KerasOptimizer(rule)
    optimizer.exclude_from_weight_decay(var_list=variables[:1])
    for gradients, hessian in zip(data[1:], given, strict=True):
        grads, own = list(map(keras.ops.convert_to_tensor, gradients)), hessian
        if hessian is not None:
            own = [None if h is None else keras.ops.convert_to_tensor(h) for h in hessian]
        if hessian is curvature[1]:
            optimizer.apply_gradients(zip(grads, variables, strict=True), hessian=own)
        else:
            optimizer.apply(grads, variables, hessian=own)
    for i, variable in enumerate(variables):
        params, state = expected[i == 0]
        assert_same_bits(to_numpy(variable), params[i], f"parameter {i}")
        assert_same_bits(state_of(optimizer)["h"][i], state["h"][i], f"h {i}")

    for inputs, error, message in (
        (
            {"hesian": []},
            TypeError,
            "SophiaG got an unknown argument 'hesian'; allowed beside gradients are .*, hessian",
        ),
        (
            {"hessian": curvature[0][:2]},
            ValueError,
            "for each of the 3 variables, None for those that have none, but 2 val",
        ),
        ({"hessian": 1.0}, ValueError, "but an object of type float was given"),
        (
            {"hessian": [1.0, None, None]},
            ValueError,
            r"hessian of variable '.*' has shape \(\), but the variable has \(3, 4\)",
        ),
    ):
        with pytest.raises(error, match=message):
            optimizer.apply(list(map(keras.ops.convert_to_tensor, data[1])), variables, **inputs)
    accumulating = portopt_keras.SophiaG(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="accumulates gradients of 2 calls for a step, but was given hessian for one"):
        accumulating.apply(data[1], variables, hessian=curvature[0])
    assert int(optimizer.iterations) == 3


def case_a_compiled_step_takes_further_inputs(folder: Path) -> None:
    data, rule = arrays(1), portopt.SophiaG(0.1)
    variables = [keras.Variable(value) for value in data[0]]
    optimizer = portopt_keras.KerasOptimizer(rule)
    optimizer.build(variables)
    gradients = [keras.ops.convert_to_tensor(g) for g in data[1]]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(lambda g, h: optimizer.apply(g, variables, hessian=h), autograph=False)(gradients, gradients)
        found = list(map(to_numpy, variables))
    else:
        stateless: Any = optimizer.stateless_apply
        if BACKEND == "jax":
            import jax

            stateless = jax.jit(stateless)
        own, values = [v.value for v in optimizer.variables], [v.value for v in variables]
        found = list(map(to_numpy, stateless(own, gradients, values, hessian=gradients)[0]))
    for actual, value in zip(found, steps_with_inputs(rule, data, [data[1]])[0], strict=True):
        assert_same_bits(actual, value)


def steps_with_inputs(
    rule: portopt.Optimizer, data: list[list[Array]], hessians: list[Any]
) -> tuple[Any, dict[str, Any]]:
    params, state = data[0], rule.init(data[0])
    for gradients, hessian in zip(data[1:], hessians, strict=True):
        given: dict[str, Any] = {} if hessian is None else {"hessian": hessian}
        params, state = rule.apply(params, gradients, state, **given)
    return params, state.slots


def case_rules_of_each_kind_have_the_bits_of_numpy(folder: Path) -> None:
    data = arrays(3)
    for kind in of_this_backend(*rules_of_each_kind.RULES):
        wrapped = portopt_keras.KerasOptimizer(kind(learning_rate=0.013, clipnorm=2.0))
        assert_same(
            steps_in_keras(wrapped, data),
            steps_in_portopt(kind(learning_rate=0.013, clipnorm=2.0), data),
            kind.__name__,
        )


def case_totals_are_of_the_variables_without_weight_decay_as_well(folder: Path) -> None:
    data = arrays(3)

    class Decaying(rules_of_each_kind.Totalling):
        weight_decay: float = portopt.hyperparameter(default=0.0, at_least=0, off=0.0)

        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            new, kept = super().update(xp, p, g, slots, c)
            return (new - self.weight_decay * p if self.weight_decay else new), kept

    class OnlyMatrices(Decaying):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            new, kept = super(Decaying, self).update(xp, p, g, slots, c)
            return (new - self.weight_decay * p if p.ndim == 2 else new), kept

    variables = [keras.Variable(value) for value in data[0]]
    wrapped = portopt_keras.KerasOptimizer(Decaying(0.013, clipnorm=2.0, weight_decay=0.1))
    wrapped.exclude_from_weight_decay(var_list=variables[1:])
    wrapped.build(variables)
    for gradients in data[1:]:
        wrapped.apply([keras.ops.convert_to_tensor(g) for g in gradients], variables)
    found = list(map(to_numpy, variables)), state_of(wrapped)
    assert_same(found, steps_in_portopt(OnlyMatrices(0.013, clipnorm=2.0, weight_decay=0.1), data), "excluded")


def case_outside_of_a_compiled_step_the_bits_are_the_same(folder: Path) -> None:
    data = arrays(3, make=random_words)
    for optimizer in (portopt.Nadam(0.013), portopt.SGD(0.1, 0.9, clipnorm=1.0)):
        wrapped = portopt_keras.KerasOptimizer(optimizer)
        assert_same(steps_in_keras(wrapped, data, run=eager), steps_in_portopt(optimizer, data), repr(optimizer))


def case_a_rule_of_a_user_has_the_bits_of_numpy(folder: Path) -> None:
    data = arrays(4, make=random_words)
    wrapped = portopt_keras.KerasOptimizer(Signed(0.1))
    assert_same(steps_in_keras(wrapped, data), steps_in_portopt(Signed(0.1), data), "Signed")


def case_narrow_variables_have_float32_slots_and_the_bits_of_numpy(folder: Path) -> None:
    for dtype in ("float16", "bfloat16"):
        data = arrays(3, dtype)
        wrapped = portopt_keras.KerasOptimizer(portopt.Adam(0.013))
        actual = steps_in_keras(wrapped, data)
        assert {keras.backend.standardize_dtype(v.dtype) for v in wrapped._slots["m"]} == {COMPUTE_DTYPE[dtype]}
        assert_same(actual, steps_in_portopt(portopt.Adam(0.013), data), dtype)


def case_gradients_of_another_dtype_are_loaded_and_not_rounded_to_that_of_the_variable(folder: Path) -> None:
    for dtype, gradient_dtype in (("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")):
        data = [arrays(3, dtype)[0], *arrays(3, gradient_dtype, seed=5)[1:]]
        for run in (compiled, eager):
            wrapped = portopt_keras.KerasOptimizer(portopt.Adam(0.013))
            actual = steps_in_keras(wrapped, data, run=run)
            assert_same(actual, steps_in_portopt(portopt.Adam(0.013), data), f"{dtype} and {gradient_dtype}")


def case_a_number_set_as_learning_rate_is_used_from_then_on(folder: Path) -> None:
    data, rates = arrays(4), [0.013, 0.013, float(np.float32(0.05)), float(np.float32(0.05))]
    wrapped = portopt_keras.Adam(learning_rate=0.013, decay=0.1)

    def before(i: int) -> None:
        if i == 2:
            wrapped.learning_rate = 0.05

    expected = steps_in_portopt(portopt.Adam(0.013, decay=0.1), data, learning_rate=rates)
    assert_same(steps_in_keras(wrapped, data, before=before), expected, "rates")
    assert wrapped.get_config()["learning_rate"] == float(np.float32(0.05))


def case_schedules_of_portopt_count_steps_in_float64(folder: Path) -> None:
    data, schedule = arrays(5), portopt.schedules.InverseTimeDecay(0.1, 0.3, 2)
    expected = steps_in_portopt(portopt.SGD(schedule), data)
    for wrapped in (portopt_keras.SGD(schedule), portopt_keras.KerasOptimizer("sgd", learning_rate=schedule)):
        assert_same(steps_in_keras(wrapped, data), expected, "decay")
        assert float(wrapped.learning_rate) == np.float32(schedule(5))
        copy = type(wrapped).from_config(wrapped.get_config())
        assert_same(steps_in_keras(copy, data), expected, "the copy")


def case_schedules_and_callables_of_keras_are_used(folder: Path) -> None:
    data = arrays(5)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.5, 0.25, 0.125])
    expected = steps_in_portopt(portopt.SGD(momentum=0.9), data, learning_rate=[0.5, 0.5, 0.25, 0.25, 0.125])
    for wrapped in (
        portopt_keras.SGD(schedule, momentum=0.9),
        portopt_keras.SGD(lr=schedule, momentum=0.9),
        portopt_keras.KerasOptimizer(portopt.SGD(momentum=0.9), learning_rate=schedule),
    ):
        assert_same(steps_in_keras(wrapped, data), expected, "piecewise")
        copy = type(wrapped).from_config(wrapped.get_config())
        assert_same(steps_in_keras(copy, data), expected, "the copy")
    constant = steps_in_portopt(portopt.SGD(0.25, momentum=0.9), data)
    assert_same(steps_in_keras(portopt_keras.SGD(lambda: 0.25, momentum=0.9), data), constant, "callable")


def case_options_of_keras_do_what_they_do_for_its_own_optimizers(folder: Path) -> None:
    data = arrays(6)
    for options in of_this_backend(
        {"clipnorm": 0.5},
        {"clipvalue": 0.2},
        {"global_clipnorm": 0.5},
        {"weight_decay": 0.1},
        {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 2, "clipnorm": 0.5, "weight_decay": 0.01},
        {"loss_scale_factor": 8.0},
    ):
        wrapped = portopt_keras.KerasOptimizer(portopt.SGD(0.1, momentum=0.9), **options)
        native = keras.optimizers.SGD(0.1, momentum=0.9, **options)
        copy = portopt_keras.KerasOptimizer.from_config(wrapped.get_config())
        results = []
        for optimizer in (wrapped, native, copy):
            variables = [keras.Variable(value) for value in data[0]]
            optimizer.build(variables)
            step = compiled(optimizer, variables)
            for gradients in data[1:]:
                step([keras.ops.convert_to_tensor(g) for g in gradients])
            optimizer.finalize_variable_values(variables)
            results.append(list(map(to_numpy, variables)))
        for ours, theirs, again in zip(*results, strict=True):
            # Both compute in float32, in another order of operations.
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6, err_msg=repr(options))
            assert_same_bits(again, ours, repr(options))


def case_bias_correction_counts_accumulated_steps(folder: Path) -> None:
    data = arrays(4)
    halves = [[(a + b) / np.float32(2) for a, b in zip(data[i], data[i + 1], strict=True)] for i in (1, 3)]
    wrapped = portopt_keras.Adam(learning_rate=0.013, gradient_accumulation_steps=2)
    expected = steps_in_portopt(portopt.Adam(0.013), [data[0], *halves])
    assert_same(steps_in_keras(wrapped, data), expected, "Adam")


def case_dynamic_loss_scaling_skips_steps_that_are_not_finite(folder: Path) -> None:
    data = arrays(3)
    scaled = [data[0], *([g * np.float32(4) for g in step] for step in data[1:])]
    scaled[2] = [np.full_like(g, np.inf) for g in data[2]]
    # The second step is skipped, and halves the scale.
    scaled[3] = [g / np.float32(2) for g in scaled[3]]
    inner = portopt_keras.KerasOptimizer(portopt.Adam(0.013, clipnorm=1.0))
    wrapped = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    variables = [keras.Variable(value) for value in data[0]]
    wrapped.build(variables)
    step = compiled(wrapped, variables)
    for gradients in scaled[1:]:
        step([keras.ops.convert_to_tensor(g) for g in gradients])
    expected = steps_in_portopt(portopt.Adam(0.013, clipnorm=1.0), [data[0], data[1], data[3]])
    assert_same((list(map(to_numpy, variables)), state_of(inner)), expected, "scaled")
    assert int(inner.iterations) == 2


def case_a_constraint_acts_after_the_step(folder: Path) -> None:
    variable = keras.Variable(np.asarray([1.0, -1.0], np.float32))
    variable.constraint = keras.constraints.NonNeg()
    optimizer = portopt_keras.SGD(learning_rate=0.5)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(np.asarray([1.0, 1.0], np.float32))], [variable])
    assert to_numpy(variable).tolist() == [0.5, 0.0]


def case_a_variable_without_gradient_stays(folder: Path) -> None:
    variables = [keras.Variable(np.ones(2, np.float32)) for _ in range(2)]
    optimizer = portopt_keras.Adam(learning_rate=0.5)
    optimizer.build(variables)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.apply([None, keras.ops.ones(2)], variables)
    assert any("Gradients do not exist" in str(w.message) for w in caught)
    assert to_numpy(variables[0]).tolist() == [1.0, 1.0]
    assert to_numpy(variables[1]).tolist() != [1.0, 1.0]


# On TensorFlow, Keras refuses it.
@on("jax", "torch")
def case_stateless_apply_leaves_its_arguments(folder: Path) -> None:
    data = arrays(1)
    optimizer = portopt_keras.Nadam(learning_rate=0.013)
    variables = [keras.Variable(value) for value in data[0]]
    optimizer.build(variables)
    before = [v.value for v in variables], [v.value for v in optimizer.variables]
    gradients = [keras.ops.convert_to_tensor(g) for g in data[1]]
    new, _ = optimizer.stateless_apply(before[1], gradients, before[0])
    expected = steps_in_portopt(portopt.Nadam(0.013), data)
    for i, value in enumerate(new):
        assert_same_bits(keras.ops.convert_to_numpy(value), expected[0][i])
        assert_same_bits(to_numpy(variables[i]), data[0][i])
    assert int(optimizer.iterations) == 0
    assert state_of(optimizer)["m_schedule"] == 1.0


def case_variables_of_other_types_are_refused(folder: Path) -> None:
    optimizer = portopt_keras.Adam()
    with pytest.raises(
        TypeError, match="has dtype int32; portopt optimizers update variables of dtype float16, bfloat16"
    ):
        optimizer.build([keras.Variable(np.zeros(2, np.int32), trainable=False, name="counts")])


@functools.cache
def digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target


def model(optimizer: Any, **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [keras.Input((64,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(10, "softmax")]
    result = keras.Sequential(layers)
    result.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return result


def fit(of: Any, epochs: int = 1, **options: Any) -> Any:
    x, y = digits()
    return of.fit(x, y, batch_size=128, epochs=epochs, shuffle=False, verbose=0, **options)


def weights_of(of: Any) -> list[Array]:
    return [*map(to_numpy, of.trainable_variables), *map(to_numpy, of.optimizer.variables)]


def assert_same_weights(actual: Any, expected: Any) -> None:
    for a, e in zip(weights_of(actual), weights_of(expected), strict=True):
        assert_same_bits(a, e)


def case_fit_reaches_the_accuracy_of_the_native_optimizer(folder: Path) -> None:
    optimizers = portopt_keras.Adam(learning_rate=0.02), keras.optimizers.Adam(learning_rate=0.02)
    ours, native = (fit(model(optimizer), 6).history["accuracy"][-1] for optimizer in optimizers)
    assert native > 0.9
    assert ours > native - 0.01


def case_save_load_continue_has_the_bits_of_the_uninterrupted_run(folder: Path) -> None:
    for number, optimizer in enumerate(
        of_this_backend(
            portopt_keras.KerasOptimizer(portopt.Adam(0.01, decay=1e-3, clipnorm=1.0)),
            portopt_keras.SGD(portopt.schedules.InverseTimeDecay(0.05, 0.1), momentum=0.9, weight_decay=0.01),
            portopt_keras.KerasOptimizer(portopt.Nadam(0.01), use_ema=True, gradient_accumulation_steps=2),
        )
    ):
        uninterrupted = model(optimizer)
        fit(uninterrupted)
        path = folder / f"{BACKEND}-{number}.keras"
        uninterrupted.save(path)
        fit(uninterrupted)
        loaded = keras.models.load_model(path)
        assert type(loaded.optimizer) is type(optimizer)
        fit(loaded)
        assert_same_weights(loaded, uninterrupted)


def case_training_goes_on_after_averages_became_the_weights(folder: Path) -> None:
    optimizer = portopt_keras.KerasOptimizer(portopt.SGD(0.05, momentum=0.9), use_ema=True, ema_momentum=0.9)
    trained = model(optimizer)
    fit(trained)
    averages = [*map(to_numpy, optimizer._model_variables_moving_average)]
    for variable, average in zip(trained.trainable_variables, averages, strict=True):
        assert_same_bits(to_numpy(variable), average)
    fit(trained)
    for variable, average in zip(trained.trainable_variables, averages, strict=True):
        assert np.isfinite(to_numpy(variable)).all()
        assert not np.array_equal(to_numpy(variable), average)


def save_trained_model(path: Path) -> list[Array]:
    """Save a model in training, and return its weights."""
    trained = model(portopt_keras.KerasOptimizer(portopt.Nadam(0.01, clipnorm=1.0)))
    fit(trained)
    trained.save(path)
    return weights_of(trained)


def go_on_with_saved_model(path: Path, expected: list[Array]) -> None:
    """Load a model that was saved on any backend: it has the weights, and the step that portopt does next."""
    loaded = keras.models.load_model(path)
    for actual, value in zip(weights_of(loaded), expected, strict=True):
        # The types of counters differ between backends of Keras; every value must be equal.
        assert_same_bits(actual.astype(value.dtype), value)
    optimizer, params = loaded.optimizer, list(map(to_numpy, loaded.trainable_variables))
    state = portopt.OptimizerState(int(optimizer.iterations), state_of(optimizer))
    gradients = [ordinary(p.shape, "float32", i) for i, p in enumerate(params)]
    params, _ = optimizer.optimizer.apply(params, gradients, state)
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], loaded.trainable_variables)
    for variable, value in zip(loaded.trainable_variables, params, strict=True):
        assert_same_bits(to_numpy(variable), value)


def case_examples_of_the_keras_2_documentation_run(folder: Path) -> None:
    from portopt_keras import SGD

    x, y = ordinary((64, 20), "float32", 0), ordinary((64, 10), "float32", 1)
    sgd = SGD(lr=0.01, decay=1e-6, momentum=0.9, nesterov=True)
    # All parameter gradients will be clipped to a maximum norm of 1, and to a maximum value of 0.5.
    for optimizer in (sgd, "portopt>sgd", SGD(lr=0.01, clipnorm=1.0), SGD(lr=0.01, clipvalue=0.5)):
        net = keras.Sequential()
        net.add(keras.layers.Dense(64, kernel_initializer="uniform"))
        net.add(keras.layers.Activation("softmax"))
        net.add(keras.layers.Dense(10))
        net.compile(loss="mean_squared_error", optimizer=optimizer)
        losses = net.fit(x, y, epochs=2, verbose=0).history["loss"]
        assert losses[1] < losses[0]
    assert sgd.optimizer == portopt.SGD(lr=0.01, decay=1e-6, momentum=0.9, nesterov=True)


def case_rules_are_found_by_name(folder: Path) -> None:
    for rule in RULES:
        for name in (rule.__name__, rule.__name__.lower()):
            found = keras.optimizers.get(f"portopt>{name}")
            assert type(found) is getattr(portopt_keras, rule.__name__)
            assert found.optimizer == rule()
    # Without the prefix, a name is that of Keras' own optimizer.
    assert not isinstance(keras.optimizers.get("adam"), portopt_keras.KerasOptimizer)
    config = {"class_name": "portopt>SGD", "config": {"lr": 0.5, "decay": 0.25}}
    assert keras.optimizers.get(config).optimizer == portopt.SGD(0.5, decay=0.25)
    with pytest.raises(ValueError, match="Could not interpret optimizer identifier"):
        keras.optimizers.get("portopt>Adamm")


def case_an_argument_goes_to_the_rule_where_its_dialect_has_it(folder: Path) -> None:
    decayed = portopt_keras.SGD(weight_decay=0.5, clipnorm=1.0)
    assert (decayed.weight_decay, decayed.clipnorm) == (0.5, None)
    assert decayed.optimizer == portopt.SGD(clipnorm=1.0)
    decayed = portopt_keras.SGD(weight_decay=0.5, dialect="keras3")
    assert decayed.weight_decay is None
    assert decayed.optimizer == portopt.SGD(weight_decay=0.5, dialect="keras3")
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(decayed))
    assert copy.optimizer == decayed.optimizer


def case_slots_start_where_the_dialect_has_them_start(folder: Path) -> None:
    data = arrays(2)
    for dialect in ("keras3", "torch", "optax"):
        optimizer = portopt.Adagrad(0.1, dialect=dialect, initial_accumulator_value=0.25)
        wrapped = portopt_keras.KerasOptimizer(optimizer)
        assert_same(steps_in_keras(wrapped, data), steps_in_portopt(optimizer, data), dialect)


def case_configs_give_an_equal_optimizer_back(folder: Path) -> None:
    portopt.register(Signed)
    for optimizer in (
        *(getattr(portopt_keras, rule.__name__)(clipnorm=1.5, use_ema=True) for rule in RULES),
        portopt_keras.SGD(0.3, 0.9, True, clipvalue=0.5, gradient_accumulation_steps=2, name="own"),
        portopt_keras.KerasOptimizer(Signed(0.1), clipnorm=1.0),
        portopt_keras.KerasOptimizer("adam", weight_decay=0.5),
    ):
        config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
        copy = keras.optimizers.deserialize(config)
        assert type(copy) is type(optimizer)
        assert copy.optimizer == optimizer.optimizer
        assert copy.get_config() == optimizer.get_config()


def case_callbacks_change_the_learning_rate(folder: Path) -> None:
    trained = model(portopt_keras.Adam(learning_rate=0.01))
    history = fit(
        trained,
        4,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.005 if epoch == 1 else rate),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=100.0),
        ],
    )
    expected = [0.01, 0.005, 0.0025, 0.00125]
    np.testing.assert_allclose(history.history["learning_rate"], expected, rtol=1e-6)


def case_mixed_precision_trains(folder: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        trained = model(portopt_keras.Adam(learning_rate=0.01))
        assert isinstance(trained.optimizer, keras.optimizers.LossScaleOptimizer)
        losses = fit(trained, 3).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert losses[-1] < losses[0]


def case_embeddings_train(folder: Path) -> None:
    """An embedding's gradient has only some rows on TensorFlow; all rows are updated, as on the other backends."""
    keras.utils.set_random_seed(1)
    net = keras.Sequential(
        [keras.Input((2,)), keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    net.compile(portopt_keras.SGD(learning_rate=0.1, momentum=0.9), loss="mse")
    x = np.asarray([[0, 1], [1, 2]])
    losses = net.fit(x, np.asarray([[1.0], [2.0]], np.float32), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def case_wrong_arguments_are_refused(folder: Path) -> None:
    with pytest.raises(
        TypeError, match="takes a portopt optimizer, its name or its config, but 3 of type int was given"
    ):
        portopt_keras.KerasOptimizer(3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"SGD got an unknown argument 'momentun'; did you mean 'momentum'\?"):
        portopt_keras.SGD(momentun=0.9)
    with pytest.raises(TypeError, match="SGD was given learning_rate and lr at once"):
        portopt_keras.SGD(lr=0.1, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"SGD learning_rate must be in \[0, inf\), but -1.0 was given"):
        portopt_keras.KerasOptimizer(portopt.SGD(), learning_rate=-1.0)
    with pytest.raises(AttributeError, match="portopt_keras has no 'Adamm'; it has KerasOptimizer and SGD"):
        portopt_keras.Adamm  # noqa: B018  # the look-up is what fails
    unknown = portopt_keras.SGD(portopt.schedules.Constant(0.1)).optimizer.replace(learning_rate=lambda step: 0.1)
    with pytest.raises(ValueError, match="cannot be put into a config"):
        portopt_keras.KerasOptimizer(unknown).get_config()


@on("tensorflow")
def case_xla_gives_the_bits_of_numpy(folder: Path) -> None:
    data = arrays(4, make=random_words)
    for optimizer in (portopt.Adam(0.013), portopt.SGD(0.1, 0.9, True, clipnorm=0.5)):
        wrapped = portopt_keras.KerasOptimizer(optimizer)
        run = functools.partial(compiled, jit_compile=True)
        assert_same(steps_in_keras(wrapped, data, run=run), steps_in_portopt(optimizer, data), repr(optimizer))


@on("tensorflow")
def case_a_mirrored_strategy_gives_the_bits_of_one_device(folder: Path) -> None:
    import tensorflow as tf

    data = arrays(3)
    strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
    with strategy.scope():
        variables = [keras.Variable(value) for value in data[0]]
        optimizer = portopt_keras.KerasOptimizer(portopt.Adam(0.013, clipnorm=1.0))
        optimizer.build(variables)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def step(gradients: list[Any]) -> None:
        strategy.run(lambda: optimizer.apply(list(map(tf.identity, gradients)), variables))

    for gradients in data[1:]:
        # Keras adds the gradients of the replicas up; halves add up exactly.
        step([tf.constant(g / np.float32(2)) for g in gradients])
    actual = [variable.numpy() for variable in variables], state_of(optimizer)
    assert_same(actual, steps_in_portopt(portopt.Adam(0.013, clipnorm=1.0), data), "mirrored")
