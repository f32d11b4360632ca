"""`TorchOptimizer` on parameters that two processes share: the same bits as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import sharded_training
from support.elsewhere import Elsewhere


@pytest.mark.parametrize("case", sharded_training.cases(Path()))
def test_two_processes_give_the_bits_of_one(case: str, elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.call_in_each([{"RANK": "0"}, {"RANK": "1"}], "sharded_training", "run", case, tmp_path)
