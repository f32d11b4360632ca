from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

import portopt

hypothesis.settings.register_profile("portopt", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("portopt")


@pytest.fixture(autouse=True)
def _restore_epsilon() -> Iterator[None]:
    before = portopt.epsilon()
    yield
    portopt.set_epsilon(before)
