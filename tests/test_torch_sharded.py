"""`TorchOptimizer` on parameters that two processes share: the same bits as in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_training


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Train in two processes; return what went wrong in each case."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, sharded_training.__file__, str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found: dict[str, str] = {}
    for rank, process in enumerate(processes):
        assert process.returncode == 0, printed[rank]
        for case, message in json.loads((folder / f"failures-{rank}.json").read_text()).items():
            found[case] = found.get(case, "") + f"\nprocess {rank}:\n{message}"
    return found


@pytest.mark.parametrize("case", sharded_training.cases(Path()))
def test_two_processes_give_the_bits_of_one(case: str, failures: dict[str, str]) -> None:
    assert case not in failures, failures[case]
