"""`scripts/measure_house.py` on a house of a few files that was made up, with one fault of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import measure_house
import pytest
from house import rule_tables
from support.places import ROOT

import portopt

FUNCTION = """\
def {name}({argument}):
    {value} = 0
    while {value} < {argument}:
        {value} += 1
        if {value} == 3:
            {value} += 2
        elif {value} == 5:
            {value} += 4
        else:
            {value} += 6
        {value} *= 2
    return {value}
"""

FILES = {
    "src/portopt/__init__.py": "from portopt.rules import Adam as Adam\n",
    "src/portopt/optimizer.py": "from portopt.kernels.host import run\n\n\ndef _step():\n    import portopt.trees\n",
    "src/portopt/trees.py": "from portopt.optimizer import _step\n",
    "src/portopt/scalars.py": (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from portopt.optimizer import Optimizer\n"
    ),
    "src/portopt/rules/__init__.py": "".join(
        f"from portopt.rules.{name.lower()} import {name} as {name}\n" for name in ("Adam", "Lion", "SGD")
    ),
    **{f"src/portopt/rules/{name}.py": "import portopt.optimizer\n" for name in ("adam", "lion", "sgd")},
    "src/portopt/kernels/host.py": (
        "from .writer import write\n\n\nclass Run:\n    def __init__(self):\n        self._array = 1\n"
    ),
    "src/portopt/kernels/writer.py": (
        'import importlib\n\n\ndef write(run):\n    importlib.import_module("portopt.kernels.host")\n    return run._array\n'
    ),
    "backends/portopt_one/__init__.py": "# first\n" + FUNCTION.format(name="count", argument="n", value="i"),
    "backends/portopt_two/__init__.py": "import portopt.scalars\n\n"
    + FUNCTION.format(name="f", argument="x", value="y"),
    "tests/test_some.py": 'RULES = {"SGD": 1, "Adam": [2]}, ["Lion"]\n',
    "tests/test_one.py": "import portopt\n\nportopt.Adam()\n",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def measured(house: Path) -> dict[str, Any]:
    return measure_house.measure(house)


def test_rooms_are_folders_and_modules_at_the_top(measured: dict[str, Any]) -> None:
    parts = ["", ".kernels", ".optimizer", ".rules", ".scalars", ".trees"]
    assert measured["rooms"] == [f"portopt{part}" for part in parts]


def test_floors_are_the_longest_chain_with_a_circle_as_one(measured: dict[str, Any]) -> None:
    assert measured["floors of rooms"] == ["portopt", "portopt.rules", "portopt.optimizer", "portopt.kernels"]
    assert measured["floors of modules"] == [
        "portopt",
        "portopt.rules",
        "portopt.rules.adam",
        "portopt.optimizer",
        "portopt.kernels.host",
    ]


def test_circles_are_told_apart_by_when_the_imports_happen(house: Path) -> None:
    measured = measure_house.measure(house)
    circles = [["portopt.kernels.host", "portopt.kernels.writer"], ["portopt.optimizer", "portopt.trees"]]
    assert measured["circles of modules"] == circles
    assert measured["circles of rooms"] == circles[1:]
    assert measured["circles at import"] == []
    (house / "src/portopt/trees.py").write_text("import portopt.optimizer\nimport portopt.scalars\n", encoding="utf-8")
    with_types = measure_house.measure(house)["circles with types"]
    assert with_types == [["portopt.optimizer", "portopt.scalars", "portopt.trees"], circles[0]]


def test_an_import_upward_closes_a_circle(house: Path) -> None:
    (house / "src/portopt/kernels/host.py").write_text("import portopt.optimizer\n", encoding="utf-8")
    measured = measure_house.measure(house)
    assert measured["circles at import"] == [["portopt.kernels.host", "portopt.optimizer"]]


def test_private_names_of_other_modules_are_found(measured: dict[str, Any]) -> None:
    assert measured["private names"] == [
        "portopt.kernels.writer:6 _array",
        "portopt.trees:1 portopt.optimizer._step",
    ]


def test_stretches_that_differ_in_names_are_duplicates(house: Path, measured: dict[str, Any]) -> None:
    assert measured["duplicates"] == ["12 lines: backends/portopt_one/__init__.py:2 backends/portopt_two/__init__.py:3"]
    path = house / "backends/portopt_two/__init__.py"
    path.write_text(path.read_text(encoding="utf-8").replace("*= 2", "*= 3"), encoding="utf-8")
    assert measure_house.measure(house)["duplicates"] == []


def test_files_and_tables_that_name_rules_are_found(measured: dict[str, Any]) -> None:
    assert measured["files with rules"] == ["tests/test_some.py:1 Adam, Lion, SGD"]
    assert measured["files with every rule"] == measured["files with rules"]
    assert measured["those outside of tests"] == []
    assert measured["tables of rules"] == ["tests/test_some.py:1 Adam, Lion, SGD"]


def test_table_and_json_have_every_number(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_house.main(["--root", str(house)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in measure_house.MEANINGS)
    assert measure_house.main(["--root", str(house), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == measure_house.MEANINGS.keys()


def test_rules_of_this_house_are_those_of_the_registry() -> None:
    assert rule_tables.rules(ROOT) == {rule.__name__ for rule in portopt.RULES}
