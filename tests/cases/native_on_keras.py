"""`NativeOptimizer` with Keras and TensorFlow."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases.keras_backend import BACKEND
from support.case_names import on
from support.native_trees import arrays, leaves, mapped

import portopt
from portopt.interchange.frameworks import get_framework
from portopt.interchange.nearest import counterpart_of

STEPS = 3


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(host(leaf)).tobytes() for leaf in leaves(tree)]


def host(leaf: Any) -> Any:
    """Return an array, tensor or variable as something that NumPy takes."""
    leaf = leaf if callable(getattr(leaf, "value", None)) else getattr(leaf, "value", leaf)
    return leaf.detach().numpy() if hasattr(leaf, "detach") else leaf


def tensors(tree: Any) -> Any:
    """Return arrays of Keras's backend."""
    import keras

    return mapped(lambda x: keras.ops.convert_to_tensor(np.array(x)), tree)


def run(opt: portopt.NativeOptimizer, convert: Callable[[Any], Any]) -> Any:
    params = convert(arrays(0))
    state = opt.init(params)
    for seed in range(1, STEPS + 1):
        params, state = opt.apply(params, convert(arrays(seed)), state)
    return params, state


def keras_loop(optimizer: Any) -> Any:
    """Return the parameters after Keras's own eager loop."""
    import keras

    variables = [keras.Variable(leaf) for leaf in leaves(arrays(0))]
    for seed in range(1, STEPS + 1):
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in leaves(arrays(seed))], variables)
    return [keras.ops.convert_to_numpy(v.value) for v in variables]


def keras_optimizers() -> dict[str, Callable[[], Any]]:
    from keras import optimizers

    schedule = optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    return {
        "SGD": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        "RMSprop": lambda: optimizers.RMSprop(0.1, momentum=0.9, centered=True, global_clipnorm=0.5),
        "Adam": lambda: optimizers.Adam(schedule, amsgrad=True, clipvalue=0.2),
        "Nadam": lambda: optimizers.Nadam(0.1, use_ema=True, ema_overwrite_frequency=2),
        "Adafactor": lambda: optimizers.Adafactor(0.1),
        "accumulating": lambda: optimizers.Adagrad(0.1, gradient_accumulation_steps=2),
        "Lion": lambda: optimizers.Lion(0.1),
    }


def case_keras_bits() -> None:
    for name, make in keras_optimizers().items():
        expected = keras_loop(make())
        opt = portopt.NativeOptimizer(make())
        for convert in (tensors, lambda tree: tree):
            params, state = run(opt, convert)
            assert bits(params) == bits(expected), (name, convert)
            assert state.step == STEPS


def case_keras_scaled_loss() -> None:
    import keras

    native = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=4.0)
    opt, w = portopt.NativeOptimizer(native), np.ones(2, np.float32)
    new, state = opt.apply(w, 4 * w, opt.init(w))
    assert new.tolist() == [0.5, 0.5]
    new, state = opt.apply(new, w * np.float32(np.inf), state)
    assert new.tolist() == [0.5, 0.5], "a step with an infinite gradient is left out"


def case_keras_purity() -> None:
    import keras

    opt = portopt.NativeOptimizer(keras.optimizers.Adam, learning_rate=0.1)
    for convert in (tensors, lambda tree: tree):
        params, state = run(opt, convert)
        grads = convert(arrays(9))
        before = bits((params, grads, state.slots))
        new, new_state = opt.apply(params, grads, state)
        assert bits((params, grads, state.slots)) == before
        # Between the two, the same variables of the copy that Keras updates hold other values.
        opt.apply(convert(arrays(5)), grads, opt.init(convert(arrays(5))))
        assert bits(opt.apply(params, grads, state)) == bits((new, new_state))
        assert bits((params, grads, state.slots)) == before
        first = opt.init(params)
        before = bits(first.slots)
        opt.apply(params, grads, first)
        assert bits(first.slots) == before, "the first step changed the state from init"


def case_keras_in_place() -> None:
    import keras

    opt = portopt.NativeOptimizer(keras.optimizers.SGD, learning_rate=0.5)
    w = np.ones(2, np.float32)
    state = opt.apply_(w, w.copy(), opt.init(w))
    assert (w.tolist(), state.step) == ([0.5, 0.5], 1)
    tensor = tensors(w)
    if (backend := keras.backend.backend()) in ("jax", "tensorflow"):
        reason = {"jax": "is a JAX array", "tensorflow": "is a tf.Tensor"}[backend]
        message = f"params {reason}, so it cannot be changed in place"
        refused(TypeError, message, lambda: opt.apply_(tensor, tensors(w), opt.init(tensor)))
    else:
        opt.apply_(tensor, tensors(w), opt.init(tensor))
        assert host(tensor).tolist() == [0.25, 0.25]


def case_keras_missing_gradient() -> None:
    import keras

    opt = portopt.NativeOptimizer(keras.optimizers.SGD(0.5))
    params = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
    new, _ = opt.apply(params, {"a": None, "b": params["b"]}, opt.init(params))
    assert (new["a"].tolist(), new["b"].tolist()) == ([1, 1], [0.5] * 3)


def case_keras_learning_rate() -> None:
    import keras

    w = np.ones(2, np.float32)
    opt = portopt.NativeOptimizer(keras.optimizers.SGD, learning_rate=1.0)
    assert opt.apply(w, w, opt.init(w), learning_rate=0.25)[0].tolist() == [0.75, 0.75]
    assert opt.apply(w, w, opt.init(w))[0].tolist() == [0, 0]
    refused(TypeError, "has no hyperparameter 'momentum' for a step", lambda: opt.apply(w, w, opt.init(w), momentum=1))
    scheduled = portopt.NativeOptimizer(keras_optimizers()["Adam"]())
    refused(TypeError, "is a schedule", lambda: scheduled.apply(w, w, scheduled.init(w), learning_rate=1))


def case_keras_config() -> None:
    import keras

    for name, make in [*keras_optimizers().items()][:4]:
        opt = portopt.get(make())
        again = portopt.deserialize(json.loads(json.dumps(portopt.serialize(opt))))
        assert type(again) is type(opt), name
        assert bits(run(again, tensors)[0]) == bits(run(opt, tensors)[0]), name

    class Own(keras.optimizers.SGD):  # type: ignore[misc]  # Keras and TensorFlow are untyped
        pass

    refused(ValueError, "is no class of keras.optimizers", portopt.NativeOptimizer(Own(0.1)).get_config)
    config = {"framework": "keras", "optimizer": "no", "arguments": {}}
    refused(ValueError, "keras.optimizers has no optimizer 'no'", lambda: portopt.NativeOptimizer.from_config(config))


def case_keras_errors() -> None:
    import keras

    w = np.ones(2, np.float32)
    opt = portopt.NativeOptimizer(keras.optimizers.SGD(0.5))
    other = portopt.OptimizerState(0, {"m": w})
    refused(ValueError, "state has the slots ['m'], but keras.optimizers.SGD has", lambda: opt.apply(w, w, other))
    sgd = keras.optimizers.SGD(0.5)
    refused(TypeError, "SGD was given as an instance", lambda: portopt.NativeOptimizer(sgd, momentum=0.5))


def case_keras_kind() -> None:
    import keras

    backend = keras.backend.backend()
    opt = portopt.get(keras.optimizers.SGD(0.5))
    assert opt.arrays.name == backend
    assert type(opt) is (portopt.TFOptimizer if backend == "tensorflow" else portopt.NativeOptimizer)


@on("jax")
def case_jit() -> None:
    import jax
    import keras

    opt = portopt.NativeOptimizer(keras.optimizers.Nadam(0.1))
    params = tensors(arrays(0))
    state = jax.jit(opt.init)(params)
    params, state = jax.jit(opt.apply)(params, tensors(arrays(1)), state)
    expected, _ = opt.apply(tensors(arrays(0)), tensors(arrays(1)), opt.init(tensors(arrays(0))))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        # XLA contracts a multiplication and an addition under jit.
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert state.slots["iteration"] == 1


def translated_rules() -> dict[str, portopt.Optimizer]:
    return {
        "SGD": portopt.SGD(0.125, momentum=0.5, nesterov=True, dialect="keras3"),
        "RMSprop": portopt.RMSprop(0.125, momentum=0.5, centered=True, epsilon=0.01, dialect="keras3"),
        "Adagrad": portopt.Adagrad(0.125, clipvalue=0.5, dialect="keras3"),
        "Adadelta": portopt.Adadelta(0.5, rho=0.5, dialect="keras3"),
        "Adam": portopt.Adam(0.125, amsgrad=True, dialect="keras3"),
        "AdamW": portopt.Adam(0.125, weight_decay=0.125, clipnorm=0.5, dialect="keras3"),
        "Adamax": portopt.Adamax(0.125, dialect="keras3"),
        "Nadam": portopt.Nadam(0.125, dialect="keras3"),
        "Adafactor": portopt.Adafactor(0.125, dialect="keras3", weight_decay=0.125, clip_threshold=1.5),
        "Lamb": portopt.LAMB(0.125, dialect="keras3"),
        "Muon": portopt.Muon(0.125, dialect="keras3", ns_steps=1, rms_rate=0.0, adam_lr_ratio=0.5),
    }


NARROW = ("Adafactor", "Lamb", "Muon")
"""Keras takes some of their means and norms in float32, whatever the parameters are."""


def case_keras_translation() -> None:
    """A run begins in Keras, goes on in portopt, and returns."""
    import keras

    backend = keras.backend.backend()
    # On torch Keras keeps float64 in float64, the learning rates here being exact, except for the norm of the gradient; on the
    # others float32 scalars, such as `beta_2**t`, make the steps differ by 7e-6.
    wide = backend == "torch"
    dtype = np.float64 if wide else np.float32
    known = backend in ("torch", "jax", "numpy")

    def data(seed: int) -> list[Any]:
        return [x.astype(dtype) for x in leaves(arrays(seed))]

    def keras_steps(native: Any, variables: list[Any], seeds: range) -> None:
        for seed in seeds:
            native.apply([keras.ops.convert_to_tensor(g) for g in data(seed)], variables)

    rules = translated_rules()
    if backend not in ("torch", "numpy"):
        # Where each operation is compiled they take long, and nothing of them depends on the backend but Adafactor's variables.
        del rules["Lamb"], rules["Muon"]
    for name, opt in rules.items():
        exact = opt.clipnorm is None and name not in NARROW
        tolerance = 1e-12 if wide and exact else 1e-7 if wide and name not in NARROW else 1e-5
        variables = [keras.Variable(x, dtype=dtype) for x in data(0)]
        tree = {"z": variables[0], "a": variables[1:]}
        start = {"z": data(0)[0], "a": data(0)[1:]}
        values = mapped(lambda v: v.value if known else v.value.numpy(), tree)
        native = portopt.to_native(opt, opt.init(values), "keras", tree)
        keras_steps(native, variables, range(1, 5))

        ours, state = portopt.from_native(native, params=tree)
        assert ours == opt, (ours, opt)
        assert state.step == 4
        params = mapped(lambda v: copied(v.value), tree)
        if not known:
            params, state = mapped(np.asarray, params), mapped_state(state)
        with portopt.interpreted():
            for seed in range(5, 9):
                z, *a = [portopt.get_backend("numpy").from_numpy(g, "cpu") for g in data(seed)]
                grads = {"z": z, "a": a} if not known else tensors({"z": z, "a": a})
                params, state = ours.apply(params, grads, state)
        back = mapped(lambda x: keras.Variable(host(x), dtype=dtype), params)
        again = portopt.to_native(ours, state, "keras", back)
        assert type(again) is type(native)
        keras_steps(native, variables, range(5, 9))
        assert_close(params, tree, start, tolerance, name)
        keras_steps(native, variables, range(9, 11))
        keras_steps(again, [back["z"], *back["a"]], range(9, 11))
        assert_close(back, tree, start, tolerance, name)


def copied(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


def mapped_state(state: portopt.OptimizerState) -> portopt.OptimizerState:
    slots = {n: s if isinstance(s, float) else mapped(np.asarray, s) for n, s in state.slots.items()}
    return portopt.OptimizerState(state.step, slots)


def assert_close(actual: Any, expected: Any, start: Any, tolerance: float, name: str) -> None:
    """Compare relative to how far the parameters have moved, up to some roundings of the parameters themselves."""
    for group in zip(*map(leaves, (actual, expected, start)), strict=True):
        ours, theirs, first = (np.asarray(host(x)) for x in group)
        rounding = 8 * np.finfo(theirs.dtype).eps * np.max(np.abs(theirs))
        error = np.max(np.abs(ours - theirs))
        assert error <= tolerance * np.max(np.abs(theirs - first)) + rounding, (name, error)


def case_keras_translation_errors() -> None:
    import keras

    sgd = keras.optimizers.SGD(0.5)
    refused(ValueError, "this SGD has no parameters yet", lambda: portopt.from_native(sgd))
    variable = keras.Variable(np.ones(2, np.float32))
    sgd.build([variable])
    refused(
        ValueError, "params must have the 1 variables of the optimizer", lambda: portopt.from_native(sgd, params=[3])
    )
    for arguments, named in (
        ({"clipnorm": 1.0}, "clipnorm=1.0 of SGD"),
        ({"use_ema": True}, "use_ema=True of SGD"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 of SGD"),
        ({"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)}, "learning_rate={"),
    ):
        native = keras.optimizers.SGD(**arguments)
        native.build([variable])
        refused(ValueError, f"portopt has no counterpart of {named}", functools.partial(portopt.from_native, native))
    lion = keras.optimizers.Lion()
    lion.build([variable])
    refused(ValueError, "portopt has no counterpart of Lion; translated are SGD", lambda: portopt.from_native(lion))
    averaging = keras.optimizers.ScheduleFreeAdamW()
    averaging.build([variable])
    message = "no counterpart of ScheduleFreeAdamW, since as of Keras 3.15, on torch and TensorFlow"
    refused(ValueError, message, lambda: portopt.from_native(averaging))
    free = portopt.ScheduleFree()
    message = "keras has no counterpart of ScheduleFree, since as of Keras 3.15, on torch and TensorFlow"
    refused(ValueError, message, lambda: portopt.to_native(free, portopt.OptimizerState(0, {}), "keras", [variable]))
    muon = keras.optimizers.Muon()
    muon.build([keras.Variable(np.ones((2, 3), np.float32), name="embedding")])
    refused(ValueError, "no counterpart of how this Muon updates some of its var", lambda: portopt.from_native(muon))
    opt = portopt.SGD(momentum=0.5, dialect="keras3")
    state = portopt.OptimizerState(1, {"moment": variable.value})
    refused(TypeError, "params must have Keras variables", lambda: portopt.to_native(opt, state, "keras", np.ones(2)))
    refused(ValueError, "have the structure of the slots", lambda: portopt.to_native(opt, state, "keras", [variable]))


def tensorflow_optimizers() -> dict[str, Callable[[], Any]]:
    import tensorflow as tf
    import tf_keras

    train, keras2, legacy = tf.compat.v1.train, tf_keras.optimizers, tf_keras.optimizers.legacy
    schedule = legacy.Adam(keras2.schedules.ExponentialDecay(0.1, 2, 0.5)).get_config()
    return {
        "v1 SGD": lambda: train.GradientDescentOptimizer(0.1),
        "v1 momentum": lambda: train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
        "v1 Adam": lambda: train.AdamOptimizer(0.1),
        "v1 RMSProp": lambda: train.RMSPropOptimizer(0.1, momentum=0.9, centered=True),
        "v1 Adagrad": lambda: train.AdagradOptimizer(0.1),
        "v1 Ftrl": lambda: train.FtrlOptimizer(0.1),
        "legacy Nadam": lambda: legacy.Nadam(0.1),
        "legacy Adam": lambda: legacy.Adam.from_config(schedule),
        "legacy SGD": lambda: legacy.SGD(0.1, momentum=0.9, decay=0.1, clipnorm=0.5),
        "Keras 2 Adam": lambda: keras2.Adam(0.1, amsgrad=True),
        "Keras 2 AdamW": lambda: keras2.AdamW(0.1),
        "Keras 2 RMSprop": lambda: keras2.RMSprop(0.1, momentum=0.9, centered=True),
        "Keras 2 Adafactor": lambda: keras2.Adafactor(0.1),
    }


def tf_variables(tree: Any) -> Any:
    import tensorflow as tf

    return mapped(tf.Variable, tree)


@on("tensorflow")
def case_tensorflow_bits() -> None:
    import tensorflow as tf

    for name, make in tensorflow_optimizers().items():
        optimizer = make()
        variables = [tf.Variable(leaf) for leaf in leaves(arrays(0))]
        for seed in range(1, STEPS + 1):
            gradients = [tf.constant(g) for g in leaves(arrays(seed))]
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        # The instance has been used: what it keeps for its own variables must not matter.
        opt = portopt.get(optimizer)
        assert type(opt) is portopt.TFOptimizer
        for convert in (tensors, tf_variables, lambda tree: tree):
            params, state = run(opt, convert)
            assert bits(params) == bits(variables), (name, convert)
            assert state.step == STEPS


@on("tensorflow")
def case_tensorflow_purity() -> None:
    for name, make in tensorflow_optimizers().items():
        opt = portopt.NativeOptimizer(make())
        params, state = run(opt, tf_variables)
        grads = tensors(arrays(9))
        before = bits((params, grads, state.slots))
        new, new_state = opt.apply(params, grads, state)
        opt.apply(tensors(arrays(5)), grads, opt.init(tensors(arrays(5))))
        assert bits((params, grads, state.slots)) == before, name
        assert bits(opt.apply(params, grads, state)) == bits((new, new_state)), name


@on("tensorflow")
def case_tensorflow_in_place() -> None:
    import tensorflow as tf

    opt = portopt.TFOptimizer(tf.compat.v1.train.GradientDescentOptimizer, learning_rate=0.5)
    variable, w = tf.Variable([1.0, 1.0]), np.ones(2, np.float32)
    opt.apply_(variable, tf.constant([1.0, 1.0]), opt.init(variable))
    opt.apply_(w, np.ones(2, np.float32), opt.init(w))
    assert variable.numpy().tolist() == w.tolist() == [0.5, 0.5]


@on("tensorflow")
def case_tensorflow_memory() -> None:
    """Aligned NumPy arrays are lent, and others, which would end the process, are copied."""
    import tensorflow as tf

    opt = portopt.NativeOptimizer(tf.compat.v1.train.GradientDescentOptimizer, learning_rate=0.5)
    memory = np.ones(1024, np.float32)
    start = (-memory.ctypes.data % 64) // 4
    for offset in (0, 1, 4, 8):
        w = memory[start + offset : start + offset + 128]
        new, _ = opt.apply(w, w, opt.init(w))
        assert new.tolist() == [0.5] * 128
        new[:] = 7
    assert set(memory) == {1}
    lent = opt.arrays.borrow(memory[start : start + 128])
    memory[start] = 3
    assert lent[0] == 3
    read_only = np.ones(2, np.float32)
    read_only.flags.writeable = False
    assert opt.apply(read_only, read_only, opt.init(read_only))[0].tolist() == [0.5, 0.5]


@on("tensorflow")
def case_tensorflow_hyperparameters() -> None:
    import tensorflow as tf
    import tf_keras

    train, w = tf.compat.v1.train, np.ones(2, np.float32)
    for opt in (
        portopt.NativeOptimizer(train.MomentumOptimizer, learning_rate=1.0, momentum=0.5),
        portopt.NativeOptimizer(tf_keras.optimizers.SGD(1.0)),
        portopt.NativeOptimizer(tf_keras.optimizers.legacy.SGD(1.0)),
    ):
        assert opt.apply(w, w, opt.init(w), learning_rate=0.25)[0].tolist() == [0.75, 0.75]
        assert opt.apply(w, w, opt.init(w))[0].tolist() == [0, 0]
        refused(
            TypeError, "has no hyperparameter 'lr' for a step", functools.partial(opt.apply, w, w, opt.init(w), lr=1)
        )
    instance = portopt.NativeOptimizer(train.AdamOptimizer())
    message = "a tf.compat.v1.train.AdamOptimizer that was given as an instance has no hyperparameter"
    refused(TypeError, message, lambda: instance.apply(w, w, instance.init(w), learning_rate=1))


@on("tensorflow")
def case_tensorflow_config() -> None:
    import tensorflow as tf
    import tf_keras

    for opt in (
        portopt.TFOptimizer(tf.compat.v1.train.MomentumOptimizer, learning_rate=0.5, momentum=0.5),
        portopt.TFOptimizer(tf_keras.optimizers.RMSprop(0.5, centered=True)),
        portopt.TFOptimizer(tf_keras.optimizers.legacy.Nadam(0.5)),
    ):
        again = portopt.deserialize(json.loads(json.dumps(portopt.serialize(opt))))
        assert type(again) is portopt.TFOptimizer
        assert bits(run(again, tensors)[0]) == bits(run(opt, tensors)[0])
    instance = portopt.NativeOptimizer(tf.compat.v1.train.AdamOptimizer())
    refused(ValueError, "does not know its arguments, so it has no config: give the class", instance.get_config)
    config = {"framework": "tensorflow", "optimizer": "tf.compat.v1.train.no", "arguments": {}}
    refused(ValueError, "TensorFlow has no optimizer 'tf.", lambda: portopt.TFOptimizer.from_config(config))

    class Own(tf.compat.v1.train.GradientDescentOptimizer):  # type: ignore[misc]  # Keras and TensorFlow are untyped
        pass

    class OwnKeras(tf_keras.optimizers.SGD):  # type: ignore[misc]  # Keras and TensorFlow are untyped
        pass

    own = portopt.NativeOptimizer(Own, learning_rate=0.1)
    refused(ValueError, "is no class of tf.compat.v1.train", own.get_config)
    refused(ValueError, "is no class of tf_keras.optimizers", portopt.NativeOptimizer(OwnKeras(0.1)).get_config)


@on("tensorflow")
def case_tensorflow_errors() -> None:
    import tensorflow as tf

    train, w = tf.compat.v1.train, np.ones(2, np.float32)
    refused(
        TypeError, "was given as an instance", lambda: portopt.TFOptimizer(train.AdamOptimizer(), learning_rate=0.1)
    )
    opt = portopt.TFOptimizer(train.GradientDescentOptimizer, learning_rate=0.5)
    message = "state has the slots ['m'], but tf.compat.v1.train.GradientDescentOptimizer has []"
    refused(ValueError, message, lambda: opt.apply(w, w, portopt.OptimizerState(0, {"m": w})))
    state = opt.init(tf.constant(w))
    graph = tf.function(lambda g: opt.apply(g, g, state)[0])
    refused(Exception, "needs eager execution here", lambda: graph(tf.constant(w)))


@on("tensorflow")
def case_tensorflow_translation() -> None:
    """The optimizers of Keras 2 are the dialect keras2, up to their float32 scalars."""
    import tensorflow as tf
    import tf_keras

    def data(seed: int) -> list[Any]:
        return leaves(arrays(seed))

    def native_steps(native: Any, variables: list[Any], seeds: range) -> None:
        for seed in seeds:
            native.apply_gradients(zip([tf.constant(g) for g in data(seed)], variables, strict=True))

    for opt in (
        portopt.SGD(0.125, momentum=0.5, nesterov=True, decay=0.25),
        portopt.RMSprop(0.125, epsilon=0.01),
        portopt.Adagrad(0.125, clipvalue=0.5),
        portopt.Adadelta(0.5, rho=0.5),
        portopt.Adam(0.125, amsgrad=True),
        portopt.Adamax(0.125, clipnorm=0.5),
        portopt.Nadam(0.125),
    ):
        variables = [tf.Variable(x) for x in data(0)]
        native = portopt.to_native(opt, opt.init(data(0)), "tensorflow", variables)
        assert type(native) is getattr(tf_keras.optimizers.legacy, type(opt).__name__)
        native_steps(native, variables, range(1, 5))
        ours, state = portopt.from_native(native, params=variables)
        for name, value in opt.get_config().items():
            np.testing.assert_allclose(ours.get_config()[name], value, rtol=1e-7, err_msg=repr(opt))
        params, state = [v.numpy() for v in variables], mapped_state(state)
        with portopt.interpreted():
            for seed in range(5, 9):
                params, state = ours.apply(params, data(seed), state)
        native_steps(native, variables, range(5, 9))
        assert_close(params, variables, data(0), 1e-5, repr(opt))
        back = [tf.Variable(p) for p in params]
        again = portopt.to_native(ours, state, "tensorflow", back)
        native_steps(again, back, range(9, 11))
        native_steps(native, variables, range(9, 11))
        assert_close(back, variables, data(0), 1e-5, repr(opt))

    train, variable = tf.compat.v1.train.AdamOptimizer(), tf.Variable([1.0])
    message = "those of tf_keras.optimizers.legacy are translated"
    refused(ValueError, message, lambda: portopt.from_native(train, params=[variable]))
    refused(ValueError, "give them as params", lambda: portopt.from_native(tf_keras.optimizers.legacy.SGD()))
    centered = tf_keras.optimizers.legacy.RMSprop(centered=True)
    refused(ValueError, "no counterpart of centered=True", lambda: portopt.from_native(centered, params=[variable]))


def case_keras_counterparts() -> None:
    check_counterparts("keras")


@on("tensorflow")
def case_tensorflow_counterparts() -> None:
    check_counterparts("tensorflow")


def check_counterparts(name: str) -> None:
    """Check that the optimizers that rules state as counterparts exist and take the arguments that are stated."""
    framework = get_framework(name)
    assert framework.translator is not None
    checked = 0
    for rule in portopt.RULES:
        for vocabulary in {v.namespace: v for v in (framework.vocabulary, framework.translator.vocabulary)}.values():
            for found in vocabulary.correspondences(rule):
                cls = vocabulary.find(found.name)
                taken = cls().get_config() if vocabulary.translated else inspect.signature(cls).parameters
                # A config of Keras 2 has them only where they are on.
                asked = {*found.hyperparameters, *found.counterpart.ignored} - {"global_clipnorm", "clipvalue"}
                assert asked <= {*taken}, found
                checked += 1
        compared = counterpart_of(framework, rule())
        if compared is not None:
            opt = portopt.NativeOptimizer(compared.factory, **compared.arguments)
            opt.apply(np.ones(2), np.ones(2), opt.init(np.ones(2)))
    assert checked > 0


@on("jax", "tensorflow")
def case_compare() -> None:
    from portopt_tools.compare.comparison import Settings, Verdict, compare

    against = [name for name in ("keras", "tensorflow") if name == "keras" or BACKEND == "tensorflow"]
    for optimizer in (portopt.SGD(0.1, momentum=0.9, nesterov=True, decay=0.1), portopt.Adam(clipnorm=0.5)):
        result = compare(Settings(optimizer, 1, 512, "float32", backends=["numpy"], against=against))
        for run in result.runs[-len(against) :]:
            assert run.verdict is Verdict.OTHER_FORMULA, run
            assert run.measurements is not None
            assert run.measurements.distances is not None
            assert run.measurements.distances[-1] < 0.05, run
    if "tensorflow" in against:
        adamax = Settings(portopt.Adamax(), backends=["numpy"], against=["tensorflow"])
        refused(ValueError, "tensorflow has no counterpart of Adamax(", lambda: compare(adamax))


def refused(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
