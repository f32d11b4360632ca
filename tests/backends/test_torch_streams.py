"""Streams and CUDA graphs of torch, with streams that are played: what a step refuses."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import portopt
import portopt_torch
from portopt_torch import TorchOptimizer
from portopt_torch._backend import TorchBackend

GPU = torch.device("cuda:0")


def played_tensor(*, on_gpu: bool) -> Any:
    return SimpleNamespace(is_cuda=on_gpu, device=GPU if on_gpu else torch.device("cpu"))


def test_capture_is_refused_for_tensors_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        graphs = portopt_torch.backend.graphs
        graphs.refuse_capture([played_tensor(on_gpu=False)])
        for reason, text in (
            (None, r"nothing was changed.*capturable=True"),
            ("why", r"why; nothing.*graph\.replay\(\)"),
        ):
            refused = pytest.raises(RuntimeError, match=f"CUDA graph.*{text}")
            with refused if capturing else contextlib.nullcontext():
                graphs.refuse_capture([played_tensor(on_gpu=False), played_tensor(on_gpu=True)], reason)


@pytest.fixture
def _capturing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every tensor for one of a GPU whose stream is being captured."""

    monkeypatch.setattr(TorchBackend, "_is_captured", lambda self, tensors: bool(list(tensors)))


@pytest.mark.usefixtures("_capturing")
@pytest.mark.parametrize("clipnorm", [None, 1.0])
def test_a_captured_step_changes_nothing(clipnorm: float | None) -> None:
    rule, p = portopt.Adam(clipnorm=clipnorm), torch.ones(5)
    state = rule.init(p)
    # A step of tensors on the CPU that was done before is planned, and asks nobody.
    for step in (rule.apply, rule.apply_):
        with pytest.raises(RuntimeError, match="CUDA graph"):
            step(p, torch.ones(5), state)
    assert p.tolist() == [1.0] * 5
    assert not state.slots["m"].any()


@pytest.mark.usefixtures("_capturing")
def test_a_captured_step_of_the_optimizer_changes_nothing() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = TorchOptimizer([{"params": [p]} for p in parameters], portopt.Adam(0.1))
    for p in parameters:
        p.grad = torch.ones(3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match="CUDA graph"):
        optimizer.step()
    after = optimizer.state_dict()
    assert str(after) == str(before)
    assert all(p.tolist() == [1.0] * 3 for p in parameters)
