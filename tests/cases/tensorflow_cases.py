"""What holds for TensorFlow's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from cases import tensorflow_devices  # noqa: F401  # for what it does
from support.bits import assert_same_bits, numpy_dtype, random_words
from support.conditional_rule import Conditional, expected_slots
from support.keeping_rule import Keeping

import portopt
import portopt_tensorflow
from portopt.program.products import matmul
from portopt_conformance import cases
from portopt_conformance.runner import run


def conform(*beginnings: str) -> None:
    chosen = [case for case in cases(portopt_tensorflow.backend, quick=True) if case.id.startswith(beginnings)]
    assert chosen
    assert [result.case.id for result in run(chosen).failures] == []


def case_the_contract_of_backends_holds() -> None:
    conform("0/")


def case_operations_scalars_and_norm_have_the_bits_of_the_vectors() -> None:
    conform("1/")


def case_rules_in_graphs_have_the_bits_of_the_vectors() -> None:
    conform("5/Adagrad/", "5/SGD/")


def case_gradients_of_another_dtype_are_loaded_into_the_compute_dtype() -> None:
    dtypes = ("float16", "bfloat16", "float32", "float64")
    for dtype, gradient_dtype in ((p, g) for p in dtypes for g in dtypes if p != g):
        kind, tiny = numpy_dtype(gradient_dtype), 2.0**-126 * (1 - 2.0**-25)
        with np.errstate(all="ignore"):
            special = np.asarray([tiny, -tiny, tiny * (1 - 2.0**-50), 2.0**-130, -(2.0**-149), 1e300]).astype(kind)
        g = np.concatenate([special, random_words((300,), gradient_dtype, 1)])
        p = np.zeros(g.shape, numpy_dtype(dtype))
        with np.errstate(all="ignore"):
            _, expected = Keeping().apply(p, g, Keeping().init(p))
        for mode in (*portopt_tensorflow.backend.modes.values(), *portopt_tensorflow.backend.extra_modes.values()):
            tensor = tf.constant(p)
            _, state = mode.many(Keeping(), tensor, [tf.constant(g)], Keeping().init(tensor))
            for name, slot in expected.slots.items():
                assert_same_bits(state.slots[name].numpy(), slot, f"{mode.name} {dtype} {gradient_dtype} {name}")


def arrays(seed: int) -> dict[str, Any]:
    return {"w": random_words((5, 3), "float32", seed), "b": random_words((3,), "float32", seed + 1)}


def tensors(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: tf.constant(array) for name, array in tree.items()}


def case_variables_are_changed_in_place() -> None:
    optimizer, params, gradients = portopt.Nadam(0.1, clipvalue=0.5), arrays(0), [arrays(2), arrays(4)]
    variables = {name: tf.Variable(array) for name, array in params.items()}
    state, expected = optimizer.init(variables), optimizer.init(params)
    for gradient in gradients:
        state = optimizer.apply_(variables, tensors(gradient), state)
        params, expected = optimizer.apply(params, gradient, expected)
    assert state.step == 2
    assert state.slots["m_schedule"] == expected.slots["m_schedule"]
    for name in params:
        assert_same_bits(variables[name].numpy(), params[name])
        assert_same_bits(state.slots["v"][name].numpy(), expected.slots["v"][name])


def case_tensors_cannot_be_changed_in_place() -> None:
    params = tensors(arrays(0))
    with pytest.raises(TypeError, match=r'params\["b"\] is a tensor of TensorFlow and no tf.Variable'):
        portopt.SGD().apply_(params, params, portopt.SGD().init(params))


def case_a_function_of_a_user_has_the_bits_of_numpy() -> None:
    """Converted by AutoGraph, with a step, a learning rate and gradients that are not known when it is traced."""
    optimizer = portopt.Adam(portopt.schedules.CosineDecay(0.1, 10), clipnorm=1.0, decay=0.1)

    @tf.function  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def step(params: Any, gradients: Any, slots: Any, finished: Any) -> Any:
        params, state = optimizer.apply(params, gradients, portopt.OptimizerState(finished, slots))
        return params, state.slots, state.step

    params = {"w": np.ones((5, 3), np.float32)}
    gradients = [{"w": np.random.default_rng(i).standard_normal((5, 3)).astype(np.float32)} for i in range(3)]
    ours, state = tensors(params), optimizer.init(params)
    slots, finished = optimizer.init(ours).slots, tf.constant(0, tf.int64)
    for gradient in gradients:
        ours, slots, finished = step(ours, tensors(gradient), slots, finished)
        params, state = optimizer.apply(params, gradient, state)
    assert int(finished) == 3
    assert_same_bits(ours["w"].numpy(), params["w"])


def case_conditions_of_scalars_choose_between_arrays() -> None:
    """In a graph that knows neither the step nor the learning rate, and in every mode."""
    optimizer = Conditional()
    p, g = np.asarray([1.0, -2.0], np.float32), np.asarray([-0.5, 3.0], np.float32)
    step = tf.function(
        lambda p, g, slots, finished, rate: (
            optimizer.apply(p, g, portopt.OptimizerState(finished, slots), learning_rate=rate)[1].slots
        ),
        autograph=False,
    )
    state = optimizer.init(tf.constant(p))
    for finished, rate in ((0, 0.2), (0, 0.05), (1, 0.2), (1, 0.05), (2, 0.05)):
        slots = step(tf.constant(p), tf.constant(g), state.slots, tf.constant(finished), tf.constant(rate, tf.float64))
        for name, expected in expected_slots(p, g, finished + 1, rate).items():
            assert_same_bits(slots[name].numpy(), expected, name)
    for mode in portopt_tensorflow.backend.modes.values():
        _, state = mode.many(Conditional(0.2), tf.Variable(p), [tf.constant(g)], Conditional().init(tf.constant(p)))
        for name, expected in expected_slots(p, g, 1, 0.2).items():
            assert_same_bits(state.slots[name].numpy(), expected, f"{mode.name} {name}")


def case_products_have_the_bits_of_numpy_in_graphs_too() -> None:
    def product(backend: Any, a: Any, b: Any) -> Any:
        primitives = backend.primitives(str(getattr(a.dtype, "name", a.dtype)))
        with np.errstate(all="ignore"):
            return matmul(primitives, backend.primitives("float64"), primitives.load(a), primitives.load(b))

    tensorflow, numpy = portopt_tensorflow.backend, portopt.get_backend("numpy")
    for dtype in ("float32", "float64"):
        a, b = random_words((3, 33, 20), dtype, 0), random_words((3, 20, 7), dtype, 1)
        a[0], b[0] = np.arange(660.0).reshape(33, 20) - 300.5, np.arange(140.0).reshape(20, 7) * 1e-3 - 0.3
        expected = product(numpy, a, b)
        x, y = map(tf.constant, (a, b))
        assert_same_bits(product(tensorflow, x, y).numpy(), expected, "eager")
        for jit_compile in (False, True):
            compiled = tf.function(lambda a, b: product(tensorflow, a, b), autograph=False, jit_compile=jit_compile)
            assert_same_bits(compiled(x, y).numpy(), expected, f"jit_compile={jit_compile}")


def case_a_python_step_in_a_function_has_the_bits_of_numpy() -> None:
    optimizer, params, gradient = portopt.Adagrad(0.1, epsilon=0.0), arrays(0), arrays(2)
    state = optimizer.init(tensors(params))
    step = tf.function(lambda p, g: optimizer.apply(p, g, state)[0], autograph=False)
    expected = optimizer.apply(params, gradient, optimizer.init(params))[0]
    for name, value in step(tensors(params), tensors(gradient)).items():
        assert_same_bits(value.numpy(), expected[name])


def case_a_schedule_that_asks_for_the_step_is_refused_in_a_graph() -> None:
    optimizer, params = portopt.SGD(lambda step: 0.1 if step < 3 else 0.01), tensors(arrays(0))
    state = optimizer.init(params)
    step = tf.function(lambda finished: optimizer.apply(params, params, state._replace(step=finished)), autograph=False)
    with pytest.raises(TypeError, match=r"a schedule asked for the value of the step inside a tf.function"):
        step(tf.constant(0))


def case_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensorflow has no device 'gpu:7'; it has cpu"):
        portopt_tensorflow.backend.from_numpy(np.ones(2), "gpu:7")


def case_arrays_of_tensorflow_and_numpy_are_not_mixed() -> None:
    params = arrays(0)
    with pytest.raises(TypeError, match=r"is an array of tensorflow, but .* has arrays of numpy"):
        portopt.SGD().apply(params, tensors(params), portopt.SGD().init(params))
