"""`pytest conformance --backend jax --device cpu`: the suite's cases as tests."""

from __future__ import annotations

import os

import pytest

from portopt import Backend
from portopt_conformance import LAYERS, Case, UnusableDeviceError, cases, cases_of, known_failures
from portopt_conformance.__main__ import tested_rule
from portopt_conformance.find import UnavailableBackendError, find
from portopt_conformance.known_failures import KnownFailure

_backend = pytest.StashKey[Backend]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("portopt conformance")
    group.addoption("--backend", default="numpy", help="name of a backend, or package.module:attribute")
    group.addoption("--device", default=None, help="device to run on (default: the first usable one)")
    group.addoption("--quick", action="store_true", help="fewer configurations and modes, no runs of 100 steps")
    group.addoption("--full", action="store_true", help="every rule in every mode, where otherwise they take turns")
    group.addoption("--turn", type=int, default=0, help="whose turn it is where they take turns (default: 0)")
    group.addoption("--rule", action="append", default=[], help="a rule's name or module:Class: run only its cases")
    group.addoption("--layer", type=int, action="append", choices=sorted(LAYERS), help="run only this layer")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        config.stash[_backend] = find(config.getoption("--backend"))
    except (UnavailableBackendError, TypeError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    layers = tuple(config.getoption("--layer") or LAYERS)
    extent = {name: config.getoption(f"--{name}") for name in ("quick", "full", "turn", "device")}
    try:
        rules = [tested_rule(text) for text in config.getoption("--rule")]
        backend = config.stash[_backend]
        if rules:
            found = list(cases_of(rules, backend, layers=layers, **extent))
        else:
            found = list(cases(backend, layers=layers, **extent))
    except (UnusableDeviceError, TypeError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    known = known_failures.load(None, config.stash[_backend].name)
    metafunc.parametrize("case", [_parameter(case, known) for case in found])


def _parameter(case: Case, known: list[KnownFailure]) -> object:
    line = next((line for line in known if line.matches(case.id)), None)
    marks = [] if line is None else [pytest.mark.xfail(reason=f"{line.reason} ({line.link})", strict=True)]
    return pytest.param(case, id=case.id, marks=marks)
