from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.commands import exit_status
from support.places import ROOT

import portopt
from portopt.backend import get_backend
from portopt_tools.bench import benchmark, cases, contenders, first_step, machine, measuring
from portopt_tools.bench.contenders import PEERS, Inputs, portopt_contenders
from portopt_tools.bench.markdown import as_markdown, nearest_ratio
from portopt_tools.bench.pure import adam_by_hand
from portopt_tools.bench.shapes import QUICK_ELEMENTS, QUICK_TENSORS, SHAPE_SETS, ShapeSet
from portopt_tools.bench.wording import duration

pytestmark = pytest.mark.needs("jax", "matplotlib", "optax", "torch")

OUTPUT = pytest.CaptureFixture[str]
every_rule = pytest.mark.parametrize("rule", portopt.RULES, ids=lambda rule: rule.__name__)


@pytest.fixture(scope="module", autouse=True)
def _only_own_garbage() -> Iterator[None]:
    """Let the collections before each measurement pass over what other tests of this process have left behind."""
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "tensors", "parameters"),
        [
            ("one-10M", 1, 10_000_000),
            ("one-50M", 1, 50_000_000),
            ("resnet50", 161, 25_557_032),
            ("gpt2-small", 148, 124_439_808),
            ("200x600", 200, 120_000),
            ("1000x256", 1000, 256_000),
            ("mlp-digits", 4, 2_410),
        ],
    )
    def test_every_set_has_as_many_tensors_and_parameters_as_its_model(
        self, name: str, tensors: int, parameters: int
    ) -> None:
        assert (len(SHAPE_SETS[name].shapes), SHAPE_SETS[name].parameters) == (tensors, parameters)

    def test_there_are_no_other_sets(self) -> None:
        assert list(SHAPE_SETS) == ["one-10M", "one-50M", "resnet50", "gpt2-small", "200x600", "1000x256", "mlp-digits"]

    @pytest.mark.parametrize("name", SHAPE_SETS)
    def test_quick_sets_are_small(self, name: str) -> None:
        quick = SHAPE_SETS[name].quick()
        assert quick.name == name
        assert 0 < len(quick.shapes) <= QUICK_TENSORS
        assert max(map(math.prod, quick.shapes)) <= QUICK_ELEMENTS


class TestCases:
    @every_rule
    def test_a_step_reads_parameter_gradient_and_slots_and_writes_all_but_the_gradient(
        self, rule: type[portopt.Optimizer]
    ) -> None:
        optimizer = cases.make_optimizer(rule)
        shapes = [(6, 4), (10,)]
        slots = optimizer.init([np.zeros(shape) for shape in shapes]).slots
        kept = sum(leaf.size for name in optimizer.slots for leaf in slots.get(name, ()) if leaf is not None)
        assert cases.elements_moved(optimizer, shapes) == 3 * 34 + 2 * kept

    def test_sgd_is_measured_with_momentum_for_without_it_there_is_no_slot_to_move(self) -> None:
        assert cases.elements_moved(cases.read("sgd").optimizer, [(7,)]) == 5 * 7

    @every_rule
    def test_a_rule_is_compared_where_it_states_a_counterpart(self, rule: type[portopt.Optimizer]) -> None:
        stated = {counterpart.name.partition(".")[0] for counterpart in rule.counterparts if counterpart.compared}
        optimizer = cases.make_optimizer(rule)
        compared = {name for name, peer in PEERS.items() if contenders.why_not_compared(peer, optimizer) is None}
        assert compared == stated & set(PEERS)


SMALL = ShapeSet("small", ((3, 4), (5,)))


class TestContenders:
    @pytest.mark.parametrize(("text", "kept"), [("adam", 2 * 17), ("sm3", 12 + 5 + 3 + 4 + 5)])
    def test_memory_is_that_of_parameters_gradients_and_slots_of_their_own_shapes(self, text: str, kept: int) -> None:
        optimizer = cases.read(text).optimizer
        found = contenders.portopt_contenders(get_backend("numpy"), interpreted=False)
        # What all contenders share, and what the largest step takes for a while.
        assert contenders.memory_needed(found, optimizer, SMALL) == 4 * 2 * (2 * 17 + kept)

    @every_rule
    @pytest.mark.parametrize("peer", PEERS)
    def test_every_counterpart_takes_steps(self, rule: type[portopt.Optimizer], peer: str) -> None:
        backend, optimizer = get_backend(PEERS[peer].backend), cases.make_optimizer(rule)
        compared = contenders.why_not_compared(PEERS[peer], optimizer) is None
        found = PEERS[peer].contenders(optimizer, backend) if compared else []
        assert bool(found) == compared
        for contender in found:
            # Not in the quick report's path: here a mistake in a mapping of arguments shows as the error that it is.
            inputs = Inputs(optimizer, SMALL)
            step = contender.prepare(inputs)
            step()
            step()

    def test_torch_has_fused_implementations_of_three_rules_on_the_cpu(self) -> None:
        backend, torch_optim = get_backend("torch"), PEERS["torch"]
        optimizers = [case.optimizer for case in cases.built_in()]
        compared = [o for o in optimizers if contenders.why_not_compared(torch_optim, o) is None]
        fused = {
            type(optimizer).__name__
            for optimizer in compared
            if "fused" in [contender.mode for contender in torch_optim.contenders(optimizer, backend)]
        }
        assert fused >= {"SGD", "Adagrad", "Adam"}

    def test_torch_optim_changes_the_shared_parameters_by_the_shared_gradients(self) -> None:
        backend = get_backend("torch")
        inputs = Inputs(portopt.SGD(learning_rate=0.5), SMALL)
        parameters, _ = inputs.shared(backend)
        before = [p.clone() for p in parameters]
        for contender in PEERS["torch"].contenders(portopt.SGD(), backend):
            if contender.mode == "for-loop":
                contender.prepare(inputs)()
        for p, old, g in zip(parameters, before, inputs.gradients(backend), strict=True):
            assert np.array_equal(p.numpy(), old.numpy() - np.float32(0.5) * g.numpy())

    @pytest.mark.parametrize(("text", "others"), [("adam", 1), ("prodigy", 2)])
    def test_numbers_stay_finite_also_where_a_rule_estimates_its_rate(self, text: str, others: int) -> None:
        optimizer, backend = cases.read(text).optimizer, get_backend("numpy")
        found = portopt_contenders(backend, interpreted=False)
        inputs = Inputs(optimizer, SMALL)
        (prepare,) = (c.prepare for c in found if c.mode == "apply_")
        step = prepare(inputs)
        for _ in range(200):
            step()
        assert all(np.isfinite(p).all() for p in inputs.shared(backend)[0])
        turns = inputs.in_turns(backend)
        assert len({id(next(turns)[0]) for _ in range(4)}) == others
        slots = len(inputs.optimizer.slots)
        # What all share, and what the largest step takes for a while.
        assert contenders.memory_needed(found[:1], optimizer, SMALL) == 4 * 17 * ((1 + others + slots) + (2 + slots))

    @pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
    def test_portopt_takes_steps_in_every_mode_and_advances_where_it_changes_or_consumes(self, backend: str) -> None:
        found = portopt_contenders(get_backend(backend), interpreted=True)
        assert len({c.name for c in found}) == len(found) >= 3
        for contender in found:
            inputs = Inputs(portopt.Adam(), SMALL)
            step = contender.prepare(inputs)
            step()
            step()
            moved = get_backend(backend).to_numpy(inputs.shared(get_backend(backend))[0][0])
            start = get_backend(backend).to_numpy(inputs.arrays(get_backend(backend), 0)[0])
            assert np.array_equal(moved, start) is (contender.mode != "apply_")

    def test_interpreted_steps_take_part_only_on_request(self) -> None:
        backend = get_backend("numpy")
        assert [c.mode for c in portopt_contenders(backend, interpreted=False)] == ["apply", "apply_"]
        assert "interpreted" in [c.mode for c in portopt_contenders(backend, interpreted=True)]

    def test_the_donated_mode_of_jax_takes_part(self) -> None:
        assert "donated" in [c.mode for c in portopt_contenders(get_backend("jax"), interpreted=False)]


class TestMeasuring:
    def test_contenders_are_timed_in_turns_and_each_goes_first_once(self) -> None:
        calls: list[str] = []
        measuring.alternate([lambda: calls.append("a"), lambda: calls.append("b")], [1, 1], 2, lambda: None)
        assert calls == ["a", "b", "b", "a"]

    def test_a_sample_is_the_time_of_one_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]

        def step() -> None:
            now[0] += 0.25

        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        assert measuring.alternate([step], [3], 2, lambda: None) == [[0.25, 0.25]]

    def test_what_comes_before_each_step_is_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now, calls = [0.0], list[str]()

        def take(name: str, seconds: float) -> None:
            calls.append(name)
            now[0] += seconds

        monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        steps = [lambda: take("a", 0.25), lambda: take("b", 0.5)]
        found = measuring.alternate(steps, [2, 1], 1, lambda: None, [lambda: take("before a", 1.0), None])
        assert found == [[0.25], [0.5]]
        assert calls == ["a", "before a", "a", "before a", "a", "b"]

    def test_short_steps_are_repeated_within_a_sample(self) -> None:
        assert measuring.steps_per_sample(lambda: time.sleep(0.002), 0.001) == 1
        assert measuring.steps_per_sample(lambda: None, 0.001) > 50

    def test_copying_counts_what_is_read_and_what_is_written(self) -> None:
        stream = measuring.Stream(1000, 3)
        for source, _ in stream._parts:
            source[:] = np.arange(len(source))
        stream.step()
        assert stream.bytes_moved == 2000
        assert sum(target.size for _, target in stream._parts) == 250
        assert all(np.array_equal(source, target) for source, target in stream._parts)

    def test_changing_in_place_overwrites_what_is_read(self) -> None:
        stream = measuring.Stream(1000, 3, in_place=True)
        stream.step()
        assert all(np.all(source == -1.0) for source, _ in stream._parts)

    @pytest.mark.parametrize("resident", [True, False])
    def test_extra_memory_is_what_a_step_takes_for_a_while(
        self, resident: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not resident:
            monkeypatch.setattr(measuring, "memory_method", lambda: "tracemalloc")
        elif measuring.memory_method() == "tracemalloc":
            pytest.skip("this system does not tell the peak of the resident memory")
        size = 64 << 20
        assert size * 0.9 < measuring.extra_memory(lambda: np.ones(size, np.uint8)) < size * 1.5
        assert measuring.extra_memory(lambda: None) < 1 << 20


def test_a_step_in_place_takes_no_memory_that_grows_with_the_parameters() -> None:
    # Beyond 32 MiB the C library always gives memory back; what it kept, the resident memory would not show.
    size = 9 << 20
    inputs = Inputs(portopt.Adam(), ShapeSet("one", ((size,),)))
    found = {c.mode: c for c in portopt_contenders(get_backend("numpy"), interpreted=False)}
    extra = {}
    for mode, contender in found.items():
        step = contender.prepare(inputs)
        for _ in range(3):
            step()
        extra[mode] = measuring.extra_memory(step)
    assert extra["apply"] > 4 * size
    assert extra["apply_"] < 1 << 20


@pytest.fixture
def known_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no first steps: each needs two processes."""

    def measured(rule: str, backend: str, repeats: int) -> first_step.FirstStep:
        return first_step.FirstStep(backend, "apply_", 2.0, 1.0)

    monkeypatch.setattr(first_step, "measure", measured)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("bench") / "new"
    assert exit_status(["bench", "--quick", "--out", str(folder)]) == 0
    return json.loads((folder / "bench.json").read_text(encoding="utf-8")), folder


class TestQuick:
    def test_the_report_says_what_was_measured_on_what(self, quick: tuple[dict[str, Any], Path]) -> None:
        report, folder = quick
        assert report["schema_version"] == 1
        assert report["command"] == f"portopt bench --quick --out {folder}"
        assert report["versions"]["portopt"] == portopt.__version__
        assert report["versions"]["numpy"] == np.__version__
        assert report["machine"]["cpus"] >= 1
        assert report["settings"]["dtype"] == "float32"
        assert [(g["rule"], g["shapes"]) for g in report["groups"]] == [("Adam", "mlp-digits")]

    def test_every_backend_and_mode_and_both_other_libraries_take_part(
        self, quick: tuple[dict[str, Any], Path]
    ) -> None:
        names = [c["name"] for c in quick[0]["groups"][0]["contenders"]]
        assert {
            "portopt numpy apply", "portopt numpy apply_", "portopt torch apply", "portopt torch apply_", "portopt jax eager",
            "portopt jax jit", "portopt jax donated", "torch.optim fused", "torch.optim foreach", "torch.optim for-loop",
            "optax jit, donated",
        } == set(names)  # fmt: skip
        assert len(names) == len(set(names))

    def test_numbers_follow_from_the_samples(self, quick: tuple[dict[str, Any], Path]) -> None:
        (group,) = quick[0]["groups"]
        assert (group["tensors"], group["parameters"]) == (4, 2410)
        assert group["bytes_per_step"] == 7 * 4 * 2410
        assert group["copy_bytes_per_second"] == max(
            s["bytes_per_second"] for s in group["streams"] if not s["in_place"]
        )
        assert group["update_bytes_per_second"] > 0
        seconds: dict[str, list[float]] = {}
        for c in group["contenders"]:
            assert len(c["samples"]) == quick[0]["settings"]["repeats"]
            assert c["seconds_per_step"] == pytest.approx(sorted(c["samples"])[0] / 2 + sorted(c["samples"])[1] / 2)
            assert c["microseconds_per_tensor"] == pytest.approx(1e6 * c["seconds_per_step"] / 4)
            assert c["bytes_per_second"] == pytest.approx(group["bytes_per_step"] / c["seconds_per_step"])
            assert c["share_of_copy"] == pytest.approx(c["bytes_per_second"] / group["copy_bytes_per_second"])
            assert c["share_of_update"] == pytest.approx(c["bytes_per_second"] / group["update_bytes_per_second"])
            assert c["extra_memory_bytes"] >= 0
            seconds.setdefault(c["library"], []).append(c["seconds_per_step"])
        for c in group["contenders"]:
            if c["library"] == "portopt":
                assert c["times_as_fast_as"] == {
                    library: pytest.approx(min(seconds[library]) / c["seconds_per_step"])
                    for library in ("torch.optim", "optax")
                }
            else:
                assert "times_as_fast_as" not in c

    def test_the_first_step_is_faster_from_the_disk_cache(self, quick: tuple[dict[str, Any], Path]) -> None:
        (first,) = quick[0]["first_steps"]
        assert (first["rule"], first["backend"], first["mode"]) == ("Adam", "numpy", "apply_")
        assert 0 < first["seconds_cached"] < first["seconds_cold"]

    def test_the_plot_is_svg_and_names_the_set_and_the_libraries(self, quick: tuple[dict[str, Any], Path]) -> None:
        text = (quick[1] / "bench.svg").read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert "mlp-digits: 4 tensors, 2,410 parameters" in text
        assert "portopt numpy apply_ against torch.optim" in text
        assert "portopt jax donated against optax" in text

    def test_markdown_compares_each_backend_with_the_library_on_the_same_arrays(
        self, quick: tuple[dict[str, Any], Path]
    ) -> None:
        text = as_markdown(quick[0])
        assert text.startswith(f"```sh\n{quick[0]['command']}\n```\n")
        header = "| rule | portopt numpy apply_ | portopt jax donated | portopt torch apply_ | torch.optim | optax |"
        assert header in text.splitlines()
        cells = next(line for line in text.splitlines() if line.startswith("| Adam |")).split(" | ")
        assert [re.sub(r".*\*\* ?", "", cell) for cell in cells[1:4]] == ["torch.optim", "optax", "torch.optim"]


def report_of(*arguments: str, tmp_path: Path) -> dict[str, Any]:
    assert exit_status(["bench", "--quick", "--repeats", "1", "--out", str(tmp_path), *arguments]) == 0
    report: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    return report


@pytest.mark.usefixtures("known_first_steps")
def test_named_rules_shapes_and_backends_are_measured_in_order(tmp_path: Path, capsys: OUTPUT) -> None:
    report = report_of(
        "--rule", "SGD", "--rule", "nadam", "--shapes", "1000x256", "--shapes", "mlp-digits", "--backend", "numpy",
        "--against", "torch", "--interpreted", tmp_path=tmp_path,
    )  # fmt: skip
    groups = report["groups"]
    order = [("SGD", "1000x256"), ("Nadam", "1000x256"), ("SGD", "mlp-digits"), ("Nadam", "mlp-digits")]
    assert [(g["rule"], g["shapes"]) for g in groups] == order
    assert groups[0]["options"] == {"momentum": 0.9}
    assert {c["backend"] for c in groups[0]["contenders"]} == {"numpy", "torch"}
    assert "portopt numpy interpreted" in [c["name"] for c in groups[0]["contenders"]]
    assert report["not_run"] == []
    printed = capsys.readouterr().out
    assert "SGD (momentum 0.9)" in printed
    assert f"1000x256: {QUICK_TENSORS} tensors" in printed


@pytest.mark.usefixtures("known_first_steps")
def test_a_backward_pass_comes_before_each_step_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    passes: list[object] = []
    monkeypatch.setattr(contenders.TorchOptim, "backward", lambda self: lambda: passes.append(self))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    report = report_of(
        "--backend", "torch", "--backend", "numpy", "--against", "torch", "--backward", tmp_path=tmp_path
    )
    (group,) = report["groups"]
    assert group["backward"]
    assert {c["backend"] for c in group["contenders"]} == {"torch"}
    assert len(passes) == sum(c["steps_per_sample"] for c in group["contenders"])
    reason = "there is no backward pass on arrays of numpy to do before each step"
    assert {(e["name"], e["reason"]) for e in report["not_run"]} == {
        (f"portopt numpy {mode} (Adam, mlp-digits)", reason) for mode in ("apply", "apply_")
    }
    printed, markdown = capsys.readouterr().out, as_markdown(report)
    for text in printed.replace("\n", " "), markdown:
        assert "each step after a backward pass" in text
        assert "OMP_WAIT_POLICY=PASSIVE" in text


@pytest.mark.usefixtures("known_first_steps")
@pytest.mark.parametrize(("rule", "by_hand"), [("adam", True), ("sgd", False)])
def test_steps_that_make_new_arrays_are_compared_with_copying_and_adam_by_hand(
    rule: str, by_hand: bool, tmp_path: Path, capsys: OUTPUT
) -> None:
    report = report_of(
        "--rule", rule, "--backend", "numpy", "--backend", "torch", "--against", "torch", "--pure", tmp_path=tmp_path
    )
    (group,) = report["groups"]
    assert group["pure"]
    names = [c["name"] for c in group["contenders"] if c["library"] != "torch.optim"]
    assert names == [
        "portopt numpy apply",
        *["NumPy by hand"] * by_hand,
        "copying numpy parameters and slots",
        "portopt torch apply",
        "copying torch parameters and slots",
    ]
    printed, markdown = capsys.readouterr().out, as_markdown(report)
    for text in printed.replace("\n", " "), markdown:
        assert "portopt makes new arrays" in text


def test_adam_by_hand_is_adam() -> None:
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal(100, np.float32) for _ in range(2))
    optimizer = portopt.Adam()
    expected, state, found = p, optimizer.init(p), (p, p * 0, p * 0)
    for step in range(1, 4):
        expected, state = optimizer.apply(expected, g, state)
        found = adam_by_hand(found[0], g, *found[1:], step)
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_a_backward_pass_gives_gradients_to_a_model_of_torch() -> None:
    import torch

    backward = PEERS["torch"].backward()
    assert backward is not None
    with torch.profiler.profile() as profile:
        backward()
    assert any("AddmmBackward" in event.key for event in profile.key_averages())
    assert PEERS["optax"].backward() is None


OWN_RULE = """\
import portopt


class Own(portopt.Optimizer):
    power: float = portopt.hyperparameter(default=1.0)

    def update(self, xp, p, g, slots, c):
        return p - c.lr * self.power * g, {}
"""


@pytest.mark.usefixtures("known_first_steps")
def test_a_rule_without_counterpart_is_measured_alone_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    (tmp_path / "own_rule_to_measure.py").write_text(OWN_RULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = {"class_name": "own_rule_to_measure:Own", "config": {"power": 2.0}}
    rules = ["--rule", "own_rule_to_measure:Own", "--rule", json.dumps(config), "--rule", "sgd"]
    report = report_of(*rules, "--backend", "numpy", "--against", "torch", tmp_path=tmp_path)
    assert [(group["rule"], group["options"]) for group in report["groups"]] == [
        ("Own", {}),
        ("Own", {"power": 2.0}),
        ("SGD", {"momentum": 0.9}),
    ]
    assert [{c["library"] for c in group["contenders"]} for group in report["groups"]] == [
        {"portopt"},
        {"portopt"},
        {"portopt", "torch.optim"},
    ]
    assert [first["rule"] for first in report["first_steps"]] == ["Own"]
    line = "not run: torch.optim (Own, mlp-digits): torch has no counterpart of Own("
    assert line in capsys.readouterr().out
    assert "| Own |" in as_markdown(report)


@pytest.mark.usefixtures("known_first_steps")
def test_progress_is_printed_unless_quiet(capsys: OUTPUT) -> None:
    arguments = ["bench", "--quick", "--repeats", "1", "--backend", "numpy", "--against", "torch"]
    assert exit_status(arguments) == 0
    assert "Adam, mlp-digits: 0/" in capsys.readouterr().err
    assert exit_status([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("known_first_steps")
def test_the_number_of_threads_is_set_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen: list[int] = []
    before = torch.get_num_threads()

    def look(step: object) -> int:
        seen.append(portopt.get_num_threads())
        return 0

    monkeypatch.setattr(measuring, "extra_memory", look)
    try:
        report = report_of("--backend", "numpy", "--against", "torch", "--threads", "1", tmp_path=tmp_path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert report["threads"] == {"copy": 1, "portopt": 1}
    assert "PJRT_NPROC" not in os.environ


@pytest.mark.usefixtures("known_first_steps")
def test_a_peer_that_is_missing_is_listed_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    report = report_of("--backend", "numpy", tmp_path=tmp_path)
    (entry,) = [e for e in report["not_run"] if e["name"] == "optax"]
    assert entry["install_command"] == 'pip install "portopt[bench,jax]"'
    assert "not installed" in entry["reason"]
    printed = capsys.readouterr().out
    assert "not run: optax: not installed" in printed
    assert 'pip install "portopt[bench,jax]"' in printed


@pytest.mark.usefixtures("known_first_steps")
def test_a_contender_that_fails_is_reported_and_leaves_the_others_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    def broken(self: object, backend: object, arguments: object) -> Any:
        def prepare(inputs: object) -> Any:
            raise RuntimeError("no such instruction")

        return prepare

    monkeypatch.setattr(contenders.TorchOptim, "_step", broken)
    arguments = ["--backend", "numpy", "--against", "torch", "--out", str(tmp_path)]
    assert exit_status(["bench", "--quick", *arguments]) == 1
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in report["groups"][0]["contenders"]] == ["portopt numpy apply", "portopt numpy apply_"]
    assert "torch.optim fused (Adam, mlp-digits): failed: RuntimeError: no such" in capsys.readouterr().out
    assert "times as fast" not in as_markdown(report)


def test_a_first_step_that_fails_is_reported_and_leaves_the_others_their_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("-m first_step failed:\nTraceback\nOSError: no such disk\n")

    monkeypatch.setattr(first_step, "measure", broken)
    arguments = ["--backend", "numpy", "--against", "torch", "--out", str(tmp_path)]
    assert exit_status(["bench", "--quick", *arguments]) == 1
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert len(report["groups"]) == 1
    assert "not run: first step of Adam on numpy: failed: OSError: no such disk" in capsys.readouterr().out


@pytest.mark.usefixtures("known_first_steps")
def test_what_does_not_fit_into_memory_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 10)
    report = report_of("--backend", "numpy", "--against", "torch", tmp_path=tmp_path)
    assert report["groups"] == []
    assert "not run: Adam, mlp-digits: needs about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "adm"], "argument --rule: unknown optimizer: 'adm'; did you mean 'Adam'?"),
        (["--rule", "nowhere:Adm"], "there is no module 'nowhere'"),
        (["--shapes", "one-1M"], "invalid choice: 'one-1M'"),
        (["--against", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--repeats", "0"], "--repeats: must be an integer of at least 1, but '0' was given"),
        (["--threads", "two"], "--threads: must be an integer of at least 1, but 'two' was given"),
        (["--backend", "nonesuch"], "no backend is named 'nonesuch'; installed are"),
    ],
)
def test_unusable_arguments_are_refused(arguments: list[str], message: str, capsys: OUTPUT) -> None:
    assert exit_status(["bench", "--quick", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("option", "module"), [("--backend", "torch"), ("--against", "torch"), ("--against", "optax")])
def test_what_was_named_and_is_missing_is_an_error_with_the_command_that_installs_it(
    option: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: OUTPUT
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert exit_status(["bench", "--quick", option, module]) == 2
    assert re.search(r'pip install "portopt\[', capsys.readouterr().err)


def test_without_matplotlib_a_folder_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: OUTPUT
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    assert exit_status(["bench", "--quick", "--out", str(tmp_path)]) == 2
    assert 'pip install "portopt[bench]"' in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: OUTPUT) -> None:
    (tmp_path / "file").write_text("")
    assert exit_status(["bench", "--quick", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "no file can be written" in capsys.readouterr().err


def test_a_first_step_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="unknown optimizer: 'no such rule'"):
        first_step.measure("no such rule", "numpy", 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000123, "12.3 µs"), (0.00456, "4.56 ms"), (1.5, "1.5 s"), (2000.0, "2,000 s"), (1e-9, "0.001 µs")],
)
def test_times_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_backend_without_a_library_of_its_own_is_compared_with_the_first() -> None:
    ratios = {"torch.optim": 2.0, "optax": 3.0}
    assert nearest_ratio({"backend": "numpy", "times_as_fast_as": ratios}) == ("torch.optim", 2.0)
    assert nearest_ratio({"backend": "jax", "times_as_fast_as": ratios}) == ("optax", 3.0)
    assert nearest_ratio({"backend": "jax", "times_as_fast_as": {}}) is None


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "scripts" / "write_performance_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_replaces_what_is_between_the_comments(script: ModuleType) -> None:
    page = f"before\n{script.START}\nold\n{script.END}\nafter\n"
    assert script.replace(page, "new\n") == f"before\n{script.START}\nnew\n{script.END}\nafter\n"
    with pytest.raises(SystemExit, match="lacks"):
        script.replace("no comments", "new\n")


def test_the_page_has_the_comments_and_the_tables_of_a_report(script: ModuleType) -> None:
    tables_of_page = script.PAGE.read_text(encoding="utf-8").partition(script.START)[2].partition(script.END)[0]
    assert tables_of_page.startswith("\n```sh\nportopt bench")
