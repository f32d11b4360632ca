"""The behaviour that Keras 3's own tests ask of its optimizers, asked of portopt's in the dialect keras3.

The numbers are those of Keras 3.15, and so are the tolerances; the tests are written anew.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cases.keras_backend import BACKEND, of_this_backend
from cases.keras_cases import compiled
from support.case_names import on

import portopt
import portopt_keras

GRADIENT = (1.0, 6.0, 7.0, 2.0)

SINGLE_STEPS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "SGD": ({}, [0.5, -1.0, -0.5, 3.0]),
    "RMSprop": ({}, [-0.5811, 0.4189, 1.4189, 2.4189]),
    "Adagrad": ({}, [0.5233, 1.5007, 2.5005, 3.5061]),
    "Adadelta": ({}, [0.9993, 1.9993, 2.9993, 3.9993]),
    "Adam": ({}, [0.5, 1.5, 2.5, 3.5]),
    "AdamW": ({"weight_decay": 0.004}, [0.4980, 1.4960, 2.494, 3.492]),
    "Adamax": ({}, [0.5, 1.5, 2.5, 3.5]),
    "Nadam": ({}, [0.4686, 1.4686, 2.4686, 3.4686]),
}
"""What `[1, 2, 3, 4]` becomes after a step on `GRADIENT` with a learning rate of 0.5."""

TRAJECTORIES: dict[str, tuple[dict[str, Any], list[list[float]]]] = {
    "SGD": (
        {"nesterov": True},
        [[0.9999] * 10, *([1 - 1e-4 - step * 0.001 * (i + 1) for i in range(10)] for step in range(1, 5))],
    ),
    "RMSprop": ({"centered": True}, [[x] * 10 for x in (0.9967, 0.9933, 0.9908, 0.9885, 0.9864)]),
    "Adagrad": (
        {"learning_rate": 0.2, "initial_accumulator_value": 0.3, "epsilon": 1e-6},
        [
            [0.9963] * 10,
            [0.9604, 0.9278, 0.9003, 0.8784, 0.8615, 0.8487, 0.8388, 0.8313, 0.8255, 0.8209],
            [0.9251, 0.8629, 0.8137, 0.7768, 0.7497, 0.7298, 0.7151, 0.704, 0.6956, 0.6891],
            [0.8903, 0.8012, 0.7342, 0.6862, 0.6521, 0.6277, 0.6099, 0.5967, 0.5867, 0.579],
            [0.856, 0.7422, 0.6604, 0.6037, 0.5644, 0.5367, 0.5168, 0.5021, 0.491, 0.4825],
        ],
    ),
    "Adadelta": (
        {"learning_rate": 1.0, "rho": 0.8, "epsilon": 1e-6},
        [[x] * 10 for x in (0.9978, 0.9947, 0.9915, 0.9882, 0.9849)],
    ),
    "Adam": ({"amsgrad": True}, [[x] * 10 for x in (0.999, 0.9982, 0.9974, 0.9965, 0.9955)]),
    "AdamW": (
        {"learning_rate": 1.0, "weight_decay": 0.5, "epsilon": 2.0},
        [
            [0.4998] * 10,
            [0.2486, 0.2475, 0.2463, 0.2451, 0.244, 0.2428, 0.2417, 0.2405, 0.2394, 0.2382],
            [0.1223, 0.1198, 0.1174, 0.1149, 0.1124, 0.11, 0.1075, 0.1051, 0.1027, 0.1003],
            [0.0586, 0.0549, 0.0512, 0.0475, 0.0439, 0.0402, 0.0366, 0.033, 0.0294, 0.0258],
            [0.0263, 0.0215, 0.0167, 0.012, 0.0073, 0.0026, -0.0021, -0.0067, -0.0113, -0.0159],
        ],
    ),
    "Adamax": (
        {"learning_rate": 0.2, "beta_1": 0.85, "beta_2": 0.95, "epsilon": 1e-6},
        [
            [0.8] * 10,
            [0.6827, 0.6873, 0.6888, 0.6896, 0.6901, 0.6904, 0.6906, 0.6908, 0.6909, 0.691],
            [0.5333, 0.5407, 0.5431, 0.5444, 0.5451, 0.5456, 0.546, 0.5462, 0.5464, 0.5466],
            [0.368, 0.3773, 0.3804, 0.382, 0.3829, 0.3835, 0.384, 0.3843, 0.3846, 0.3848],
            [0.1933, 0.204, 0.2076, 0.2094, 0.2105, 0.2112, 0.2117, 0.2121, 0.2124, 0.2126],
        ],
    ),
    "Nadam": (
        {"learning_rate": 0.5, "beta_1": 0.5, "beta_2": 0.67, "epsilon": 1e-5},
        [
            [0.4281] * 10,
            [-0.1738, -0.1731, -0.1726, -0.1723, -0.1721, -0.172, -0.1719, -0.1718, -0.1718, -0.1717],
            [-0.7115, -0.7103, -0.7096, -0.7092, -0.709, -0.7088, -0.7086, -0.7085, -0.7085, -0.7084],
            [-1.2335, -1.2322, -1.2313, -1.2309, -1.2306, -1.2304, -1.2302, -1.2301, -1.23, -1.2299],
            [-1.7492, -1.7478, -1.7469, -1.7464, -1.7461, -1.7459, -1.7457, -1.7456, -1.7455, -1.7454],
        ],
    ),
}
"""What ten ones become: after a step on gradients of 0.01, then after each on 0.1, 0.2, ..., 1.0."""

RULES_IN_TURN = [name for name in SINGLE_STEPS if name != "Adam"]
"""Rules of which each backend of Keras has some, besides Adam, where each is compiled."""


def made(name: str, **arguments: Any) -> Any:
    """Return an optimizer of Keras, around a rule of the dialect keras3; AdamW is Adam with weight decay."""
    rule = getattr(portopt_keras, "Adam" if name == "AdamW" else name)
    return rule(dialect="keras3", **arguments)


def around(**options: Any) -> Any:
    """Return plain gradient descent with Keras' options."""
    return portopt_keras.KerasOptimizer(portopt.SGD(1.0, dialect="keras3"), **options)


def tensor(value: Any) -> Any:
    return keras.ops.convert_to_tensor(np.asarray(value, np.float32))


def variable(value: Any, **options: Any) -> Any:
    return keras.Variable(np.asarray(value, np.float32), **options)


def value_of(of: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(of))


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(value_of(actual), expected, rtol=tolerance, atol=tolerance)


def case_single_steps_have_the_values_of_keras(folder: Path) -> None:
    for name, (arguments, expected) in SINGLE_STEPS.items():
        optimizer, x = made(name, learning_rate=0.5, **arguments), variable([1.0, 2.0, 3.0, 4.0])
        optimizer.apply_gradients([(tensor(GRADIENT), x)])
        assert_close(x, expected, 1e-4)
        assert int(optimizer.iterations) == 1


def case_trajectories_have_the_values_of_keras(folder: Path) -> None:
    for name, (arguments, golden) in TRAJECTORIES.items():
        optimizer, x = made(name, **arguments), variable(np.ones(10))
        gradients = [np.full(10, 0.01), *[np.arange(1, 11) / 10] * 4]
        for gradient, expected in zip(gradients, golden, strict=True):
            optimizer.apply_gradients([(tensor(gradient), x)])
            assert_close(x, expected, 5e-4)


def case_weight_decay_and_exclusions_have_the_values_of_keras(folder: Path) -> None:
    for name in of_this_backend(*RULES_IN_TURN, always=["Adam"]):
        first, second, third = variable(2.0), variable(2.0, name="exclude"), variable(2.0)
        zero = tensor(0.0)

        def decaying(name: str = name) -> Any:
            return made(name, learning_rate=1.0, weight_decay=0.004)

        decaying().apply_gradients([(zero, first)])
        by_name = decaying()
        by_name.exclude_from_weight_decay(var_names=["exclude"])
        by_name.apply_gradients([(zero, first), (zero, second)])
        by_variable = decaying()
        by_variable.exclude_from_weight_decay(var_list=[third])
        by_variable.apply_gradients([(zero, first), (zero, third)])
        for x, expected in ((first, 1.9760959), (second, 2.0), (third, 2.0)):
            np.testing.assert_allclose(value_of(x), expected, rtol=0, atol=1.5e-6, err_msg=name)


def case_clipping_has_the_values_of_keras(folder: Path) -> None:
    for options, gradients, expected in (
        ({"clipnorm": 1.0}, [[100.0, 100.0]], [[2**0.5 / 2, 2**0.5 / 2]]),
        ({"clipnorm": 1}, [[100.0, 0.0], [0.0, 30.0]], [[1.0, 0.0], [0.0, 1.0]]),
        ({"clipvalue": 1.0}, [[100.0, -100.0]], [[1.0, -1.0]]),
        ({"global_clipnorm": 1.0}, [[50.0], [100.0]], [[50 / 12500**0.5], [100 / 12500**0.5]]),
    ):
        optimizer, variables = around(**options), [variable(np.zeros(len(g))) for g in gradients]
        optimizer.apply([tensor(g) for g in gradients], variables)
        for x, step in zip(variables, expected, strict=True):
            assert_close(x, -np.asarray(step))


def case_moving_averages_have_the_values_of_keras(folder: Path) -> None:
    x, ones = variable([[3.0, 4.0], [5.0, 6.0]]), tensor([[1.0, 1.0], [1.0, 1.0]])
    optimizer = around(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    for expected, average in (
        ([[2.0, 3.0], [4.0, 5.0]], [[2.0, 3.0], [4.0, 5.0]]),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.9, 2.9], [3.9, 4.9]]),
        ([[1.71, 2.71], [3.71, 4.71]], [[1.71, 2.71], [3.71, 4.71]]),
    ):
        optimizer.apply_gradients([(ones, x)])
        assert_close(x, expected)
        assert_close(optimizer._model_variables_moving_average[0], average)


def case_the_average_takes_the_place_of_the_variable_when_training_ends(folder: Path) -> None:
    optimizer, x = made("Adam", learning_rate=1.0, use_ema=True, ema_momentum=0.9), variable([1.0, 2.0])
    values = []
    for _ in range(2):
        optimizer.apply_gradients([(tensor([0.1, 0.2]), x)])
        values.append(value_of(x))
    expected = 0.9 * values[0] + 0.1 * values[1]
    assert_close(optimizer._model_variables_moving_average[0], expected)
    optimizer.finalize_variable_values([x])
    assert_close(x, expected)


def case_fit_ends_with_the_average_of_keras(folder: Path) -> None:
    optimizer = made("SGD", learning_rate=0.1, use_ema=True, ema_momentum=0.9)
    net = keras.Sequential([keras.layers.Dense(2, kernel_initializer="ones", use_bias=False)])
    net.compile(loss="mse", optimizer=optimizer, run_eagerly=True)
    net.fit(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), batch_size=1, epochs=2, verbose=0)
    assert_close(optimizer._model_variables_moving_average[0], [[0.891, 0.891]], 1e-5)
    assert_close(net.trainable_variables[0], [[0.891, 0.891]], 1e-5)


def case_accumulation_has_the_values_of_keras(folder: Path) -> None:
    x, ones = variable([[1.0, 2.0], [3.0, 4.0]]), tensor([[1.0, 1.0], [1.0, 1.0]])
    optimizer = around(gradient_accumulation_steps=3)
    for batch, (expected, accumulated) in enumerate(
        (
            ([[1.0, 2.0], [3.0, 4.0]], 1.0),
            ([[1.0, 2.0], [3.0, 4.0]], 2.0),
            ([[0.0, 1.0], [2.0, 3.0]], 0.0),
            ([[0.0, 1.0], [2.0, 3.0]], 1.0),
        ),
        1,
    ):
        optimizer.apply_gradients([(ones, x)])
        assert_close(x, expected)
        assert_close(optimizer._accumulated_gradients[0], np.full((2, 2), accumulated))
        assert (int(optimizer._iterations), int(optimizer.iterations)) == (batch, batch // 3)


def case_accumulated_batches_are_one_of_their_mean_with_weight_decay_too(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in of_this_backend(*RULES_IN_TURN, always=["Adam"]):
        one, three = made(name, weight_decay=0.05), made(name, weight_decay=0.05, gradient_accumulation_steps=3)
        x, y = variable([[0.9], [0.5]]), variable([[0.9], [0.5]])
        one.build([x])
        three.build([y])
        step_of_one, step_of_three = compiled(one, [x]), compiled(three, [y])
        for _ in range(8):
            batches = random.random((3, 2, 1), np.float32)
            step_of_one([tensor(batches.mean(axis=0))])
            for batch in batches:
                step_of_three([tensor(batch)])
        assert_close(x, value_of(y))


def case_loss_scales_have_the_values_of_keras(folder: Path) -> None:
    x = variable([[1.0, 2.0], [3.0, 4.0]])
    optimizer = around(loss_scale_factor=1024.0)
    assert optimizer.scale_loss(1.0) == 1024.0
    optimizer.apply_gradients([(tensor([[1.0, 2.0], [3.0, 4.0]]) * 1024.0, x)])
    assert_close(x, np.zeros((2, 2)))

    for scale, gradient, steps, expected, after in (
        (2.0**15, np.asarray(GRADIENT) * 2**15, 1, [0.5, -1.0, -0.5, 3.0], 2.0**15),
        (400.0, np.full(4, np.inf), 4, [1.0, 2.0, 3.0, 4.0], 25.0),
        (2.0, np.zeros(4), 8, [1.0, 2.0, 3.0, 4.0], 32.0),
    ):
        inner = made("SGD", learning_rate=0.5, loss_scale_factor=100.0)
        growth = 2 if scale == 2.0 else 2000
        scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale, dynamic_growth_steps=growth)
        x = variable([1.0, 2.0, 3.0, 4.0])
        scaled.build([x])
        for _ in range(steps):
            apply(scaled, [tensor(gradient)], [x])
        assert_close(x, expected, 1e-4)
        assert_close(scaled.scale_loss(1.0), after)


def apply(optimizer: Any, gradients: list[Any], variables: list[Any]) -> None:
    """Do a step; on JAX as Keras asks for where an optimizer branches."""
    if BACKEND != "jax":
        optimizer.apply(gradients, variables)
        return
    own = [v.value for v in optimizer.variables]
    new, new_own = optimizer.stateless_apply(own, gradients, [v.value for v in variables])
    for target, value in zip([*variables, *optimizer.variables], [*new, *new_own], strict=True):
        target.assign(value)


def case_gradients_overwrite_what_asks_for_it(folder: Path) -> None:
    for options, gradients, expected, other in (
        ({}, (1.0,), np.ones((2, 2)), [[0.0, 1.0], [2.0, 3.0]]),
        ({"gradient_accumulation_steps": 2}, (1.0, 2.0), np.full((2, 2), 2.0), [[-0.5, 0.5], [1.5, 2.5]]),
    ):
        x, y = variable([[1.0, 2.0], [3.0, 4.0]]), variable([[1.0, 2.0], [3.0, 4.0]])
        x.overwrite_with_gradient = True
        optimizer = around(**options)
        for gradient in gradients:
            both = tensor(np.full((2, 2), gradient))
            optimizer.apply_gradients([(both, x), (both, y)])
        assert_close(x, expected)
        assert_close(y, other)


def case_gradients_that_are_missing_are_told(folder: Path) -> None:
    x, y = variable([[3.0, 4.0], [5.0, 6.0]]), variable([[3.0, 4.0], [5.0, 6.0]])
    with pytest.raises(ValueError, match=r"No gradients provided for any variable\."):
        around().apply_gradients([(None, x)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        around().apply_gradients([(None, x), (tensor(np.ones((2, 2))), y)])
    assert any("Gradients do not exist for variables" in str(w.message) for w in caught)
    assert_close(x, [[3.0, 4.0], [5.0, 6.0]])
    assert_close(y, [[2.0, 3.0], [4.0, 5.0]])


def case_a_callable_and_a_constraint_are_used(folder: Path) -> None:
    x = variable([[1.0, 2.0], [3.0, 4.0]])
    optimizer = made("SGD", learning_rate=lambda: 0.1)
    optimizer.apply_gradients([(tensor(np.ones((2, 2))), x)])
    assert_close(x, [[0.9, 1.9], [2.9, 3.9]])
    y = variable([[-0.5, 0.5], [-0.25, 0.25]])
    y.constraint = keras.constraints.NonNeg()
    made("SGD", learning_rate=0.0001).apply_gradients([(tensor(np.zeros((2, 2))), y)])
    assert_close(y, [[0.0, 0.5], [0.0, 0.25]])


def case_a_schedule_set_later_takes_the_place_of_the_variable(folder: Path) -> None:
    optimizer = made("Adam", learning_rate=0.001)
    assert len(optimizer.variables) == 2
    optimizer.learning_rate = keras.optimizers.schedules.PolynomialDecay(0.001, 4)
    assert len(optimizer.variables) == 1


def case_weights_can_be_set_once_there_are_any(folder: Path) -> None:
    x = variable([[1.0, 2.0], [3.0, 4.0]])
    first, second = made("Nadam"), made("Nadam")
    first.apply_gradients([(tensor([[1.0, 2.0], [3.0, 4.0]]), x)])
    with pytest.raises(ValueError, match="You are calling `set_weights"):
        second.set_weights(first.variables)
    second.build([x])
    second.set_weights(first.variables)
    for a, e in zip(second.variables, first.variables, strict=True):
        assert value_of(a).tobytes() == value_of(e).tobytes()


def case_sparse_gradients_do_what_dense_ones_do(folder: Path) -> None:
    rows = np.full((3, 3, 2), 0.5, np.float32)
    dense = np.zeros((5, 3, 2), np.float32)
    dense[[0, 2, 4]] = rows
    if BACKEND == "tensorflow":
        import tensorflow as tf

        sparse = tf.IndexedSlices(tf.constant(rows), tf.constant([0, 2, 4]), tf.constant([5, 3, 2]))
    elif BACKEND == "jax":
        from jax.experimental.sparse import BCOO

        sparse = BCOO((tensor(rows), keras.ops.convert_to_tensor(np.asarray([[0], [2], [4]]))), shape=(5, 3, 2))
    else:
        # Keras has no sparse tensors there.
        return
    for name in ("SGD", "RMSprop", "Adam"):
        found = []
        for gradient in (sparse, tensor(dense)):
            optimizer, x = made(name, weight_decay=0.01), variable(np.ones((5, 3, 2)))
            optimizer.build([x])
            for _ in range(3):
                apply(optimizer, [gradient], [x])
            found.append(value_of(x))
        assert found[0].tobytes() == found[1].tobytes(), name


def case_several_optimizers_share_a_model(folder: Path) -> None:
    optimizer = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            made("SGD", learning_rate=0.1),
            {".*dense_1/.*": made("SGD", learning_rate=1e-3), ".*dense_2/.*": made("SGD", learning_rate=1e-2)},
        )
    )
    net = keras.Sequential(
        [
            keras.layers.Dense(2, kernel_initializer="ones", use_bias=False, name="dense_1"),
            keras.layers.Dense(1, kernel_initializer="ones", use_bias=False, name="dense_2"),
        ]
    )
    net.compile(loss="mse", optimizer=optimizer, run_eagerly=True)
    net.fit(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), batch_size=1, verbose=0)
    assert_close(net.layers[0].kernel, [[0.996, 0.996]])
    assert_close(net.layers[1].kernel, [[0.96], [0.96]])
    assert [int(each.iterations) for each in (optimizer, *optimizer.optimizers)] == [1, 1, 1, 0]
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert [type(each) for each in copy.optimizers] == [portopt_keras.SGD] * 3


@on("tensorflow")
def case_checkpoints_of_tensorflow_hold_the_optimizer(folder: Path) -> None:
    import tensorflow as tf

    net, optimizer = keras.Sequential([keras.layers.Dense(2)]), made("Adam")
    x, y = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    net.compile(optimizer, "mse")
    net.train_on_batch(x, y)
    checkpoint = tf.train.Checkpoint(model=net, optimizer=optimizer)
    path = checkpoint.save(str(folder / "tf_ckpt"))
    found = []
    for _ in range(2):
        net.train_on_batch(x, y)
        found.append([value_of(v).tobytes() for v in (*net.trainable_variables, *optimizer.variables)])
        checkpoint.restore(path)
    assert found[0] == found[1]


@on("tensorflow")
def case_variables_of_tensorflow_and_of_keras_go_together(folder: Path) -> None:
    import tensorflow as tf

    x, y = variable([[1.0, 2.0], [3.0, 4.0]]), tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="plain")
    ones = tensor(np.ones((2, 2)))
    optimizer = made("Adam", learning_rate=1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["plain"])
    optimizer.apply_gradients([(ones, x), (ones, y)])
    assert_close(x, [[-0.5, 0.0], [0.5, 1.0]], 1e-5)
    assert_close(y, [[0.0, 1.0], [2.0, 3.0]], 1e-5)
