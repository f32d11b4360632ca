"""Runs of torch and optax that go on in portopt, and back, whose slots have other shapes than their parameters, or lack some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from support.bits import Array, ordinary

import portopt
import portopt_torch

pytestmark = pytest.mark.needs("jax", "optax", "torch")

SHAPES = {"matrix": (4, 3), "stack": (2, 3, 5), "vector": (5,)}
TOLERANCE = 1e-12


def arrays(seed: int, names: Any = SHAPES) -> dict[str, Array]:
    return {name: ordinary(SHAPES[name], "float64", seed + i) for i, name in enumerate(names)}


def after(opt: portopt.Optimizer, params: Any, state: Any, make: Any, seeds: range) -> Any:
    with portopt.interpreted():
        for seed in seeds:
            grads = {name: make(g) for name, g in arrays(100 * seed, params).items()}
            params, state = opt.apply(params, grads, state)
    return params, state


def assert_close(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    for name, value in expected.items():
        ours, theirs = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (actual[name], value))
        assert np.max(np.abs(ours - theirs)) <= tolerance * np.max(np.abs(theirs)), name


def tensors(seed: int, names: Any = SHAPES) -> dict[str, Any]:
    return {name: torch.nn.Parameter(torch.tensor(a)) for name, a in arrays(seed, names).items()}


def torch_steps(native: Any, params: dict[str, Any], seeds: range) -> None:
    for seed in seeds:
        for name, g in arrays(100 * seed, params).items():
            params[name].grad = torch.tensor(g)
        native.step()


def copied(params: Any) -> Any:
    return {name: p.detach().clone() for name, p in params.items()}


def mapped(convert: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: None if x is None else convert(x), dict(tree), is_leaf=lambda x: x is None)


class TestTorch:
    def test_adafactor_goes_on(self) -> None:
        params = tensors(0)
        native = torch.optim.Adafactor(list(params.values()), lr=0.05, eps=(1e-3, 0.01), d=1.5, weight_decay=0.1)
        torch_steps(native, params, range(1, 4))
        opt: Any
        opt, state = portopt.from_native(native, params=params)
        assert (opt.epsilon_1, opt.epsilon_2, opt.clip_threshold, state.step) == (1e-3, 0.01, 1.5, 3)
        held = {name: [n for n, leaf in slot.items() if leaf is not None] for name, slot in state.slots.items()}
        assert held == {"v": ["vector"], "row": ["matrix", "stack"], "column": ["matrix", "stack"]}
        assert tuple(state.slots["column"]["stack"].shape) == (2, 5)
        mine, state = after(opt, copied(params), state, torch.tensor, range(4, 7))
        back = {name: torch.nn.Parameter(p) for name, p in copied(mine).items()}
        again = portopt.to_native(opt, state, "torch", back)
        for p, q in zip(params.values(), back.values(), strict=True):
            assert {n: x.shape for n, x in again.state[q].items()} == {n: x.shape for n, x in native.state[p].items()}
        torch_steps(native, params, range(4, 7))
        assert_close(mine, params)
        torch_steps(native, params, range(7, 9))
        torch_steps(again, back, range(7, 9))
        assert_close(back, params)

    def test_adafactor_goes_on_in_torch_optimizer_and_back(self) -> None:
        params = tensors(0)
        native = torch.optim.Adafactor(list(params.values()), lr=0.05)
        torch_steps(native, params, range(1, 4))
        mine = {name: torch.nn.Parameter(p) for name, p in copied(params).items()}
        own = torch.optim.Adafactor(list(mine.values()), lr=0.05)
        own.load_state_dict(native.state_dict())
        optimizer = portopt_torch.from_torch(own)
        loaded = portopt_torch.TorchOptimizer(mine.values(), portopt.Adafactor(0.05))
        loaded.load_state_dict(native.state_dict())
        assert loaded.state[mine["matrix"]]["row"].tolist() == optimizer.state[mine["matrix"]]["row"].tolist()
        torch_steps(optimizer, mine, range(4, 7))
        torch_steps(native, params, range(4, 7))
        assert_close(mine, params)
        back = optimizer.to_torch()
        assert {n: x.shape for n, x in back.state[mine["stack"]].items()} == {
            "step": (),
            "row_var": (2, 3, 1),
            "col_var": (2, 1, 5),
        }
        torch_steps(back, mine, range(7, 9))
        torch_steps(native, params, range(7, 9))
        assert_close(mine, params)

    def test_muon_goes_on_up_to_the_bfloat16_of_torch(self) -> None:
        params = tensors(0, ["matrix"])
        native = torch.optim.Muon(list(params.values()), lr=0.05, momentum=0.8, ns_coefficients=(1.875, -1.25, 0.375))
        torch_steps(native, params, range(1, 4))
        opt, state = portopt.from_native(native, params=params)
        assert opt == portopt.Muon(0.05, momentum=0.8, ns_a=1.875, ns_b=-1.25, ns_c=0.375)
        momentum = native.state[params["matrix"]]["momentum_buffer"].clone()
        assert state.slots["m"]["matrix"].tolist() == momentum.tolist()
        mine, after_steps = after(opt, copied(params), state, torch.tensor, range(4, 7))
        torch_steps(native, params, range(4, 7))
        # Singular values of a matrix that was made orthogonal in bfloat16 are off by some of its roundings.
        assert_close(mine, params, 3 * 0.05 * 2**-5)
        assert_close(after_steps.slots["m"], {"matrix": native.state[params["matrix"]]["momentum_buffer"]})
        again = portopt.to_native(opt, state, "torch", {"matrix": torch.nn.Parameter(torch.ones(4, 3))})
        assert again.param_groups[0]["ns_coefficients"] == (1.875, -1.25, 0.375)
        (entry,) = again.state.values()
        assert entry["momentum_buffer"].tolist() == momentum.tolist()
        own = portopt_torch.from_torch(native)
        assert own.to_torch().param_groups[0]["adjust_lr_fn"] == "original"

    def test_what_torch_has_not_is_named(self) -> None:
        vector = torch.nn.Parameter(torch.ones(2))
        opt = portopt.Muon()
        with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
            portopt.to_native(opt, opt.init(vector), "torch", vector)
        with pytest.raises(ValueError, match="Muon has no counterpart of matrices='OIHW' of Muon"):
            portopt.to_native(portopt.Muon(matrices="OIHW"), opt.init(vector), "torch", vector)
        native, w = portopt.NativeOptimizer(torch.optim.Adafactor, lr=0.1), np.ones((2, 3))
        _, state = native.apply(w, w, native.init(w))
        with pytest.raises(
            ValueError, match="which slots of Adafactor a parameter has depends on its shape: give params"
        ):
            portopt.from_native(native, state)
        with pytest.raises(ValueError, match=r"only one of the two keeps 'row' \('row_var' there\) of it"):
            portopt.from_native(native, state, params=np.ones(6))
        with pytest.raises(
            ValueError, match=r"an array of shape \(2, 1\) of parameter 0, but the slot 'row' .* has \(3,\)"
        ):
            portopt.from_native(native, state, params=np.ones((3, 2)))
        assert portopt.from_native(native, state, params=w)[1].slots["row"].shape == (2,)


MATRIX = ("matrix", "vector")
OPTAX: dict[str, tuple[portopt.Optimizer, Any, dict[str, Any], tuple[str, ...]]] = {
    "adafactor": (
        portopt.Adafactor(0.05, dialect="optax", min_dim_size_to_factor=4, clip_threshold=1.5),
        optax.adafactor,
        {"learning_rate": 0.05, "min_dim_size_to_factor": 4, "clipping_threshold": 1.5},
        tuple(SHAPES),
    ),
    "adafactor with momentum": (
        portopt.Adafactor(0.05, dialect="optax", min_dim_size_to_factor=3, momentum=0.5, weight_decay=0.01),
        optax.adafactor,
        {"learning_rate": 0.05, "min_dim_size_to_factor": 3, "momentum": 0.5, "weight_decay_rate": 0.01, "dtype_momentum": None},
        MATRIX,
    ),
    "sm3": (portopt.SM3(0.05, beta_1=0.5), optax.sm3, {"learning_rate": 0.05, "momentum": 0.5}, tuple(SHAPES)),
    "muon": (
        portopt.Muon(0.05, dialect="optax", momentum=0.8, ns_steps=1, consistent_rms=0.2, adam_beta_1=0.5),
        optax.contrib.muon,
        {"learning_rate": 0.05, "beta": 0.8, "ns_steps": 1, "consistent_rms": 0.2, "adam_b1": 0.5},
        MATRIX,
    ),
    "dog": (
        portopt.DoG(0.5, initial_distance=0.1, weight_decay=0.1),
        optax.contrib.dog,
        {"learning_rate": 0.5, "init_step": ("distance", 0.1), "weight_decay": 0.1},
        MATRIX,
    ),
    "dog with a rate": (
        portopt.DoG(initial_rate=0.1),
        optax.contrib.dog,
        {"init_step": ("learning_rate", 0.1)},
        MATRIX,
    ),
    "dog by the parameters": (
        portopt.DoG(relative_distance=0.01),
        optax.contrib.dog,
        {"init_step": ("heuristic", 0.01)},
        MATRIX,
    ),
    "schedule-free adamw": (
        portopt.ScheduleFree(
            portopt.AdamW(0.05, beta_1=0.0, beta_2=0.9, epsilon=1e-3, weight_decay=0.1, dialect="optax"),
            0.8,
            weight_lr_power=1.5,
        ),
        optax.contrib.schedule_free_adamw,
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1, "weight_lr_power": 1.5},
        MATRIX,
    ),
    "schedule-free sgd": (
        portopt.ScheduleFree(portopt.SGD(0.05, dialect="torch")),
        optax.contrib.schedule_free_sgd,
        {"learning_rate": 0.05},
        MATRIX,
    ),
    "schedule-free sgd with decay": (
        portopt.ScheduleFree(portopt.SGD(0.05, weight_decay=0.1, dialect="torch"), 0.75),
        optax.contrib.schedule_free_sgd,
        {"learning_rate": 0.05, "b1": 0.75, "weight_decay": 0.1},
        MATRIX,
    ),
    "signum": (portopt.Signum(0.05, beta=0.5), optax.signum, {"learning_rate": 0.05, "beta": 0.5}, MATRIX),
}  # fmt: skip


class TestOptax:
    @pytest.fixture(autouse=True)
    def _float64(self) -> Iterator[None]:
        with jax.enable_x64(True):
            yield

    def steps(self, transformation: Any, params: Any, state: Any, seeds: range) -> Any:
        for seed in seeds:
            grads = {name: jnp.asarray(g) for name, g in arrays(100 * seed, params).items()}
            updates, state = transformation.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    @pytest.mark.parametrize("name", OPTAX)
    def test_a_run_goes_on_in_the_other_library(self, name: str) -> None:
        opt, factory, arguments, names = OPTAX[name]
        transformation, native = factory(**arguments), portopt.NativeOptimizer(factory, **arguments)
        first = {n: jnp.asarray(a) for n, a in arrays(0, names).items()}
        start = transformation.init(first)
        found, state = portopt.from_native(native, start, params=first)
        assert (found, state.step) == (opt, 0)
        _, begun = portopt.to_native(opt, opt.init(first), "optax", first)
        structures: list[Any] = list(map(jax.tree.structure, (begun, start)))
        assert structures[0] == structures[1]
        assert [x.tolist() for x in jax.tree.leaves(begun)] == [x.tolist() for x in jax.tree.leaves(start)]

        params, middle = self.steps(transformation, first, start, range(1, 4))
        found, state = portopt.from_native(native, middle, params=params)
        # On NumPy's arrays nothing has to be compiled; scalars of the state are of one library.
        make: Any = jnp.asarray if opt.scalar_slots else np.asarray
        given = mapped(make, params), state._replace(slots=mapped(make, state.slots))
        mine, after_steps = after(found, *given, make, range(4, 7))
        mine, after_steps = (
            mapped(jnp.asarray, mine),
            after_steps._replace(slots=mapped(jnp.asarray, after_steps.slots)),
        )
        again, back = portopt.to_native(found, after_steps, "optax", mine)
        structures = list(map(jax.tree.structure, (back, middle)))
        assert structures[0] == structures[1]
        params, end = self.steps(transformation, params, middle, range(4, 7))
        # optax takes the weights of Adafactor's means, and where nothing says otherwise its momentum, in float32.
        tolerance = 1e-6 if factory is optax.adafactor else TOLERANCE
        assert_close(mine, params, tolerance)
        assert_close(
            self.steps(again, mine, back, range(7, 9))[0],
            self.steps(transformation, params, end, range(7, 9))[0],
            tolerance,
        )

    def test_a_native_optimizer_of_optax_keeps_masked_states_and_lists_as_trees(self) -> None:
        w = {"matrix": np.ones((4, 3)), "vector": np.ones(5)}
        for factory, name, held in (
            (optax.sm3, "0.mu.1", ["matrix"]),
            (optax.contrib.muon, "inner_states.adam.inner_state.0.nu", ["vector"]),
        ):
            native = portopt.NativeOptimizer(factory, learning_rate=0.1)
            params, state = native.apply(w, w, native.init(w))
            assert [n for n, leaf in state.slots[name].items() if leaf is not None] == held
            params, state = native.apply(params, w, state)
            expected, theirs = factory(0.1), jax.tree.map(jnp.asarray, w)
            state_there = expected.init(theirs)
            for _ in range(2):
                updates, state_there = expected.update(jax.tree.map(jnp.asarray, w), state_there, theirs)
                theirs = optax.apply_updates(theirs, updates)
            for n in w:
                assert params[n].tobytes() == np.asarray(theirs[n]).tobytes()

    def test_a_rule_around_sgd_of_optax_becomes_that_without_decay(self) -> None:
        w = jnp.ones(2)
        opt = portopt.ScheduleFree(portopt.SGD(0.5, dialect="optax"))
        with portopt.interpreted():
            params, state = opt.apply({"w": w}, {"w": w}, opt.init({"w": w}))
        _, native = portopt.to_native(opt, state, "optax", params)
        begun: list[Any] = [jax.tree.structure(s) for s in (native, optax.contrib.schedule_free_sgd(0.5).init(params))]
        assert begun[0] == begun[1]
        assert (int(native.step_count), float(native.max_lr), float(native.weight_sum)) == (2, 0.5, 0.25)
        again, back = portopt.from_native(
            portopt.NativeOptimizer(optax.contrib.schedule_free_sgd, learning_rate=0.5), native, params=params
        )
        assert again == portopt.ScheduleFree(portopt.SGD(0.5, dialect="torch"))
        assert back.step == 1
        assert {n: back.slots[n].tolist() for n in opt.scalar_slots} == {
            n: state.slots[n].tolist() for n in opt.scalar_slots
        }

    def test_what_schedule_free_of_optax_has_not_is_named(self) -> None:
        params = {"w": jnp.ones(2)}
        for opt, message in (
            (
                portopt.ScheduleFree(),
                (
                    r"no counterpart of ScheduleFree with inner=AdamW\(.*\); it has contrib\.schedule_free_adamw with "
                    r"inner=AdamW\(.*dialect='optax'.*\), of which learning_rate, beta_2, epsilon, weight_decay may differ;"
                ),
            ),
            (portopt.ScheduleFree(portopt.AdamW(dialect="optax")), r"no counterpart .* inner=AdamW\(.*beta_1=0\.9"),
            (
                portopt.ScheduleFree(portopt.AdamW(beta_1=0.0, dialect="optax"), r=1.0),
                r"no counterpart of r=1\.0 of Sch",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                portopt.to_native(opt, opt.init(params), "optax", params)
        factory = optax.contrib.schedule_free_adamw
        native = portopt.NativeOptimizer(factory)
        with pytest.raises(ValueError, match=r"does not keep inner\.m, which no step reads, .*: give params"):
            portopt.from_native(native, native.init(params))
        native = portopt.NativeOptimizer(factory, warmup_steps=5)
        with pytest.raises(ValueError, match=r"no counterpart of warmup_steps=5 of contrib\.schedule_free_adamw"):
            portopt.from_native(native, native.init(params), params=params)
        native = portopt.NativeOptimizer(factory, learning_rate=optax.cosine_decay_schedule(0.1, 5))
        with pytest.raises(ValueError, match="no counterpart of learning_rate=<function"):
            portopt.from_native(native, native.init(params), params=params)
        assert portopt.from_native(native, native.init(params), params=params, lr=0.5)[0].learning_rate == 0.5

    def test_what_optax_means_otherwise_is_named(self) -> None:
        params = {"matrix": jnp.ones((4, 3))}

        def translated(factory: Any, **arguments: Any) -> Any:
            native = portopt.NativeOptimizer(factory, **arguments)
            return portopt.from_native(native, factory(**arguments).init(params), params=params)

        with pytest.raises(ValueError, match="no counterpart of clipping_threshold=None of adafactor"):
            translated(optax.adafactor, clipping_threshold=None)
        with pytest.raises(ValueError, match=r"no counterpart of preconditioning='aol' of contrib\.muon"):
            translated(optax.contrib.muon, learning_rate=0.1, preconditioning="aol")
        with pytest.raises(ValueError, match=r"sm3 has no counterpart of beta_2=0\.5 of SM3"):
            portopt.to_native(portopt.SM3(beta_2=0.5), portopt.SM3().init(params), "optax", params)
        assert translated(optax.adafactor)[0] == portopt.Adafactor(dialect="optax")
