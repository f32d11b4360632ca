from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest
from support import absent, turns
from support.elsewhere import Elsewhere

import portopt

# TensorFlow and Triton, which some builds of torch bring, both hold LLVM, which ends the process if Triton's is loaded second, as
# torch.optim would.
with contextlib.suppress(ImportError):
    importlib.import_module("triton")

SELDOM = 10_000
"""Objects that are made between two collections of garbage, of which JAX has a callback that takes longer than they do."""

hypothesis.settings.register_profile("portopt", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("portopt")


@pytest.fixture(autouse=True)
def _restore_epsilon() -> Iterator[None]:
    before = portopt.epsilon()
    yield
    portopt.set_epsilon(before)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """Call cases in other processes, which are kept until the tests end."""
    with contextlib.closing(Elsewhere(tmp_path_factory.mktemp("keras"))) as processes:
        yield processes


@pytest.fixture(scope="session")
def kernel_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where all processes of the tests keep the CUDA C that a C++ compiler has compiled."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cuda_on_host"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture
def float64_scalars() -> Iterator[None]:
    """Let torch keep the scalars of its state in float64 too, instead of in the default dtype."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_configure() -> None:
    if problem := absent.check():
        raise pytest.UsageError(problem)
    # Importing and collecting makes next to no garbage, but much that each collection of garbage would walk through.
    gc.disable()


class LeftOut(pytest.Module):
    """A module of tests that needs a library which this run does without."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(_reason(absent.imports(self.path)), allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    # None leaves it to pytest.
    return LeftOut.from_parent(parent, path=module_path) if absent.ABSENT & absent.imports(module_path) else None


def pytest_report_header() -> str:
    return f"PORTOPT_TESTS_TURN={turns.TURN}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needed = {library for mark in item.iter_markers("needs") for library in mark.args}
        if absent.ABSENT & needed:
            item.add_marker(pytest.mark.skip(reason=_reason(needed)))
    if seed := os.environ.get("PORTOPT_TESTS_SEED"):
        # Modules stay together, so that what they share is made once.
        rng = random.Random(seed)
        modules = {item.path: rng.random() for item in items}
        items.sort(key=lambda item: (modules[item.path], rng.random()))


def pytest_collection_finish() -> None:
    # What thousands of tests are made of stays to the end.
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(SELDOM)


def pytest_unconfigure() -> None:
    # Some libraries report at the end of the process what was not freed.
    gc.unfreeze()


def _reason(needed: Iterable[str]) -> str:
    return f"NOT RUN: needs {', '.join(sorted(absent.ABSENT & set(needed)))}, which this run does without (support/absent.py)"
