"""`NativeOptimizer` for torch and optax: the framework's own bits, pure and in place, on its arrays and on NumPy's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import optree
import pytest
import torch
from support.entry_points import further_entry_points
from support.native_trees import arrays, leaves, mapped
from support.processes import run_python

import portopt
from portopt.interchange.frameworks import frameworks, get_framework

STEPS = 4


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in leaves(tree)]


def to_torch(tree: Any) -> Any:
    return mapped(lambda x: torch.from_numpy(np.array(x)), tree)


def run(opt: portopt.NativeOptimizer, params: Any, convert: Callable[[Any], Any] = lambda tree: tree) -> Any:
    params = convert(params)
    state = opt.init(params)
    for seed in range(1, STEPS + 1):
        params, state = opt.apply(params, convert(arrays(seed)), state)
    return params, state


TORCH = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "lr_decay": 0.1}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    (torch.optim.RAdam, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Adafactor, {}),
]
every_torch_optimizer = pytest.mark.parametrize(
    ("cls", "arguments"), TORCH, ids=lambda x: x.__name__ if isinstance(x, type) else "-".join(x)
)


def torch_loop(cls: Any, arguments: Any, params: Any) -> Any:
    """Return the parameters after some steps of torch's own loop."""
    tensors = [torch.nn.Parameter(leaf) for leaf in leaves(to_torch(params))]
    optimizer = cls(tensors, **arguments)
    for seed in range(1, STEPS + 1):
        for tensor, gradient in zip(tensors, leaves(arrays(seed)), strict=True):
            tensor.grad = torch.from_numpy(gradient)
        optimizer.step()
    return [tensor.detach() for tensor in tensors]


class TestTorch:
    @every_torch_optimizer
    def test_has_the_bits_of_torchs_own_loop(self, cls: Any, arguments: Any) -> None:
        expected = torch_loop(cls, arguments, arrays(0))
        opt = portopt.NativeOptimizer(cls, **arguments)
        for convert in (to_torch, lambda tree: tree):
            params, state = run(opt, arrays(0), convert)
            assert bits(params) == bits(expected)
            assert state.step == STEPS
        assert isinstance(params["kernel"], np.ndarray)

    @every_torch_optimizer
    @pytest.mark.parametrize("convert", [to_torch, lambda tree: tree], ids=["torch", "numpy"])
    def test_apply_leaves_its_arguments_untouched_and_apply__does_the_same_in_place(
        self, cls: Any, arguments: Any, convert: Any
    ) -> None:
        opt = portopt.NativeOptimizer(cls, **arguments)
        params, state = run(opt, arrays(0), convert)
        grads = convert(arrays(9))
        before = bits((params, grads, state.slots))
        new, new_state = opt.apply(params, grads, state)
        assert bits((params, grads, state.slots)) == before
        assert bits(opt.apply(params, grads, state)) == bits((new, new_state)), "the state can be used again"
        assert not any(
            np.shares_memory(np.asarray(a), np.asarray(b))
            for a in leaves((new, new_state.slots))
            for b in leaves((params, grads, state.slots))
        )
        again = opt.apply_(params, grads, state)
        assert bits((params, again.slots)) == bits((new, new_state.slots))
        assert bits(grads) == bits(convert(arrays(9)))

    def test_a_parameter_without_a_gradient_stays_and_gets_no_slots(self) -> None:
        opt, params = portopt.NativeOptimizer(torch.optim.Adam), arrays(0)
        grads = {"kernel": None, "layers": arrays(1)["layers"]}
        new, state = opt.apply(params, grads, opt.init(params))
        assert bits(new["kernel"]) == bits(params["kernel"])
        assert bits(new["layers"]) != bits(params["layers"])
        assert state.slots["exp_avg"]["kernel"] is None
        new, state = opt.apply(new, arrays(2), state)
        assert (state.slots["step"]["kernel"], state.slots["step"]["layers"][0]) == (1, 2)

    def test_a_hyperparameter_counts_for_one_step(self) -> None:
        opt, w = portopt.NativeOptimizer(torch.optim.SGD, lr=1.0), np.ones(2)
        assert opt.apply(w, w, opt.init(w), lr=0.25)[0].tolist() == [0.75, 0.75]
        assert opt.apply(w, w, opt.init(w))[0].tolist() == [0, 0]

    def test_bfloat16_goes_through_numpy(self) -> None:
        opt = portopt.NativeOptimizer(torch.optim.Adam, lr=0.1)
        w = np.ones(3, ml_dtypes.bfloat16)
        new, state = opt.apply(w, w, opt.init(w))
        expected = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        expected.grad = torch.ones(3, dtype=torch.bfloat16)
        torch.optim.Adam([expected], lr=0.1).step()
        assert new.dtype == state.slots["exp_avg"].dtype == ml_dtypes.bfloat16
        assert new.astype(np.float32).tolist() == expected.float().tolist()

    def test_read_only_and_reversed_arrays_are_read(self) -> None:
        opt = portopt.NativeOptimizer(torch.optim.SGD, lr=1.0)
        w = np.arange(3.0)
        w.flags.writeable = False
        assert opt.apply(w[::-1], w, opt.init(w))[0].tolist() == [2, 0, -2]
        with pytest.raises(TypeError, match="params is a read-only NumPy array, so it cannot be changed in place"):
            opt.apply_(w, w, opt.init(w))

    def test_whether_a_gradient_is_asked_for_is_kept(self) -> None:
        opt, w = portopt.NativeOptimizer(torch.optim.SGD), torch.nn.Parameter(torch.ones(2))
        new, _ = opt.apply(w, torch.ones(2), opt.init(w))
        assert new.requires_grad
        assert new.grad is None
        assert w.grad is None

    def test_an_instance_gives_its_hyperparameters(self) -> None:
        native = torch.optim.AdamW([torch.zeros(1)], lr=0.5, betas=(0.5, 0.75))
        native.param_groups[0]["lr"] = 0.25
        opt = portopt.get(native)
        assert type(opt) is portopt.NativeOptimizer
        arguments = {"lr": 0.25, "betas": [0.5, 0.75], "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}
        assert opt.get_config()["arguments"].items() >= arguments.items()
        assert portopt.get(opt) is opt

    def test_every_torch_optimizer_is_accepted_or_refused_with_a_reason(self) -> None:
        classes = {
            c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
        }
        for cls in classes - {torch.optim.Optimizer, torch.optim.LBFGS}:
            assert portopt.NativeOptimizer(cls, lr=0.1).framework == "torch"
        with pytest.raises(ValueError, match=r"LBFGS needs a closure .* use torch's own loop"):
            portopt.NativeOptimizer(torch.optim.LBFGS)


def adam() -> Any:
    return optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(), optax.scale(-0.1))


OPTAX: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(0.1),
    "adam, clipped": adam,
    "schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 5), weight_decay=0.1),
    "masked": lambda: optax.masked(optax.adam(0.1), {"kernel": True, "layers": [False, None, True]}),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "injected": lambda: optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1, momentum=0.9),
    "if finite": lambda: optax.apply_if_finite(optax.lion(0.1), 3),
    "by block": lambda: optax.adafactor(0.1),
}


def to_jax(tree: Any) -> Any:
    return mapped(jnp.asarray, tree)


class TestOptax:
    @pytest.mark.parametrize(
        ("make", "jit"),
        # Without jit each operation is compiled on its own, which takes time.
        [*((make, True) for make in OPTAX.values()), (adam, False), (OPTAX["injected"], False)],
        ids=[*OPTAX, "adam, eager", "injected, eager"],
    )
    def test_has_the_bits_of_optaxs_own_loop(self, make: Callable[[], Any], jit: bool) -> None:
        transformation = make()
        compiled: Any = jax.jit if jit else lambda function: function

        def eager(params: Any, grads: Any, state: Any) -> Any:
            updates, state = transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        update = compiled(eager)

        opt = portopt.NativeOptimizer(transformation)
        step = compiled(opt.apply)
        params = mine = to_jax(arrays(0))
        native, state = transformation.init(params), opt.init(mine)
        for seed in range(1, STEPS + 1):
            params, native = update(params, to_jax(arrays(seed)), native)
            mine, state = step(mine, to_jax(arrays(seed)), state)
        assert bits(mine) == bits(params)
        assert int(state.step) == STEPS
        assert sorted(bits(state.slots)) == sorted(np.asarray(x).tobytes() for x in jax.tree.leaves(native))

    @pytest.mark.parametrize("make", [adam, OPTAX["injected"]], ids=["adam", "injected"])
    def test_numpy_arrays_give_the_same_bits(self, make: Callable[[], Any]) -> None:
        opt = portopt.NativeOptimizer(make())
        params, state = run(opt, arrays(0))
        expected, expected_state = run(opt, arrays(0), to_jax)
        assert bits((params, state.slots)) == bits((expected, expected_state.slots))
        assert all(isinstance(x, np.ndarray) and x.flags.writeable for x in leaves((params, state.slots)))

    def test_slots_are_trees_like_the_parameters_named_by_their_path(self) -> None:
        opt, params = portopt.NativeOptimizer(adam()), to_jax(arrays(0))
        slots = opt.init(params).slots
        assert list(slots) == ["1.count", "1.mu", "1.nu"]
        assert optree.tree_structure(slots["1.mu"], none_is_leaf=True) == optree.tree_structure(
            params, none_is_leaf=True
        )

    def test_float64_of_numpy_stays_float64_and_jax_stays_as_it_was(self) -> None:
        opt, w = portopt.NativeOptimizer(optax.sgd, learning_rate=0.1, momentum=0.5), np.asarray([1.0, 2.0])
        new, state = opt.apply(w, w, opt.init(w))
        assert new.tolist() == [1 + -0.1 * 1, 2 + -0.1 * 2]
        assert state.slots["0.trace"].dtype == np.float64
        assert jnp.asarray(1.0).dtype == jnp.float32

    def test_numpy_arguments_stay_untouched_and_apply__writes_them(self) -> None:
        opt = portopt.NativeOptimizer(adam())
        # Aligned well enough for JAX to use their memory.
        memory = np.zeros(1024, np.float32)
        start = (-memory.ctypes.data % 64) // 4
        w, g = memory[start : start + 256], np.ones(256, np.float32)
        state = opt.init(w)
        new, _ = opt.apply(w, g, state)
        assert not w.any()
        new += 1
        assert not w.any()
        opt.apply_(w, g, state)
        assert bits(w + 1) == bits(new)

    def test_jax_arrays_cannot_be_changed_in_place(self) -> None:
        opt, w = portopt.NativeOptimizer(adam()), jnp.ones(2)
        with pytest.raises(TypeError, match="params is a JAX array, so it cannot be changed in place"):
            opt.apply_(w, w, opt.init(w))

    def test_an_argument_of_a_function_counts_for_one_step_also_when_traced(self) -> None:
        opt, w = portopt.NativeOptimizer(optax.sgd, learning_rate=1.0), jnp.ones(2)
        step = jax.jit(lambda rate: opt.apply(w, w, opt.init(w), learning_rate=rate)[0])
        assert step(0.25).tolist() == [0.75, 0.75]
        assert opt.apply(w, w, opt.init(w))[0].tolist() == [0, 0]

    def test_extra_arguments_reach_the_transformation(self) -> None:
        opt, w = portopt.NativeOptimizer(optax.polyak_sgd), jnp.ones(2)
        assert opt.apply(w, w, opt.init(w), value=jnp.asarray(1.0))[0].tolist() == [0.5, 0.5]

    def test_a_missing_gradient_is_refused(self) -> None:
        opt, params = portopt.NativeOptimizer(adam()), arrays(0)
        with pytest.raises(ValueError, match=r'grads\["kernel"\] is None, but optax updates every parameter'):
            opt.apply(params, {**arrays(1), "kernel": None}, opt.init(params))

    def test_a_state_of_another_transformation_is_refused(self) -> None:
        w = np.ones(2)
        state = portopt.NativeOptimizer(optax.sgd, learning_rate=0.1, momentum=0.9).init(w)
        with pytest.raises(
            ValueError, match=r"state has the slots \['0.trace'\], but .* has \['1.count', '1.mu', '1.nu'\]"
        ):
            portopt.NativeOptimizer(adam()).apply(w, w, state)


SGD = portopt.NativeOptimizer(torch.optim.SGD, lr=0.1, momentum=0.9)


class TestConfig:
    @pytest.mark.parametrize(
        "opt",
        [
            portopt.NativeOptimizer(torch.optim.Adam, lr=0.5, betas=(0.5, 0.75)),
            portopt.NativeOptimizer(optax.adam, learning_rate=0.5, b1=0.25),
        ],
        ids=["torch", "optax"],
    )
    def test_goes_through_json_and_back(self, opt: portopt.NativeOptimizer) -> None:
        again = portopt.deserialize(json.loads(json.dumps(portopt.serialize(opt))))
        assert type(again) is portopt.NativeOptimizer
        assert again.get_config() == opt.get_config()
        assert bits(run(again, arrays(0))) == bits(run(opt, arrays(0)))

    def test_a_transformation_has_none(self) -> None:
        with pytest.raises(ValueError, match="does not know what it was made of"):
            portopt.NativeOptimizer(adam()).get_config()

    def test_an_argument_that_json_cannot_hold_is_named(self) -> None:
        opt = portopt.NativeOptimizer(optax.adam, learning_rate=optax.constant_schedule(0.1))
        with pytest.raises(ValueError, match=r"the argument learning_rate of .* cannot be written into a config"):
            opt.get_config()

    def test_a_users_own_class_has_none(self) -> None:
        class Own(torch.optim.SGD):
            pass

        with pytest.raises(ValueError, match=r"Own is no class of torch\.optim, so a config cannot name it"):
            portopt.NativeOptimizer(Own).get_config()

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({}, "a dict of arguments, framework, optimizer, but {} was given"),
            (
                {"framework": "caffe", "optimizer": "SGD", "arguments": {}},
                "no framework is named 'caffe'; known are keras",
            ),
            ({"framework": "torch", "optimizer": "Module", "arguments": {}}, "torch.optim has no optimizer 'Module'"),
            ({"framework": "optax", "optimizer": "no", "arguments": {}}, "optax has no function 'no'"),
        ],
    )
    def test_a_wrong_config_is_refused(self, config: Any, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            portopt.NativeOptimizer.from_config(config)

    def test_the_names_are_taken(self) -> None:
        with pytest.raises(ValueError, match="the name 'NativeOptimizer' is taken"):
            portopt.register(type("NativeOptimizer", (portopt.Optimizer,), {}))


W = np.ones(2)
NO_STATE: Any = {}
GROUPS: Any = [{"params": torch.zeros(1)}, {"params": torch.zeros(1), "lr": 3.0}]


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: portopt.NativeOptimizer(3), TypeError, "takes a class of keras.optimizers .* but 3 of type int"),
            (lambda: portopt.NativeOptimizer("Adam"), TypeError, "but 'Adam' of type str was given"),
            (
                lambda: portopt.NativeOptimizer(torch.optim.SGD([torch.zeros(1)]), lr=1),
                TypeError,
                "torch.optim.SGD was given as an instance, .* so lr cannot be given too",
            ),
            (
                lambda: portopt.NativeOptimizer(optax.sgd(0.1), learning_rate=1),
                TypeError,
                "an optax transformation was given, .* so learning_rate cannot be given too",
            ),
            (
                lambda: portopt.NativeOptimizer(optax.apply_updates, params=W, updates=W),
                TypeError,
                "optax.apply_updates makes .*, which is no gradient transformation",
            ),
            (
                lambda: portopt.NativeOptimizer(torch.optim.SGD(GROUPS)),
                ValueError,
                "the parameter groups of this SGD differ in lr",
            ),
            (lambda: portopt.TFOptimizer(torch.optim.SGD), TypeError, "TFOptimizer takes .* updates arrays of torch: use Native"),
            (lambda: SGD.apply(W, W, SGD.init(W), learning_rate=1), TypeError, "no hyperparameter 'learning_rate'; allowed"),
            (lambda: SGD.init({"a": jnp.ones(2)}), TypeError, r'params\["a"\] is jaxlib.* updates arrays of torch \(or NumPy'),
            (lambda: SGD.init([W, torch.ones(2)]), TypeError, r"params\[1\] is torch.Tensor, but .* arrays of numpy"),
            (lambda: SGD.init([None]), ValueError, "params holds no array"),
            (lambda: SGD.apply([W], [torch.ones(2)], SGD.init([W])), TypeError, r"grads\[0\] is torch.Tensor"),
            (lambda: SGD.apply([W], W, SGD.init([W])), ValueError, "grads must have the structure of params"),
            (lambda: SGD.apply([W, None], [W, W], SGD.init([W])), ValueError, r"params\[1\] is None, so grads\[1\] must be None"),
            (lambda: SGD.apply(W, W[:1], SGD.init(W)), ValueError, r"grads has shape \(1,\), but params has shape \(2,\)"),
            (lambda: SGD.apply(W, W.astype("f"), SGD.init(W)), TypeError, "grads has dtype float32, but params has .*64"),
            (lambda: SGD.apply(W, W, NO_STATE), TypeError, "state must be the OptimizerState .* but dict was given"),
            (
                lambda: SGD.apply(W, W, portopt.OptimizerState(1, {"momentum_buffer": [W]})),
                ValueError,
                r"state.slots\['momentum_buffer'\] must have the structure of params",
            ),
            (
                lambda: SGD.apply(W, W, portopt.OptimizerState(1, {"momentum_buffer": torch.ones(2)})),
                TypeError,
                r"state.slots\['momentum_buffer'\] is torch.Tensor",
            ),
            (
                lambda: SGD.apply(torch.ones(2), torch.ones(2), portopt.OptimizerState(1, {"momentum_buffer": W})),
                TypeError,
                r"state.slots\['momentum_buffer'\] is numpy.ndarray",
            ),
            (
                lambda: portopt.NativeOptimizer(optax.sgd, learning_rate=1).apply(W, W, portopt.OptimizerState(0, {}), lr=1),
                TypeError,
                "has no hyperparameter 'lr'; allowed are learning_rate, momentum",
            ),
            (
                lambda: portopt.NativeOptimizer(optax.sgd(1.0)).apply(W, W, portopt.OptimizerState(0, {}), lr=1),
                TypeError,
                "has no hyperparameter 'lr'; .* a function and its arguments, given instead, can have some changed",
            ),
            (lambda: portopt.get(torch.optim.SGD), ValueError, "could not interpret the optimizer identifier"),
            (lambda: portopt.get(optax.sgd), ValueError, "could not interpret the optimizer identifier"),
        ],
    )  # fmt: skip
    def test_say_what_was_given_and_what_is_allowed(
        self, call: Callable[[], Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            call()

    def test_wrong_arguments_are_refused_by_the_framework_at_construction(self) -> None:
        with pytest.raises(ValueError, match="Invalid learning rate"):
            portopt.NativeOptimizer(torch.optim.SGD, lr=-1.0)
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            portopt.NativeOptimizer(optax.sgd, lr=0.1)

    def test_nothing_is_changed_by_a_step_in_place_that_is_refused(self) -> None:
        params, state = [np.ones(2), np.ones(2)], SGD.init([W, W])
        with pytest.raises(ValueError, match="shape"):
            SGD.apply_(params, [W, np.ones(3)], state)
        assert bits(params) == bits([W, W])

    def test_a_framework_that_cannot_be_loaded_is_left_out_with_a_warning(self, tmp_path: Path) -> None:
        before = dict(frameworks())
        message = r"the native optimizers of 'broken' \(no_such_module:native\) cannot be"
        with further_entry_points(tmp_path, "portopt.natives") as add:
            add("broken", "no_such_module:native")
            with pytest.warns(RuntimeWarning, match=message):
                assert dict(frameworks()) == before


def test_no_framework_is_imported_to_find_out_what_something_is() -> None:
    code = (
        "import sys, portopt, contextlib\n"
        "from portopt.interchange.frameworks import find_framework, frameworks\n"
        "assert sorted(frameworks()) == ['keras', 'optax', 'tensorflow', 'torch'], frameworks()\n"
        "assert find_framework(object()) is None\n"
        "for name in ('keras', 'optax', 'tensorflow', 'tf_keras', 'torch', 'jax'):\n"
        "    assert name not in sys.modules, name\n"
    )
    run_python(code)


def test_every_framework_says_how_to_install_it() -> None:
    for framework in frameworks().values():
        assert get_framework(framework.name) is framework
        assert framework.install_command.startswith("pip install")
