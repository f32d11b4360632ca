"""torch's list of optimizers and arguments, `optim_db`, through `TorchOptimizer`.

Importing torch's test utilities changes settings of torch for good, as does this module.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch

import portopt
import portopt_torch
from portopt.interchange.matching import translations
from portopt_torch import TorchOptimizer
from portopt_torch._translation import VOCABULARY

if importlib.util.find_spec("expecttest") is None:
    # torch's utilities derive a class of theirs from it, which is not used here.
    import unittest

    stub: Any = ModuleType("expecttest")
    stub.TestCase = unittest.TestCase
    stub.assert_expected_inline = None
    sys.modules["expecttest"] = stub
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

RULES = translations(VOCABULARY)
TOLERANCE = 1e-12


def ours(name: str, params: Any, **arguments: Any) -> TorchOptimizer:
    """Make what torch's suite takes for the class: that name's rule in a `TorchOptimizer`."""
    rate = arguments.pop("lr", None)
    arguments = {key: value for key, value in arguments.items() if key not in VOCABULARY.ignored or value}
    rule = RULES[name].rule(dialect="torch", **{**defaults(name), **arguments})
    return TorchOptimizer(params, rule, lr=rate)


def defaults(name: str) -> dict[str, Any]:
    return dict(RULES[name].fixed)


def theirs(name: str, params: Any, **arguments: Any) -> Any:
    return getattr(torch.optim, name)(params, **arguments)


def parameters(seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,), (), (2, 1, 3))]


def run(optimizer: Any, params: Any, steps: Iterable[int], schedulers: Any = ()) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        for scheduler in schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(1.0)
            else:
                scheduler.step()


def assert_close(first: list[Any], second: list[Any]) -> None:
    torch.testing.assert_close(first, second, rtol=TOLERANCE, atol=TOLERANCE)


def assert_equal(first: list[Any], second: list[Any]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def trajectory(name: str, arguments: Callable[[], dict[str, Any]]) -> None:
    """The parameters of torch's own, after ten steps."""
    first, second = parameters(), parameters()
    run(ours(name, first, **arguments()), first, range(10))
    run(theirs(name, second, **arguments()), second, range(10))
    assert_close(first, second)


def groups(name: str, arguments: Callable[[], dict[str, Any]]) -> None:
    """The same with two groups, one of which has values of its own."""

    def split(params: list[Any]) -> list[dict[str, Any]]:
        return [{"params": params[:2], "lr": 0.02, "weight_decay": 0.25}, {"params": params[2:], "maximize": True}]

    first, second = parameters(), parameters()
    run(ours(name, split(first), **arguments()), first, range(10))
    run(theirs(name, split(second), **arguments()), second, range(10))
    assert_close(first, second)


def missing_gradients(name: str, arguments: Callable[[], dict[str, Any]]) -> None:
    """The same if a parameter has no gradient at first."""
    results = []
    for make in (ours, theirs):
        params = parameters()
        optimizer = make(name, params, **arguments())
        run(optimizer, params[1:], range(3))
        run(optimizer, params, range(3, 8))
        results.append(params)
    assert_close(*results)


def state_dict(name: str, arguments: Callable[[], dict[str, Any]]) -> None:
    """The same bits after the state went through a state_dict, deepcopy and pickle."""
    first, second = parameters(), parameters()
    optimizer = ours(name, first, **arguments())
    run(optimizer, first, range(5))
    for p, q in zip(second, first, strict=True):
        p.data.copy_(q.data)
    loaded = ours(name, second, **arguments())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    third, copied = copy.deepcopy((first, optimizer))
    fourth, pickled = pickle.loads(pickle.dumps((first, optimizer)))
    for params, one in ((first, optimizer), (second, loaded), (third, copied), (fourth, pickled)):
        run(one, params, range(5, 10))
        assert_equal(params, first)


def torchs_state_dict(name: str, arguments: Callable[[], dict[str, Any]]) -> None:
    """A state_dict of torch's own is loaded, and the run goes on as torch's."""
    first, second = parameters(), parameters()
    native = theirs(name, first, **arguments())
    run(native, first, range(5))
    for p, q in zip(second, first, strict=True):
        p.data.copy_(q.data)
    loaded = ours(name, second)
    loaded.load_state_dict(copy.deepcopy(native.state_dict()))
    run(native, first, range(5, 10))
    run(loaded, second, range(5, 10))
    assert_close(first, second)


def there_and_back(name: str, arguments: Callable[[], dict[str, Any]]) -> None:
    """A run of torch's own goes on in portopt, and again in torch."""
    first, second = parameters(), parameters()
    native = theirs(name, first, **arguments())
    run(native, first, range(3))
    converted = portopt_torch.from_torch(native)
    run(converted, first, range(3, 6))
    run(converted.to_torch(), first, range(6, 9))
    run(theirs(name, second, **arguments()), second, range(9))
    assert_close(first, second)


CHECKS = (trajectory, groups, missing_gradients, state_dict, torchs_state_dict, there_and_back)


def schedulers(info: Any) -> Iterator[tuple[str, str]]:
    """Yield what came of each list of schedulers: torch's values and parameters."""
    for i, makers in enumerate(info.scheduler_inputs):

        def check(makers: Any = makers) -> None:
            results = []
            for make in (ours, theirs):
                params = parameters()
                optimizer = make(info.name, params, lr=0.01)
                run(optimizer, params, range(8), [maker(optimizer) for maker in makers])
                results.append([*params, torch.tensor(optimizer.param_groups[0]["lr"])])
            assert_close(*results)

        yield str(i), outcome(check)


def error_inputs(info: Any) -> Iterator[tuple[str, str]]:
    """Yield what came of each input that torch refuses: an error of the same type, at the same time."""
    for one in info.optim_error_inputs_func("cpu", torch.float64):
        given = one.optimizer_error_input

        def check(one: Any = one, given: Any = given) -> None:
            params = parameters() if given.params is None else given.params
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    optimizer = ours(info.name, params, **given.kwargs)
                    assert one.error_on is not OptimizerErrorEnum.CONSTRUCTION_ERROR, "constructed"
                    run(optimizer, params, range(1))
                except AssertionError:
                    raise
                except one.error_type:
                    return
            raise AssertionError("no error")

        yield given.desc, outcome(check)


WHOLE = {"schedulers": schedulers, "error_inputs": error_inputs}
"""Checks that go through lists of torch's own."""


def arguments_of(info: Any, number: int) -> dict[str, Any]:
    # Made anew each time: schedulers write into tensors.
    return dict(info.optim_inputs_func("cpu")[number].kwargs)


def outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return "passed"


def names() -> list[str]:
    """Return the names of all optimizers that torch tests."""
    return [info.name for info in optim_db]


def outcomes(name: str, check: str) -> dict[str, str]:
    """Return what came of a check for each list of arguments that torch has for an optimizer."""
    torch.set_default_dtype(torch.float64)
    [info] = [info for info in optim_db if info.name == name]
    with portopt.interpreted():
        if check in WHOLE:
            return dict(WHOLE[check](info))
        [function] = [each for each in CHECKS if each.__name__ == check]
        return {
            f"{i}: {given.desc}": outcome(functools.partial(function, name, functools.partial(arguments_of, info, i)))
            for i, given in enumerate(info.optim_inputs_func("cpu"))
        }
