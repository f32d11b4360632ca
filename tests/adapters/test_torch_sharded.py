"""`TorchOptimizer` on parameters that two processes share: the same bits as in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cases import sharded_training
from support.processes import import_path, side_by_side


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Train in two processes; return what went wrong in each case."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "cases.sharded_training", str(folder)]
    found: dict[str, str] = {}
    for rank, process in enumerate(side_by_side([[*command, str(rank)] for rank in (0, 1)], [import_path()] * 2)):
        assert process.returncode == 0, process.stdout + process.stderr
        for case, message in json.loads((folder / f"failures-{rank}.json").read_text()).items():
            found[case] = found.get(case, "") + f"\nprocess {rank}:\n{message}"
    return found


@pytest.mark.parametrize("case", sharded_training.cases(Path()))
def test_two_processes_give_the_bits_of_one(case: str, failures: dict[str, str]) -> None:
    assert case not in failures, failures[case]
