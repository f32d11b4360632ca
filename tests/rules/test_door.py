"""A rule comes in by a file of its own and a line in the registry: done in a copy of the tree, as CONTRIBUTING.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("src", "backends", "conformance", "tests", "scripts", "docs", "pyproject.toml")
NAME = "Drift"

RULE = '''
"""Drift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.dialects import Dialect, per_dialect
from portopt.hyperparameters import alias, dialect_option, hyperparameter, option
from portopt.rules.dialect_rule import DialectRule


class Drift(DialectRule):
    """Drift: a rule of two dialects, with slots, a scalar and options of names that no other rule has.

    - optax: `z = pull * z + g`; `p - lr * (z + a) / total`
    - keras3: `z = pull * z + g`; `p - lr * (z + a)`

    Then `a = z`.

    Args:
        learning_rate: in [0, inf), or a schedule.
        pull: in (0, 1).
        keep: keras3: whether `a` stays zero.
        dialect, weight_decay: see `DialectRule`.

    Example:
        >>> import portopt
        >>> portopt.Drift(0.5).dialect
        'optax'
    """

    slots = ("z", "a")
    scalar_slots = {"total": 1.0}  # noqa: RUF012  # declared as a class variable

    dialect: Dialect = dialect_option(default="optax", others=("keras3",))
    learning_rate: Any = hyperparameter(default=per_dialect(optax=0.02, keras3=0.01), at_least=0, kw_only=False)
    pull: float = hyperparameter(default=0.5, above=0, below=1)
    keep: bool | None = option(default=per_dialect(keras3=False))
    pull_rate: Any = alias("pull", dialect="optax", default=None, kw_only=True)

    def coefficients(self, t: Any, total: Any) -> Mapping[str, Any]:
        return {"lr": self.learning_rate_at(t), "total": total + self.pull, "weight": total + self.pull}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> tuple[Any, Mapping[str, Any]]:
        p, g = self.prepare(p, g, c.lr)
        z = self.pull * slots.z + g
        if self.dialect == "optax":
            return p - c.lr * (z + slots.a) / c.weight, {"z": z, "a": z}
        return p - c.lr * (z + slots.a), {"z": z, "a": xp.zeros_like(z) if self.keep else z}
'''

WALKING = (
    "rules", "core/test_hyperparameters.py", "core/test_configuration.py", "core/test_in_place.py", "core/test_schedules.py",
    "program/test_tracing.py", "kernels/test_repeated_steps.py", "tools/test_show.py",
    "tools/test_bench.py", "tools/test_compare.py",
)  # fmt: skip
"""Tests that walk the registry, of each wing."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree with a further rule."""
    copy = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, copy / name)
    (copy / "src/portopt/rules" / f"{NAME.lower()}.py").write_text(RULE.lstrip(), encoding="utf-8")
    registry = copy / "src/portopt/rules/registry.py"
    text, end = registry.read_text(encoding="utf-8"), "# isort: on\n"
    assert text.count(end) == 1
    line = f"from portopt.rules.{NAME.lower()} import {NAME} as {NAME}\n"
    registry.write_text(text.replace(end, line + end), encoding="utf-8")
    return copy


def run(tree: Path, *command: str) -> str:
    folders = os.pathsep.join(str(tree / name) for name in ("src", "backends", "conformance", "tests"))
    environment = {**os.environ, "PYTHONPATH": folders, "PYTEST_ADDOPTS": ""}
    result = subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-6000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def test_a_rule_needs_its_own_file_and_one_line(tree: Path) -> None:
    """Generators first, since tests hold the page and the vectors against them."""
    vectors = tree / "conformance/portopt_conformance/vectors"
    before = {path.name: path.read_bytes() for path in vectors.iterdir()}

    run(tree, "scripts/make_dialect_tables.py")
    run(tree, "-m", "portopt_conformance.vectors", "--rule", NAME)

    assert f"## {NAME}\n" in (tree / "docs/dialects.md").read_text(encoding="utf-8")
    after = {path.name: path.read_bytes() for path in vectors.iterdir()}
    assert after.keys() - before.keys() == {f"{NAME}.txt"}
    assert {name for name in before if before[name] != after[name]} == {"SHA256SUMS"}
    assert "0 failed" in run(tree, "-m", "portopt_conformance", "--quick", "--backend", "numpy", "--rule", NAME)
    walked = run(
        tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", f"{NAME} or page_of_dialects",
        *(f"tests/{name}" for name in WALKING),
    )  # fmt: skip
    assert int(walked.rpartition(" passed")[0].split()[-1]) > 50


def test_the_further_rule_is_there_for_users(tree: Path) -> None:
    program = f"""
import numpy as np, portopt
assert portopt.__file__.startswith({str(tree)!r})
opt = portopt.get({NAME.lower()!r})
assert type(opt) is portopt.{NAME} is portopt.RULES[-1]
assert portopt.deserialize(portopt.serialize(opt)) == opt
p, state = opt.apply(np.ones(2), np.ones(2), opt.init(np.ones(2)))
portopt.save("run.safetensors", opt, p, state)
again, q, at = portopt.load("run.safetensors")
assert again == opt and at.step == 1 and at.slots["total"] == state.slots["total"] == 1.5
"""
    run(tree, "-c", program)
