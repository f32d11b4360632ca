from __future__ import annotations

import contextlib
from collections.abc import Iterator

import hypothesis
import pytest

import portopt

# TensorFlow and triton both hold LLVM, which ends the process if triton's is loaded second, as torch.optim would.
with contextlib.suppress(ImportError):
    import triton  # type: ignore[import-untyped]  # noqa: F401  # it has no stubs; it only has to be loaded

hypothesis.settings.register_profile("portopt", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("portopt")


@pytest.fixture(autouse=True)
def _restore_epsilon() -> Iterator[None]:
    before = portopt.epsilon()
    yield
    portopt.set_epsilon(before)
