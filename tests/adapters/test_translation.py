"""Runs that begin in torch or optax and go on in portopt, and back; Keras is in `native_on_keras.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optree
import pytest
import torch
from support.dialect_settings import APART, gradients, parameters, settings
from support.turns import in_turn

import portopt
from portopt.interchange.frameworks import get_framework

TOLERANCE = 1e-12
"""That of the dialects, relative to the largest element; states and hyperparameters themselves are equal."""
RULES = {rule.__name__: rule for rule in portopt.RULES}
BEGIN, MIDDLE, END = 0, 8, 16


def tree(arrays: list[Any]) -> dict[str, Any]:
    """Return arrays in a tree that is flattened in another order than that in which it was made."""
    first, second, third = arrays
    return {"z": first, "a": [second, {"b": third}]}


def in_order(params: Any) -> list[Any]:
    return [params["z"], params["a"][0], params["a"][1]["b"]]


def each_setting(
    dialect: str, exclude: Callable[[str, Any], bool] = lambda rule, arguments: False, *, turns: int = 1
) -> pytest.MarkDecorator:
    """Parametrize with the settings of the rules that are translated; one of so many in turns where each is compiled."""
    framework = get_framework(dialect)
    translated = {
        rule for rule in RULES if any(c.translated for c in framework.vocabulary.correspondences(RULES[rule]))
    }
    every = [s for s in settings(dialect) if s[0] in translated and s[0] not in APART and not exclude(s[0], s[2])]
    chosen = in_turn(every, 0, turns)
    return pytest.mark.parametrize(("rule", "number", "arguments"), chosen, ids=[f"{r}-{n}" for r, n, _ in chosen])


def assert_close(actual: Any, expected: Any) -> None:
    for a, b in zip(optree.tree_leaves(actual), optree.tree_leaves(expected), strict=True):
        ours, theirs = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (a, b))
        assert np.max(np.abs(ours - theirs)) <= TOLERANCE * np.max(np.abs(theirs))


def assert_translated(ours: Any, opt: Any) -> None:
    """Compare with the optimizer that was translated: another rule only has the framework's name, as AdamW for Adam."""
    if type(ours) is type(opt):
        assert ours == opt
    else:
        names = type(ours).defaults(ours.dialect)
        assert {n: getattr(ours, n) for n in names} == {n: getattr(opt, n) for n in names}


def steps(opt: portopt.Optimizer, params: Any, state: Any, convert: Callable[[Any], Any], first: int, last: int) -> Any:
    with portopt.interpreted():
        for gradient in list(gradients())[first:last]:
            params, state = opt.apply(params, convert(tree(gradient)), state)
    return params, state


def tensors(arrays: Any) -> Any:
    return optree.tree_map(lambda x: torch.tensor(np.asarray(x)), arrays)


def torch_steps(native: Any, params: Any, first: int, last: int) -> None:
    for gradient in list(gradients())[first:last]:
        for p, g in zip(in_order(params), gradient, strict=True):
            p.grad = torch.tensor(g)
        native.step()


def copied(params: Any) -> Any:
    return optree.tree_map(lambda p: p.detach().clone(), params)


@pytest.mark.usefixtures("float64_scalars")
class TestTorch:
    @each_setting("torch")
    def test_a_run_goes_on_in_the_other_library(self, rule: str, number: int, arguments: dict[str, Any]) -> None:
        opt = RULES[rule](dialect="torch", **arguments)
        params = tree([torch.nn.Parameter(torch.tensor(p)) for p in parameters()])
        native = portopt.to_native(opt, opt.init(params), "torch", params)
        torch_steps(native, params, BEGIN, MIDDLE)

        ours, state = portopt.from_native(native, params=params)
        assert_translated(ours, opt)
        assert state.step == (MIDDLE if rule != "SGD" else min(len(ours.slots), 1))
        mine, state = steps(ours, copied(params), state, tensors, MIDDLE, END)

        back = optree.tree_map(torch.nn.Parameter, copied(mine))
        again = portopt.to_native(ours, state, "torch", back)
        assert type(again) is type(native)
        torch_steps(native, params, MIDDLE, END)
        assert_close(mine, params)
        torch_steps(again, back, END, END + 4)
        torch_steps(native, params, END, END + 4)
        assert_close(back, params)

    def test_adamw_is_a_rule_with_decoupled_weight_decay(self) -> None:
        params = [torch.nn.Parameter(torch.ones(2))]
        opt, state = portopt.from_native(torch.optim.AdamW(params, lr=0.5))
        assert isinstance(opt, portopt.Adam)
        assert (opt.decoupled_weight_decay, opt.weight_decay, opt.lr, opt.dialect) == (True, 0.01, 0.5, "torch")
        assert type(portopt.to_native(opt, state, "torch", params)) is torch.optim.AdamW
        adam = portopt.Adam(0.5, dialect="torch", weight_decay=0.01, decoupled_weight_decay=True)
        assert type(portopt.to_native(adam, adam.init(params), "torch", params)) is torch.optim.AdamW

    def test_the_slots_are_copies(self) -> None:
        w = torch.nn.Parameter(torch.ones(2))
        native = torch.optim.SGD([w], momentum=0.5)
        w.grad = torch.ones(2)
        native.step()
        opt, state = portopt.from_native(native, params=w)
        native.step()
        assert state.slots["moment"].tolist() == [1, 1]
        back = portopt.to_native(opt, state, "torch", w)
        back.step()
        assert state.slots["moment"].tolist() == [1, 1]

    def test_a_native_optimizer_and_its_state_are_translated(self) -> None:
        native, w = portopt.NativeOptimizer(torch.optim.Adagrad, lr=0.5), np.ones(2)
        _, state = native.apply(w, w, native.init(w))
        opt, ours = portopt.from_native(native, state, params=w)
        assert opt == portopt.Adagrad(0.5, dialect="torch")
        assert (ours.step, ours.slots["accumulator"].tolist()) == (1, [1, 1])

    def test_a_hyperparameter_can_be_replaced(self) -> None:
        w = torch.nn.Parameter(torch.ones(2))
        assert portopt.from_native(torch.optim.Adam([w]), learning_rate=0.5)[0] == portopt.Adam(0.5, dialect="torch")


class TestOptax:
    @pytest.fixture(autouse=True)
    def _float64(self) -> Iterator[None]:
        with jax.enable_x64(True):
            yield

    def optax_steps(self, transformation: Any, params: Any, state: Any, first: int, last: int) -> Any:
        for gradient in list(gradients())[first:last]:
            updates, state = transformation.update(arrays(tree(gradient)), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    @each_setting(
        "optax",
        lambda rule, arguments: (
            # Those of contrib, and those with slots of other shapes, are in modules of their own.
            rule in ("Adafactor", "DAdaptAdam", "DoG", "Prodigy", "SM3")
            or bool(arguments.get("amsgrad") and arguments.get("weight_decay"))
        ),
        turns=3,
    )
    def test_a_run_goes_on_in_the_other_library(self, rule: str, number: int, arguments: dict[str, Any]) -> None:
        opt = RULES[rule](dialect="optax", **arguments)
        params = arrays(tree(parameters()))
        transformation, native = portopt.to_native(opt, opt.init(params), "optax", params)
        expected = transformation.init(params)
        structures: list[Any] = [jax.tree.structure(native), jax.tree.structure(expected)]
        assert structures[0] == structures[1]
        assert [x.tolist() for x in jax.tree.leaves(native)] == [x.tolist() for x in jax.tree.leaves(expected)]
        params, native = self.optax_steps(transformation, params, native, BEGIN, MIDDLE)

        # What the user of optax has is a function and arguments; the last of those that can be meant has them all.
        ours, state = portopt.from_native(_as_native(opt), native, params=params)
        assert_translated(ours, opt)
        mine, state = steps(ours, params, state, arrays, MIDDLE, END)
        again, back = portopt.to_native(ours, state, "optax", mine)
        params, native = self.optax_steps(transformation, params, native, MIDDLE, END)
        assert_close(mine, params)
        assert_close(self.optax_steps(again, mine, back, END, END + 4)[0],
                     self.optax_steps(transformation, params, native, END, END + 4)[0])  # fmt: skip

    @pytest.mark.parametrize(
        ("opt", "factory", "arguments"),
        [
            (
                portopt.Prodigy(dialect="optax", beta_1=0.5, d0=0.01, beta_3=0.75),
                optax.contrib.prodigy,
                {"betas": (0.5, 0.999), "estim_lr0": 0.01, "beta3": 0.75},
            ),
            (
                portopt.DAdaptAdam(0.5, dialect="optax", beta_2=0.75, d0=0.01),
                optax.contrib.dadapt_adamw,
                {"learning_rate": 0.5, "betas": (0.9, 0.75), "estim_lr0": 0.01},
            ),
        ],
        ids=["prodigy", "dadapt_adamw"],
    )
    def test_what_optax_has_in_contrib_goes_on_too(self, opt: Any, factory: Any, arguments: dict[str, Any]) -> None:
        native = portopt.NativeOptimizer(factory, **arguments)
        params = arrays(tree(parameters()))
        transformation, state = portopt.to_native(opt, opt.init(params), "optax", params)
        first = factory(**arguments).init(params)
        assert [x.tolist() for x in jax.tree.leaves(state)] == [x.tolist() for x in jax.tree.leaves(first)]
        params, state = self.optax_steps(transformation, params, state, BEGIN, MIDDLE)
        ours, found = portopt.from_native(native, state, params=params)
        assert ours == opt
        mine, _ = steps(ours, params, found, arrays, MIDDLE, END)
        assert_close(mine, self.optax_steps(transformation, params, state, MIDDLE, END)[0])

    def test_the_state_of_a_native_optimizer_is_translated_too(self) -> None:
        native, w = portopt.NativeOptimizer(optax.adam, learning_rate=0.5), np.ones(2)
        _, state = native.apply(w, w, native.init(w))
        opt, ours = portopt.from_native(native, state)
        assert opt == portopt.Adam(0.5, dialect="optax")
        assert (ours.step, list(ours.slots)) == (1, ["m", "v"])

    def test_a_schedule_of_optax_needs_one_of_portopt(self) -> None:
        native = portopt.NativeOptimizer(optax.adam, learning_rate=optax.cosine_decay_schedule(0.1, 5))
        state = native.init(jnp.ones(2))
        with pytest.raises(ValueError, match="no counterpart of learning_rate=<function"):
            portopt.from_native(native, state)
        assert portopt.from_native(native, state, learning_rate=0.5)[0].learning_rate == 0.5


def arrays(params: Any) -> Any:
    return optree.tree_map(jnp.asarray, params)


def _as_native(opt: Any) -> portopt.NativeOptimizer:
    """Return the function of optax and the arguments that an optimizer is in optax."""
    names = {
        "beta_1": "b1",
        "beta_2": "b2",
        "epsilon": "eps",
        "initial_accumulator_value": "initial_scale",
        "rho": "decay",
    }
    if not isinstance(opt, portopt.RMSprop):
        names = {**names, "initial_accumulator_value": "initial_accumulator_value", "rho": "rho"}
    config = {name: value for name, value in opt.get_config().items() if name != "dialect"}
    name = type(opt).__name__.lower()
    if config.pop("amsgrad", False):
        name = "amsgrad"
        config.pop("nesterov")
    decay = config.pop("weight_decay", 0.0)
    has_decay = "weight_decay" in inspect.signature(getattr(optax, name)).parameters
    if has_decay or decay:
        name += "" if has_decay else "w"
        config["weight_decay"] = decay
    if name == "adamax":
        config.pop("eps_root", None)
    if name == "amsgrad" or name.startswith("adamax"):
        config.pop("weight_decay", None) if name == "amsgrad" else None
    return portopt.NativeOptimizer(getattr(optax, name), **{names.get(n, n): v for n, v in config.items()})


W = torch.nn.Parameter(torch.ones(2))
PARTIAL = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
MOVING = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
UNEQUAL = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]


def partly_stepped() -> Any:
    native = torch.optim.Adam(PARTIAL)
    PARTIAL[0].grad = torch.ones(2)
    native.step()
    return native


def partly_moving() -> Any:
    native = torch.optim.SGD(MOVING, momentum=0.5)
    MOVING[0].grad = torch.ones(2)
    native.step()
    return native


def unequally_stepped() -> Any:
    native = torch.optim.Adam(UNEQUAL)
    for p in UNEQUAL:
        p.grad = torch.ones(2)
    native.step()
    UNEQUAL[0].grad = None
    native.step()
    return native


ADAM = portopt.Adam(dialect="torch")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: portopt.from_native(torch.optim.RAdam([W])), ValueError, "portopt has no counterpart of RAdam; transl"),
        (
            lambda: portopt.from_native(optax.adam(0.1), ()),
            ValueError,
            "an optax transformation does not know its hyperparameters",
        ),
        (
            lambda: portopt.from_native(portopt.NativeOptimizer(optax.adam(0.1)), ()),
            ValueError,
            "an optax transformation does not know its hyperparameters",
        ),
        (
            lambda: portopt.from_native(portopt.NativeOptimizer(optax.adam, learning_rate=0.1, mu_dtype="bfloat16"), ()),
            ValueError,
            "portopt has no counterpart of mu_dtype='bfloat16' of adam",
        ),
        (
            lambda: portopt.from_native(portopt.NativeOptimizer(optax.adam, learning_rate=0.1), ()),
            ValueError,
            "the optimizer has no state yet, so the parameters are needed: give params",
        ),
        (
            lambda: portopt.from_native(portopt.NativeOptimizer(optax.adam, learning_rate=0.1), optax.sgd(0.1, 0.9).init(1.0)),
            ValueError,
            "the state of adam has nothing that corresponds to m, v",
        ),
        (
            lambda: portopt.from_native(portopt.NativeOptimizer(optax.adam, learning_rate=0.1), {}),
            TypeError,
            "the state that goes with optax.adam, .* is optax's, a tuple, or an OptimizerState, but dict",
        ),
        (
            lambda: portopt.from_native(portopt.NativeOptimizer(torch.optim.Adam), {}),
            TypeError,
            "of torch is the OptimizerState that its init or apply returned, but dict",
        ),
        (lambda: portopt.from_native(3), TypeError, "from_native takes a torch.optim or Keras .* but builtins.int was given"),
        (
            lambda: portopt.from_native(torch.optim.Adam([W]), params=[torch.ones(2)]),
            ValueError,
            "params must have the 1 parameters of the optimizer as its leaves, .* but it has 0 of them among 1",
        ),
        (
            lambda: portopt.from_native(partly_stepped()),
            ValueError,
            "1 of the 2 parameters of this Adam have made no step yet, but others have",
        ),
        (lambda: portopt.from_native(partly_moving()), ValueError, "SGD has no momentum_buffer for parameter 1, which has made"),
        (lambda: portopt.from_native(unequally_stepped()), ValueError, r"the numbers of steps differ .* \(1, 2\)"),
        (
            lambda: portopt.to_native(portopt.Adam(), ADAM.init(W), "torch", W),
            ValueError,
            "torch has no counterpart of Adam in the dialect 'keras2', .*; in the dialect 'torch' it has",
        ),
        (
            lambda: portopt.to_native(portopt.Adam(dialect="torch", clipnorm=1), ADAM.init(W), "torch", W),
            ValueError,
            "Adam has no counterpart of clipnorm=1.0 of Adam",
        ),
        (
            lambda: portopt.to_native(portopt.Adam(lambda t: 0.1, dialect="torch"), ADAM.init(W), "torch", W),
            ValueError,
            "torch has no counterpart of the schedule",
        ),
        (
            lambda: portopt.to_native(portopt.Adam(dialect="optax", amsgrad=True, weight_decay=0.1), ADAM.init(W), "optax", W),
            ValueError,
            "amsgrad has no counterpart of weight_decay=0.1 of Adam",
        ),
        (lambda: portopt.to_native(ADAM, ADAM.init(W), "caffe", W), ValueError, "no framework is named 'caffe'"),
        (
            lambda: portopt.to_native(ADAM, portopt.OptimizerState(1, ADAM.init([W]).slots), "torch", W),
            ValueError,
            "params must have the structure of the slots",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_weights_of_keras_2_are_read_with_their_config() -> None:
    opt, w = portopt.Adam(0.5), np.ones(2)
    w, state = opt.apply(w, w, opt.init(w))
    again, restored = portopt.from_native(portopt.serialize(opt), opt.get_weights(state), params=w)
    assert again == opt
    assert restored.step == 1
    assert restored.slots["m"].tolist() == state.slots["m"].tolist()


def test_a_users_rule_has_no_counterpart() -> None:
    class Own(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - c.lr * g, {}

    with pytest.raises(ValueError, match="torch has no counterpart of Own; translated are SGD"):
        portopt.to_native(Own(), Own().init(W), "torch", W)
