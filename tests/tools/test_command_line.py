from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import exit_status
from support.entry_points import further_entry_points
from support.processes import run_python, side_by_side

import portopt
from portopt_tools import command_line, inventory
from portopt_tools.command_line import main

OUTPUT = pytest.CaptureFixture[str]
Provide = Callable[[str, str], None]


@pytest.fixture
def provide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provide]:
    with further_entry_points(tmp_path_factory.mktemp("installed")) as add:
        yield add


class TestHelp:
    def test_the_program_lists_its_commands(self, capsys: OUTPUT) -> None:
        assert exit_status(["--help"]) == 0
        text = capsys.readouterr().out
        assert all(command in text for command in ("backends", "compare", "conform"))

    def test_compare_describes_every_option_and_the_exit_status(self, capsys: OUTPUT) -> None:
        assert exit_status(["compare", "--help"]) == 0
        text = capsys.readouterr().out
        options = ["optimizer", "epochs", "batch-size", "dtype", "seed", "backend", "device", "against", "out", "quiet"]
        for option in options:
            assert re.search(rf"^  --{option}\b", text, re.MULTILINE), option
        assert all(rule.__name__ in text for rule in portopt.RULES)
        assert "exit status: 0 if all bits agree, 1 if not, 2" in text

    def test_version(self, capsys: OUTPUT) -> None:
        assert exit_status(["--version"]) == 0
        assert capsys.readouterr().out == f"portopt {portopt.__version__}\n"

    def test_no_command_is_unusable(self, capsys: OUTPUT) -> None:
        assert exit_status([]) == 2
        assert "COMMAND" in capsys.readouterr().err

    def test_the_module_is_the_command(self) -> None:
        [result] = side_by_side([[sys.executable, "-m", "portopt", "--version"]])
        assert (result.returncode, result.stdout) == (0, f"portopt {portopt.__version__}\n")

    def test_the_library_and_the_parser_import_nothing_that_only_a_command_needs(self) -> None:
        code = (
            "import sys, portopt, portopt_tools.command_line as c\n"
            "c.parser()\n"
            "print([m for m in ('rich', 'sklearn', 'matplotlib', 'torch', 'jax', 'cupy') if m in sys.modules])"
        )
        assert run_python(code) == "[]\n"


class TestUnusableArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--optimizer", "adm"], "unknown optimizer: 'adm'; did you mean 'Adam'?"),
            (
                ["--optimizer", '{"class_name": "Adam", "config": {"beta_1": 2}}'],
                r"beta_1 must be in \[0, 1\), but 2 was",
            ),
            (["--optimizer", '{"class_name": "Adam", "config": {"beta": 0.5}}'], "unknown argument 'beta'"),
            (["--optimizer", '{"class_name": "Adam"}'], "improper config format"),
            (["--optimizer", '{"class_name": '], "not valid JSON"),
            (["--optimizer", "missing.json"], "No such file.*missing.json"),
            (["--epochs", "0"], "--epochs: must be an integer of at least 1, but '0' was given"),
            (["--batch-size", "1.5"], "--batch-size: must be an integer of at least 1, but '1.5' was given"),
            (["--seed", "-1"], "--seed: must be an integer of at least 0, but '-1' was given"),
            (["--dtype", "int8"], "invalid choice: 'int8'"),
            (["--against", "nothing"], "invalid choice: 'nothing'"),
            pytest.param(
                ["--batch-size", "5000"],
                "a batch of 5000 images was asked for, but there are only 1437 to train on",
                marks=pytest.mark.needs("sklearn"),
            ),
            (["--backend", "nonesuch"], "no backend is named 'nonesuch'; installed are .*numpy"),
            (["--backend", "numpy", "--device", "cuda"], "'numpy' was named, but it has no device 'cuda'; it has cpu"),
            (["--device", "abacus"], "no backend has the device 'abacus': `portopt backends`"),
            (["--dtype", "bfloat16", "--backend", "array_api_strict"], "it has no bfloat16, only float32, float64"),
        ],
    )
    def test_exit_status_is_2_and_the_message_says_why(
        self, arguments: list[str], message: str, capsys: OUTPUT
    ) -> None:
        assert exit_status(["compare", "--epochs", "1", *arguments]) == 2
        captured = capsys.readouterr()
        assert re.search(message, captured.err)
        assert captured.out == ""

    def test_a_named_backend_without_its_library_is_an_error_with_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        assert exit_status(["compare", "--backend", "torch"]) == 2
        assert 'pip install "portopt[torch]"' in capsys.readouterr().err

    def test_against_a_library_that_is_missing_is_an_error_with_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        assert exit_status(["compare", "--backend", "numpy", "--against", "torch"]) == 2
        assert re.search(r'--against torch needs torch, but.*pip install "portopt\[torch\]"', capsys.readouterr().err)

    @pytest.mark.parametrize(
        ("module", "arguments", "command"),
        [
            ("sklearn", [], 'pip install "portopt[demo]"'),
            ("matplotlib.figure", ["--out", "report"], 'pip install "portopt[demo]"'),
            ("ml_dtypes", ["--dtype", "bfloat16"], "pip install ml_dtypes"),
        ],
    )
    def test_a_missing_package_of_the_demo_is_named_with_the_command_that_installs_it(
        self,
        module: str,
        arguments: list[str],
        command: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: OUTPUT,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, module, None)
        assert exit_status(["compare", "--backend", "numpy", *arguments]) == 2
        assert command in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    @pytest.mark.needs("matplotlib", "sklearn")
    def test_a_folder_that_cannot_be_written_is_reported_before_training(self, tmp_path: Path, capsys: OUTPUT) -> None:
        occupied = tmp_path / "occupied"
        occupied.write_text("a file")
        assert exit_status(["compare", "--out", str(occupied)]) == 2
        assert re.search("--out: no file can be written in .*occupied", capsys.readouterr().err)

    def test_two_providers_of_one_backend_are_an_error(self, provide: Provide, capsys: OUTPUT) -> None:
        provide("numpy", "portopt_torch:backend")
        assert exit_status(["compare", "--epochs", "1"]) == 2
        assert re.search("two packages provide the portopt backend 'numpy'", capsys.readouterr().err)

    @pytest.mark.needs("sklearn", "torch")
    def test_a_rule_without_a_counterpart_is_refused_by_against(self) -> None:
        class Own(portopt.Optimizer):
            def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
                return p - c.lr * g, {}

        from portopt_tools.compare.comparison import Settings, prepare

        with pytest.raises(ValueError, match=r"torch has no counterpart of Own\(.*\); --against torch works with SGD"):
            prepare(Settings(Own(), against=["torch"]))


class TestOptimizerOption:
    @pytest.mark.parametrize(
        "text",
        ["SGD", '{"class_name": "sgd", "config": {"momentum": 0.5}}', "config.json"],
        ids=["name", "JSON", "file"],
    )
    def test_takes(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("config.json").write_text('\n{"class_name": "SGD", "config": {"momentum": 0.5}}')
        parsed = command_line.parser().parse_args(["compare", "--optimizer", text])
        assert parsed.optimizer == portopt.SGD(momentum=0.0 if text == "SGD" else 0.5)

    def test_is_adam_by_default(self) -> None:
        assert command_line.parser().parse_args(["compare"]).optimizer == portopt.Adam()


class TestBackends:
    def test_lists_every_entry_point_as_json(self, capsys: OUTPUT) -> None:
        assert main(["backends", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        found = {entry["name"]: entry for entry in report["backends"]}
        assert set(found) >= {"cupy", "jax", "numpy", "torch"}
        assert found["numpy"]["version"] == np.__version__
        assert found["numpy"]["devices"] == {"cpu": None}
        assert found["numpy"]["dtypes"] == ["float16", "bfloat16", "float32", "float64"]
        assert found["numpy"]["modes"][:2] == ["apply", "apply_"]
        assert found["numpy"]["problem"] is None
        assert "ml_dtypes" in {helper["name"] for helper in report["helper_packages"]}

    def test_prints_a_table(self, capsys: OUTPUT) -> None:
        assert main(["backends"]) == 0
        text = capsys.readouterr().out
        assert re.search(rf"numpy +yes +{re.escape(np.__version__)} +cpu", text)
        assert re.search("ml_dtypes +yes", text)

    def test_a_missing_library_has_a_row_with_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        assert main(["backends"]) == 0
        text = capsys.readouterr().out
        assert re.search(r"^ *torch +no\b", text, re.MULTILINE)
        assert re.search(r'torch: not installed \(.*\)\n +pip install "portopt\[torch\]"', text)

    def test_a_missing_helper_package_has_the_command_that_installs_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
    ) -> None:
        absent = inventory.HelperPackage("no-such-package", "nothing", "pip install no-such-package")
        monkeypatch.setattr("portopt_tools.backends.HELPER_PACKAGES", [absent])
        assert main(["backends"]) == 0
        assert "no-such-package: not installed\n    pip install no-such-package" in capsys.readouterr().out

    def test_a_backend_that_cannot_be_loaded_is_a_row_with_the_error(self, provide: Provide, capsys: OUTPUT) -> None:
        provide("broken", "no_such_module:backend")
        assert main(["backends"]) == 0
        text = capsys.readouterr().out
        assert re.search(r"broken +error", text)
        assert "broken: the backend cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'" in text
        assert re.search(r"numpy +yes", text)

    @pytest.mark.parametrize(
        ("member", "problem"),
        [
            ("version", "the library cannot be loaded: OSError: libbroken.so"),
            ("devices", "the library does not work: OSError: libbroken.so"),
        ],
    )
    def test_a_library_that_fails_is_a_row_with_the_error(
        self,
        member: str,
        problem: str,
        provide: Provide,
        monkeypatch: pytest.MonkeyPatch,
        capsys: OUTPUT,
    ) -> None:
        def fail() -> Any:
            raise OSError("libbroken.so")

        backend = portopt.ArrayAPIBackend("array_api_strict", lambda: importlib.import_module("array_api_strict"))
        monkeypatch.setattr(backend, member, fail)
        module = types.ModuleType("broken_library")
        module.backend = backend  # type: ignore[attr-defined]  # made here
        monkeypatch.setitem(sys.modules, "broken_library", module)
        provide("broken", "broken_library:backend")
        assert main(["backends", "--json"]) == 0
        found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["backends"]}
        assert found["broken"]["problem"] == problem

    def test_two_providers_of_one_name_are_rows_with_the_error(self, provide: Provide, capsys: OUTPUT) -> None:
        provide("numpy", "portopt_torch:backend")
        assert main(["backends", "--json"]) == 0
        rows = [e for e in json.loads(capsys.readouterr().out)["backends"] if e["name"] == "numpy"]
        assert len(rows) == 2
        assert all("several packages provide a backend of this name" in row["problem"] for row in rows)


def test_conform_hands_its_arguments_to_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Sequence[str]] = []

    def suite(arguments: Sequence[str], *, prog: str) -> int:
        assert prog == "portopt conform"
        received.append(arguments)
        return 1

    module = types.ModuleType("portopt_conformance.__main__")
    module.main = suite  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "portopt_conformance.__main__", module)
    assert main(["conform", "--backend", "jax", "--help"]) == 1
    assert received == [["--backend", "jax", "--help"]]


def test_an_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT) -> None:
    def interrupt(settings: Any, watch: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("portopt_tools.compare.comparison.compare", interrupt)
    assert main(["compare"]) == 130
    assert capsys.readouterr().err == ""
