from __future__ import annotations

import hashlib
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.entry_points import further_entry_points
from support.turns import in_turn

import portopt
from portopt.backend import Backend, Mode
from portopt.program.primitives import Primitives
from portopt_numpy import NumpyBackend
from portopt_tools.command_line import main
from portopt_tools.compare import bits, comparison, digits, reports
from portopt_tools.compare.bits import Trajectory, canonical, digest, first_difference
from portopt_tools.compare.comparison import Settings, Verdict, compare
from portopt_tools.compare.runners import BackendRunner
from portopt_tools.compare.training import train
from portopt_tools.output import write_files

pytestmark = pytest.mark.needs("jax", "matplotlib", "optax", "sklearn", "torch")

OUTPUT = pytest.CaptureFixture[str]
Provide = Callable[[Backend], None]
SHORT = ["--epochs", "2", "--batch-size", "256"]
STEPS = 10
WRONG_STEP, WRONG_INDEX = 7, (4, 3)


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provide]:
    """Make a backend known under its name, as an installed package would."""
    with further_entry_points(tmp_path_factory.mktemp("installed")) as add:

        def install(backend: Backend) -> None:
            module = types.ModuleType(f"provided_{backend.name}")
            module.backend = backend  # type: ignore[attr-defined]  # made here
            monkeypatch.setitem(sys.modules, module.__name__, module)
            add(backend.name, f"{module.__name__}:backend")

        yield install


class Wrong(NumpyBackend):
    """NumPy, found under the name `wrong`, in one mode."""

    def __init__(self, step: Callable[[portopt.Optimizer], Any] = lambda optimizer: optimizer.apply) -> None:
        super().__init__()
        self.name = "wrong"
        self.modes: Mapping[str, Mode] = {"wrong": Mode("wrong", step)}


def one_ulp_off_once(optimizer: portopt.Optimizer) -> Any:
    """Return a step that is right but for one element, whose last bit it changes at one step."""

    def step(params: Any, grads: Any, state: portopt.OptimizerState) -> Any:
        params, state = optimizer.apply(params, grads, state)
        if state.step == WRONG_STEP:
            params["output"]["kernel"].view(np.uint32)[WRONG_INDEX] ^= 1
        return params, state

    return step


def raises_at_third_step(optimizer: portopt.Optimizer) -> Any:
    def step(params: Any, grads: Any, state: portopt.OptimizerState) -> Any:
        if state.step == 2:
            raise RuntimeError("out of [memory]")
        return optimizer.apply(params, grads, state)

    return step


class WrongRoot(Wrong):
    """Roots one ulp too large."""

    def primitives(self, compute_dtype: str) -> Primitives:
        def sqrt(x: Any) -> Any:
            return np.nextafter(np.sqrt(x), np.asarray(np.inf, x.dtype))

        return Primitives(self.xp, self.dtype(compute_dtype), compute_dtype, overrides={"sqrt": sqrt})

    def update(self, works: Any, *, in_place: bool) -> Any:
        # The interpreter itself, whatever faster way NumpyBackend has.
        return portopt.ArrayAPIBackend.update(self, works, in_place=in_place)


class TestVerdict:
    def test_numpy_and_torch_are_identical_in_every_mode(self, capsys: OUTPUT) -> None:
        assert main(["compare", *SHORT, "--backend", "numpy", "--backend", "torch"]) == 0
        captured = capsys.readouterr()
        table = re.findall(r"^(numpy|torch) +cpu +(\w+) .* ([0-9a-f]{8}) +(\w+)", captured.out, re.MULTILINE)
        rows = {(backend, mode): verdict for backend, mode, _, verdict in table}
        assert rows.pop(("numpy", "apply")) == "reference"
        assert set(rows) >= {("numpy", "apply_"), ("torch", "apply"), ("torch", "apply_")}
        assert set(rows.values()) == {"identical"}
        assert len({sha for _, _, sha, _ in table}) == 1
        assert f"All {len(table)} runs have the same bits after each of {STEPS} steps." in captured.out
        assert f"{STEPS}/{STEPS}" in captured.err, "progress belongs on the standard error"

    @pytest.mark.parametrize(
        ("dtype", "names"),
        [("float16", ["numpy", "torch"]), ("bfloat16", ["numpy", "torch"]), ("float64", ["numpy", "jax"])],
    )
    def test_other_dtypes_are_identical(self, dtype: str, names: list[str]) -> None:
        result = compare(Settings(portopt.Nadam(), 1, 1437, dtype, backends=names))
        assert result.runs[0].verdict is Verdict.REFERENCE
        assert {run.verdict for run in result.runs[1:]} == {Verdict.IDENTICAL}
        assert [run.runner.backend for run in result.runs][:: len(result.runs) - 1] == names

    def test_a_library_without_a_backend_of_its_own_is_named(self) -> None:
        result = compare(Settings(portopt.SGD(), 1, 1437, backends=["numpy", "array_api_strict"]))
        assert result.identical
        assert "array_api_strict" in {run.runner.backend for run in result.runs}

    def test_one_wrong_bit_is_found_with_step_parameter_and_both_patterns(
        self, provide: Provide, capsys: OUTPUT, tmp_path: Path
    ) -> None:
        provide(Wrong(one_ulp_off_once))
        command = ["compare", *SHORT, "--backend", "numpy", "--backend", "wrong", "--out", str(tmp_path)]
        assert main(command) == 1
        text = capsys.readouterr().out
        assert f"differs from step {WRONG_STEP} on" in text
        found = re.search(
            r"wrong wrong differs from numpy apply first at "
            rf'step {WRONG_STEP}, params\["output"\]\["kernel"\]\[4, 3\]: (0x[0-9a-f]{{8}}) \((\S+)\) against '
            r"(0x[0-9a-f]{8}) \((\S+)\); 1 of 320 elements differ there",
            text,
        )
        assert found is not None
        word, value, reference_word, reference_value = found.groups()
        assert int(word, 16) ^ int(reference_word, 16) == 1
        for bits_, number in ((word, value), (reference_word, reference_value)):
            assert np.asarray(int(bits_, 16), np.uint32).view(np.float32) == float(number)
        report = json.loads((tmp_path / "report.json").read_text())
        difference = next(run for run in report["runs"] if run["backend"] == "wrong")["first_difference"]
        assert (difference["step"], difference["parameter"]) == (WRONG_STEP, '["output"]["kernel"]')
        assert (difference["index"], difference["bits"]) == (list(WRONG_INDEX), word)
        assert report["identical"] is False

    def test_a_wrong_root_is_found_at_the_first_step(self, provide: Provide) -> None:
        provide(WrongRoot())
        result = compare(Settings(portopt.Adam(), 1, 256, backends=["numpy", "wrong"]))
        wrong = result.runs[-1]
        assert not result.identical
        assert wrong.verdict is Verdict.DIFFERENT
        assert wrong.measurements is not None
        assert wrong.measurements.difference is not None
        assert wrong.measurements.difference.step == 1

    def test_a_backend_that_knows_another_ones_arrays_takes_its_own_steps(self, provide: Provide) -> None:
        used: list[str] = []

        class Watched(Wrong):
            def update(self, works: Any, *, in_place: bool) -> Any:
                used.append(self.name)
                return super().update(works, in_place=in_place)

        provide(Watched())
        assert compare(Settings(portopt.SGD(), 1, 256, backends=["numpy", "wrong"])).identical
        assert used == ["wrong"] * 5

    def test_a_run_that_fails_is_reported_and_the_others_go_on(
        self, provide: Provide, capsys: OUTPUT, tmp_path: Path
    ) -> None:
        provide(Wrong(raises_at_third_step))
        command = ["compare", *SHORT, "--backend", "wrong", "--backend", "numpy", "--out", str(tmp_path)]
        assert main(command) == 1
        text = capsys.readouterr().out
        assert "wrong wrong failed: RuntimeError: out of [memory]" in text
        assert re.search(r"1 of \d runs failed\.", text)
        runs = json.loads((tmp_path / "report.json").read_text())["runs"]
        assert runs[0]["error"] == "RuntimeError: out of [memory]"
        assert [run["verdict"] for run in runs[:3]] == ["failed", "reference", "identical"]
        assert "out of [memory]" in (tmp_path / "report.html").read_text()

    def test_one_run_alone_is_nothing_to_compare(self, provide: Provide, capsys: OUTPUT) -> None:
        provide(Wrong())
        assert main(["compare", "--backend", "wrong"]) == 2
        assert "nothing to compare: only wrong wrong would run; name another backend" in capsys.readouterr().err

    def test_parameters_that_become_nan_everywhere_are_identical(self) -> None:
        result = compare(Settings(portopt.SGD(1e30), 1, 256, backends=["numpy", "torch"]))
        assert result.identical
        assert result.runs[0].measurements is not None
        assert np.isnan(result.runs[0].measurements.losses[-1])
        json.dumps(reports.as_json(result, "portopt compare"), allow_nan=False)


class TestDefaults:
    def test_all_usable_backends_run_numpy_first_and_the_rest_is_named(self, provide: Provide) -> None:
        class Absent(Wrong):
            def version(self) -> str:
                raise ImportError("no wrong library")

        provide(Absent())
        _, runners, not_run = comparison.prepare(Settings(portopt.Adam()))
        names = [runner.backend for runner in runners]
        assert names[0] == "numpy"
        assert set(names) >= {"jax", "numpy", "torch"}
        left_out = {entry.backend: entry.reason for entry in not_run}
        assert left_out["wrong"].startswith("it cannot be used: not installed (no wrong library)")

    def test_modes_that_need_all_gradients_beforehand_are_left_out(self) -> None:
        _, runners, _ = comparison.prepare(Settings(portopt.Adam(), backends=["jax"]))
        assert {"eager", "jit"} <= {runner.mode for runner in runners}
        assert "scan" not in {runner.mode for runner in runners}

    def test_the_model_learns(self) -> None:
        problem, runners, _ = comparison.prepare(Settings(portopt.Adam(), backends=["numpy"]))
        in_place = next(runner for runner in runners if runner.mode == "apply_")
        found = train(problem, in_place)
        assert found.losses[-1] < 0.2 < 2 < found.losses[0]
        assert found.accuracies[-1] > 0.95
        assert len(found.losses) == 31

    def test_the_seed_decides_data_parameters_and_batches(self) -> None:
        problems = [
            comparison.prepare(Settings(portopt.Adam(), seed=seed, backends=["numpy"]))[0] for seed in (3, 3, 4)
        ]
        for facts in (
            [problem.digits.test_images.tobytes() for problem in problems],
            [digest(problem.initial) for problem in problems],
            [problem.batches.tobytes() for problem in problems],
        ):
            assert facts[0] == facts[1] != facts[2]


def counterparts(framework: str) -> Mapping[type[portopt.Optimizer], list[str]]:
    """Return the names in a framework that rules state as what they are compared with; those with none are left out."""
    found = {
        rule: [c.name for c in rule.counterparts if c.compared and c.name.startswith(f"{framework}.")]
        for rule in portopt.RULES
    }
    return {rule: names for rule, names in found.items() if names}


class TestAgainst:
    @pytest.mark.parametrize("rule", counterparts("torch"), ids=lambda rule: rule.__name__)
    def test_torch_is_near_but_no_part_of_the_verdict(self, rule: type[portopt.Optimizer]) -> None:
        optimizer = rule(clipnorm=0.5, clipvalue=0.2)
        result = compare(Settings(optimizer, 2, 128, "float64", backends=["numpy"], against=["torch"]))
        other = result.runs[-1]
        assert result.identical
        assert other.verdict is Verdict.OTHER_FORMULA
        assert other.runner.formula in counterparts("torch")[rule]
        assert other.measurements is not None
        assert other.measurements.distances is not None
        assert 0 < other.measurements.distances[-1] < 0.05

    @pytest.mark.parametrize(
        "optimizer",
        [
            portopt.SGD(0.1),
            portopt.SGD(0.1, momentum=0.9, nesterov=True),
            portopt.SGD(0.1, nesterov=True, decay=0.5),
            portopt.SGD(portopt.schedules.PolynomialDecay(0.1, steps=5, end=0.01)),
            portopt.SGD(0.1, clipvalue=1e-3),
            portopt.RMSprop(rho=0.5, epsilon=1e-3),
            portopt.Adagrad(0.05, decay=0.1, epsilon=1e-3),
            portopt.Adadelta(0.5, rho=0.7, epsilon=1e-3),
            portopt.Nadam(beta_1=0.5, beta_2=0.9, schedule_decay=0.5, epsilon=1e-3),
        ],
        ids=repr,
    )
    def test_hyperparameters_reach_torch(self, optimizer: portopt.Optimizer) -> None:
        # These formulas are torch's up to the order of operations, so that rounding is all that may differ.
        result = compare(Settings(optimizer, 1, 128, "float64", backends=["numpy"], against=["torch"]))
        measured = result.runs[-1].measurements
        assert measured is not None
        assert measured.distances is not None
        assert measured.distances[-1] < 1e-9

    # Those that torch has as well are near it; that the others' counterparts take steps, the tests of the benchmark see.
    @pytest.mark.parametrize(
        "rule",
        in_turn(
            [rule for rule in counterparts("optax") if rule is portopt.Adam or rule not in counterparts("torch")], 0, 3
        ),
        ids=lambda rule: rule.__name__,
    )
    def test_optax_is_near(self, rule: type[portopt.Optimizer]) -> None:
        result = compare(Settings(rule(), 1, 512, "float64", backends=["numpy"], against=["optax"]))
        measured = result.runs[-1].measurements
        assert measured is not None, result.runs[-1].error
        assert measured.distances is not None
        # Signum takes signs alone, and goes the same way.
        assert measured.distances[-1] < 0.05
        assert (measured.distances[-1] > 0) == (rule is not portopt.Signum)

    @pytest.mark.parametrize(
        "optimizer",
        [
            portopt.Adam(dialect="torch", weight_decay=0.1, decoupled_weight_decay=True, maximize=True, clipvalue=0.1),
            portopt.RMSprop(
                portopt.schedules.PolynomialDecay(0.1, steps=5, end=0.01), dialect="optax", momentum=0.5, centered=True
            ),
            portopt.Nadam(dialect="optax", weight_decay=0.1),
        ],
        ids=repr,
    )
    def test_a_dialect_is_compared_with_what_it_follows(self, optimizer: portopt.Optimizer) -> None:
        framework = vars(optimizer)["dialect"]
        result = compare(Settings(optimizer, 1, 512, "float64", backends=["numpy"], against=[framework]))
        measured = result.runs[-1].measurements
        assert measured is not None, result.runs[-1].error
        assert measured.distances is not None
        assert measured.distances[-1] < 1e-12

    def test_another_frameworks_dialect_has_no_counterpart(self) -> None:
        settings = Settings(portopt.Adam(dialect="keras3"), backends=["numpy"], against=["torch"])
        with pytest.raises(
            ValueError, match=r"torch has no counterpart of Adam\(.*in the default dialect or that of torch"
        ):
            compare(settings)

    def test_an_option_without_counterpart_is_named(self) -> None:
        optimizer = portopt.Adam(dialect="optax", amsgrad=True, weight_decay=0.1)
        with pytest.raises(ValueError, match=r"amsgrad has no counterpart of weight_decay=0.1 of Adam"):
            compare(Settings(optimizer, backends=["numpy"], against=["optax"]))

    def test_the_norm_is_clipped(self) -> None:
        # torch adds 1e-6 to the norm that it divides by.
        optimizer = portopt.SGD(0.1, clipnorm=0.05)
        result = compare(Settings(optimizer, 1, 128, "float64", backends=["numpy"], against=["torch"]))
        measured = result.runs[-1].measurements
        assert measured is not None
        assert measured.distances is not None
        assert measured.distances[-1] < 1e-5

    def test_is_marked_in_the_table(self, capsys: OUTPUT) -> None:
        assert main(["compare", *SHORT, "--backend", "numpy", "--against", "torch"]) == 0
        text = capsys.readouterr().out
        assert re.search(r"torch\.optim +cpu +Adam .*different formula", text)
        assert (
            "torch.optim Adam computes a different formula, so it is no part of the verdict; its parameters end" in text
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "new" / "folder"
    names = ["--backend", "numpy", "--backend", "torch"]
    command = ["compare", *SHORT, *names, "--against", "torch", "--seed", "5", "--quiet", "--out", str(folder)]
    assert main(command) == 0
    return folder


class TestReport:
    def test_json_holds_the_results(self, folder: Path) -> None:
        report = json.loads((folder / "report.json").read_text())
        assert report["schema_version"] == 1
        assert report["identical"] is True
        assert report["reference"] == "numpy apply"
        assert report["command"].startswith("portopt compare --epochs 2 --batch-size 256 --backend numpy")
        assert report["settings"]["optimizer"] == portopt.serialize(portopt.Adam())
        assert (report["settings"]["seed"], report["settings"]["steps"]) == (5, STEPS)
        assert report["versions"]["numpy"] == np.__version__
        assert set(report["versions"]) >= {"portopt", "python", "torch", "scikit-learn", "matplotlib", "ml_dtypes"}
        runs = {run["name"]: run for run in report["runs"]}
        assert set(runs) >= {"numpy apply", "numpy apply_", "torch apply", "torch apply_", "torch.optim Adam"}
        for run in runs.values():
            assert re.fullmatch("[0-9a-f]{64}", run["sha256"])
            assert run["steps_per_second"] > 0
            assert len(run["epochs"]["loss"]) == len(run["epochs"]["test_accuracy"]) == 3
        shas = {run["sha256"] for run in runs.values() if run["formula"] == "portopt"}
        assert len(shas) == 1
        assert runs["torch.optim Adam"]["sha256"] not in shas
        assert runs["torch apply"]["first_difference"] is None
        assert [p["path"] for p in report["model"]["parameters"]] == [
            'params["hidden"]["bias"]',
            'params["hidden"]["kernel"]',
            'params["output"]["bias"]',
            'params["output"]["kernel"]',
        ]
        assert [p["shape"] for p in report["model"]["parameters"]] == [[32], [64, 32], [10], [32, 10]]

    def test_html_shows_the_same_and_needs_nothing_else(self, folder: Path) -> None:
        page = (folder / "report.html").read_text()
        report = json.loads((folder / "report.json").read_text())
        assert report["conclusion"] in page
        assert report["command"] in page
        for run in report["runs"]:
            assert run["sha256"] in page
        for value in report["versions"].values():
            assert value in page
        assert page.count("<svg") == 1
        assert "mean loss on the training images" in page
        assert "the same bits: numpy apply, numpy apply_" in page
        assert "torch.optim Adam (different formula)" in page
        loaded = re.findall(
            r"""(?:src|href|data|action)\s*=\s*["'](?!#)[^"']*|url\((?!#)[^)]*|@import|<script|<link""", page
        )
        assert loaded == []

    def test_nothing_else_is_left_in_the_folder(self, folder: Path) -> None:
        assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]

    def test_a_report_is_replaced_as_a_whole_or_not_at_all(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "report.json"
        path.write_text("the old one")

        def fail(self: Path, target: Path) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with pytest.raises(OSError, match="disk full"):
                write_files({path: "half"})
        assert path.read_text() == "the old one"
        assert list(tmp_path.iterdir()) == [path]

    def test_text_from_the_command_line_is_escaped(self, tmp_path: Path) -> None:
        folder = tmp_path / "<b>&"
        assert main(["compare", *SHORT, "--backend", "numpy", "--quiet", "--out", str(folder)]) == 0
        page = (folder / "report.html").read_text()
        assert "<b>&" not in page
        assert "&lt;b&gt;&amp;" in page

    def test_quiet_prints_the_conclusion_only(self, capsys: OUTPUT) -> None:
        assert main(["compare", *SHORT, "--backend", "numpy", "--quiet"]) == 0
        captured = capsys.readouterr()
        assert re.fullmatch(r"All \d runs have the same bits after each of 10 steps\.\n", captured.out)
        assert captured.err == ""


class TestBits:
    parameters = digits.initial_parameters(0, "float32")

    def changed(self, position: int, index: tuple[int, ...], value: float) -> list[npt.NDArray[Any]]:
        arrays = [array.copy() for array in self.parameters]
        arrays[position][index] = value
        return arrays

    def test_equal_bits_have_no_difference(self) -> None:
        assert first_difference(1, self.parameters, self.changed(0, (0,), 0.0)) is None

    def test_zeros_of_different_sign_differ(self) -> None:
        found = first_difference(9, self.changed(2, (3,), -0.0), self.parameters)
        assert found is not None
        assert (found.step, found.parameter, found.index) == (9, '["output"]["bias"]', (3,))
        assert (found.bits, found.reference_bits) == ("0x80000000", "0x00000000")
        assert (found.differing, found.elements) == (1, 10)

    def test_two_nans_are_equal_whatever_their_bits(self) -> None:
        quiet = self.changed(1, (5, 6), np.nan)
        other = [array.copy() for array in quiet]
        other[1].view(np.uint32)[5, 6] = 0xFFC12345
        assert first_difference(1, quiet, other) is None
        assert digest(quiet) == digest(other) != digest(self.parameters)

    def test_the_first_parameter_and_element_are_reported(self) -> None:
        changed = self.changed(1, (2, 3), 1.0)
        changed[1][1, 31] = changed[3][0, 0] = 1.0
        found = first_difference(1, changed, self.parameters)
        assert found is not None
        assert (found.parameter, found.index, found.differing) == ('["hidden"]["kernel"]', (1, 31), 2)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_patterns_have_the_width_of_the_dtype(self, dtype: str) -> None:
        arrays = digits.initial_parameters(0, dtype)
        changed = [array.copy() for array in arrays]
        changed[0][0] = -0.0
        found = first_difference(1, changed, arrays)
        assert found is not None
        width = 2 * arrays[0].itemsize
        assert (found.bits, found.reference_bits) == ("0x8" + "0" * (width - 1), "0x" + "0" * width)

    def test_the_digest_is_that_of_the_little_endian_bytes(self) -> None:
        expected = hashlib.sha256(b"".join(a.astype("<f4").tobytes() for a in self.parameters)).hexdigest()
        assert digest(self.parameters) == expected
        assert digest([array.astype(">f4") for array in self.parameters]) == expected

    def test_canonical_leaves_its_argument_alone(self) -> None:
        array = np.asarray([0xFFC12345], np.uint32).view(np.float32)
        canonical(array)
        assert array.view(np.uint32)[0] == 0xFFC12345

    @pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
    def test_a_trajectory_gives_back_every_step(self, dtype: str) -> None:
        steps = [digits.initial_parameters(seed, dtype) for seed in range(3)]
        with Trajectory(steps[0]) as trajectory:
            trajectory.append(steps[2])
            trajectory.clear()
            for parameters in steps:
                trajectory.append(parameters)
            for step in (3, 1, 2):
                assert bits.first_difference(step, steps[step - 1], trajectory.after(step)) is None


class TestGradients:
    def test_are_the_derivatives_of_the_loss(self) -> None:
        data = digits.load_digits(0)
        few = digits.Digits(data.train_images[:20], data.train_labels[:20], data.test_images, data.test_labels)
        network, rows = digits.Network(20), np.arange(20)
        parameters = digits.initial_parameters(0, "float64")
        gradients = network.gradients(few, rows, parameters)
        random = np.random.default_rng(0)
        for position, gradient in enumerate(gradients):
            for _ in range(5):
                index = tuple(int(random.integers(n)) for n in gradient.shape)
                losses = []
                for shift in (1e-6, -1e-6):
                    shifted = [array.copy() for array in parameters]
                    shifted[position][index] += shift
                    losses.append(network.quality(few, shifted)[0])
                assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-7)

    def test_come_in_the_parameters_dtype_and_are_the_callers_own(self) -> None:
        data, network = digits.load_digits(0), digits.Network(8)
        parameters = digits.initial_parameters(0, "float16")
        first = network.gradients(data, np.arange(8), parameters)
        kept = [array.copy() for array in first]
        network.gradients(data, np.arange(8, 16), parameters)
        assert {array.dtype.name for array in first} == {"float16"}
        assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))

    def test_an_epoch_uses_no_image_twice(self) -> None:
        rows = digits.batches(0, 100, 30, 2)
        assert rows.shape == (6, 30)
        for epoch in (rows[:3], rows[3:]):
            assert len(set(epoch.ravel().tolist())) == 90
        assert not np.array_equal(rows[:3], rows[3:])


def test_every_run_computes_gradients_from_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(portopt.SGD(), 1, 256, backends=["numpy"])
    problem, runners, _ = comparison.prepare(settings)
    seen: list[Any] = []
    original = problem.network.gradients

    def watched(data: Any, rows: Any, parameters: Any) -> Any:
        seen.append([array.copy() for array in parameters])
        return original(data, rows, parameters)

    monkeypatch.setattr(problem.network, "gradients", watched)
    runner = runners[0]
    assert isinstance(runner, BackendRunner)
    train(problem, runner)
    assert len(seen) == 5
    assert all(np.array_equal(a, b) for a, b in zip(seen[0], problem.initial, strict=True))
    assert len({digest(parameters) for parameters in seen}) == 5
