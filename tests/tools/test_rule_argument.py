"""Rules as a command line names them: names, `module:Class` and configs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import portopt
from portopt_tools import rule_argument
from portopt_tools.command_line import main

OUTPUT = pytest.CaptureFixture[str]

MODULE = """\
import portopt


class Lion(portopt.Optimizer):
    slots = ("m",)
    beta: float = portopt.hyperparameter(default=0.9)

    def update(self, xp, p, g, slots, c):
        return p - c.lr * xp.sign(slots.m), {"m": self.beta * slots.m + g}


class NeedsArguments(Lion):
    def __new__(cls, *, beta):
        return super().__new__(cls)


class Holder:
    Inner = Lion


made = Lion()
number = 3
"""
FOLDER_NAMES = ("own_rules", "broken_rules", "needing_rules", "own_package", "own_package.rules")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make the current folder one with modules of rules, which no path leads to."""
    (tmp_path / "own_rules.py").write_text(MODULE)
    (tmp_path / "broken_rules.py").write_text("raise RuntimeError('no such machine')\n")
    (tmp_path / "needing_rules.py").write_text("import no_such_library\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "rules.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in FOLDER_NAMES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("text", ["own_rules:Lion", "own_package.rules:Lion", "own_rules:Holder.Inner"])
def test_a_class_of_ones_own_is_imported_from_the_current_folder(text: str) -> None:
    found = rule_argument.rule_class(text)
    assert found.__name__ == "Lion"
    assert rule_argument.optimizer(text) == found()


def test_a_config_may_name_a_class_of_ones_own(folder: Path) -> None:
    config = {"class_name": "own_rules:Lion", "config": {"learning_rate": 0.25, "beta": 0.5}}
    (folder / "lion.json").write_text(json.dumps(config))
    for text in (json.dumps(config), "lion.json"):
        found = rule_argument.optimizer(text)
        assert type(found).__name__ == "Lion"
        assert found.get_config() == {**found.get_config(), "learning_rate": 0.25, "beta": 0.5}


@pytest.mark.parametrize("text", ["ADAM", "adam", "Adam"])
def test_a_name_is_one_of_portopts_rules_in_any_case(text: str) -> None:
    assert rule_argument.rule_class(text) is portopt.Adam
    assert rule_argument.optimizer(text) == portopt.Adam()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("own_rule:Lion", r"there is no module 'own_rule', installed or in .*; did you mean 'own_rules'\?"),
        ("own_package.rule:Lion", r"there is no module 'own_package.rule', .*; did you mean 'own_package.rules'\?"),
        ("nowhere.rules:Lion", "there is no module 'nowhere', installed or in "),
        ("needing_rules:Lion", "needing_rules cannot be imported: No module named 'no_such_library'"),
        ("broken_rules:Lion", "broken_rules cannot be imported: RuntimeError: no such machine"),
        ("own_rules:Lyon", r"own_rules has no 'Lyon'; did you mean 'Lion'\?; its rules are Lion, NeedsArguments"),
        ("json:Lion", "json has no 'Lion'; it defines no rule"),
        ("own_rules:Holder", "own_rules:Holder must be a subclass of portopt.Optimizer, but is <class 'own_rules.Holder'>"),
        ("own_rules:number", "own_rules:number must be a subclass of portopt.Optimizer, but is 3"),
        ("own_rules:made", "must be a subclass of portopt.Optimizer, but is an object of Lion: name its class"),
        ("portopt:Optimizer", "portopt:Optimizer must be a subclass of portopt.Optimizer, but is <class"),
        (":Lion", "':Lion' must be MODULE:CLASS, such as mypackage.rules:Signum"),
        ("own_rules:", "'own_rules:' must be MODULE:CLASS"),
        ("own_rules.Lion", "unknown optimizer: 'own_rules.Lion'; .*or a class of your own as MODULE:CLASS, with a colon"),
        ("adm", r"unknown optimizer: 'adm'; did you mean 'Adam'\?"),
        ("NativeOptimizer", "'NativeOptimizer' is no rule of portopt, but the optimizer of another framework"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused_with_the_reason(text: str, message: str) -> None:
    for read in (rule_argument.rule_class, rule_argument.optimizer):
        with pytest.raises((ValueError, TypeError), match=message):
            read(text)


def test_a_class_that_needs_arguments_is_refused_with_the_config_that_gives_them() -> None:
    with pytest.raises(TypeError, match=r"own_rules:NeedsArguments cannot be made without arguments \(.*'beta'\)") as e:
        rule_argument.optimizer("own_rules:NeedsArguments")
    assert '{"class_name": "own_rules:NeedsArguments", "config": {' in str(e.value)


def test_a_wrong_argument_in_a_config_is_named() -> None:
    with pytest.raises(TypeError, match=r"Lion .*'gamma'"):
        rule_argument.optimizer('{"class_name": "own_rules:Lion", "config": {"gamma": 1}}')


def test_configs_elsewhere_import_nothing() -> None:
    with pytest.raises(ValueError, match="unknown optimizer: 'own_rules:Lion'"):
        portopt.get({"class_name": "own_rules:Lion", "config": {}})
    assert "own_rules" not in sys.modules


def test_show_prints_the_program_of_a_class_of_ones_own(capsys: OUTPUT) -> None:
    assert main(["show", "own_rules:Lion"]) == 0
    assert capsys.readouterr().out == f"{rule_argument.optimizer('own_rules:Lion').program()}\n"


def test_a_wrong_name_ends_the_command_with_status_2(capsys: OUTPUT) -> None:
    with pytest.raises(SystemExit) as end:
        main(["show", "own_rules:Lyon"])
    assert end.value.code == 2
    assert re.search(r"portopt show: error: argument RULE: own_rules has no 'Lyon'", capsys.readouterr().err)


def test_the_installed_command_finds_the_current_folder(folder: Path) -> None:
    # As the installed script does: the first entry of the path is the script's folder.
    code = "import sys; sys.path[0] = '/'; from portopt_tools.command_line import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "show", "own_package.rules:Lion"], cwd=folder, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("program Lion\n")


@pytest.mark.needs("sklearn")
def test_compare_trains_with_a_class_of_ones_own(capsys: OUTPUT) -> None:
    assert main(["compare", "--optimizer", "own_rules:Lion", "--epochs", "1", "--backend", "numpy", "--quiet"]) == 0
    assert "runs have the same bits" in capsys.readouterr().out
