"""Steps on arrays of several GPUs, against NumPy's: planned ones, behind busy streams, and what a capture refuses."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import portopt
from gpu_check.comparison import differing
from gpu_check.options import Options

_SHAPES = ((20_003,), (30, 70), (64,), (5, 4, 3), (100_003,), (), (70, 300))
_STEPS = 8
_BUSY_CYCLES = 20_000_000


def compare_steps(name: str, options: Options) -> Mapping[str, Any]:
    """Compare steps in place, and those that make new arrays, on as many devices as there are."""
    backend: Any = portopt.get_backend(name)
    usable = [device for device, reason in backend.devices().items() if reason is None and device.startswith("cuda")]
    if len(usable) < 2:
        return {"NOT RUN": f"there is {len(usable)} device"}
    places = [usable[k % len(usable)] for k in range(len(_SHAPES))]
    found: dict[str, Any] = {"devices": len(usable)}
    for rule, optimizer in _rules().items():
        for in_place in (True, False):
            case = f"{rule} {'apply_' if in_place else 'apply'}"
            found[case] = _compared(backend, optimizer.replace(), places, in_place=in_place)
        found[f"{rule} on streams that are busy"] = _compared(
            backend, optimizer.replace(), places, in_place=True, busy=True
        )
    return found


def _rules() -> Mapping[str, portopt.Optimizer]:
    return {
        "Adam": portopt.Adam(0.01),
        "Adam clipnorm cosine": portopt.Adam(portopt.schedules.CosineDecay(0.1, 20), clipnorm=0.5),
        "LAMB clipnorm": portopt.LAMB(clipnorm=0.5),
        "NoisySGD": portopt.NoisySGD(),
        "Prodigy clipnorm": portopt.Prodigy(clipnorm=0.5),
        "DoG": portopt.DoG(),
    }


def _compared(
    backend: Any, optimizer: portopt.Optimizer, places: list[str], *, in_place: bool, busy: bool = False
) -> Any:
    rng, expected = np.random.default_rng(0), _arrays(np.random.default_rng(1))
    times, grads = list[float](), list[Any]()
    with _streams(backend.name, sorted(set(places))) if busy else contextlib.nullcontext():
        params = list(map(backend.from_numpy, expected, places))
        state, expected_state = optimizer.init(params), optimizer.init(expected)
        for k in range(_STEPS):
            new = _arrays(rng)
            # The same arrays in some steps, others in some.
            if not grads or k % 3 == 2:
                grads = list(map(backend.from_numpy, new, places))
            else:
                for g, x, place in zip(grads, new, places, strict=True):
                    g[...] = backend.from_numpy(x, place)
            if busy:
                _let_wait(backend.name, places[k % len(places)])
            begin = time.perf_counter()
            if in_place:
                state = optimizer.apply_(params, grads, state)
            else:
                params, state = optimizer.apply(params, grads, state)
            times.append(time.perf_counter() - begin)
            with portopt.interpreted(), np.errstate(all="ignore"):
                expected, expected_state = optimizer.apply(expected, new, expected_state)
        wrong: dict[int, Any] = {
            k: d
            for k, (p, e) in enumerate(zip(params, expected, strict=True))
            if (d := differing(backend.to_numpy(p), e))
        }
    for slot in optimizer.scalar_slots:
        if float(state.slots[slot]).hex() != float(expected_state.slots[slot]).hex():
            wrong[-1] = f"{slot} {state.slots[slot]} for {expected_state.slots[slot]}"
    way = str(portopt.explain(optimizer, params, grads, state, in_place=in_place))
    if not way.startswith("planned"):
        wrong[-2] = way
    return {"differs": wrong} if wrong else {"us": round(min(times) * 1e6, 1)}


def _arrays(rng: np.random.Generator) -> list[Any]:
    return [np.asarray(rng.standard_normal(shape, np.float32)) for shape in _SHAPES]


def compare_adapter(options: Options) -> Mapping[str, Any]:
    """Compare `TorchOptimizer` on parameters of several devices, and on some of the host, with NumPy's steps."""
    torch, portopt_torch = importlib.import_module("torch"), importlib.import_module("portopt_torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return {"NOT RUN": f"there is {count} device"}
    found: dict[str, Any] = {"devices": count}
    gpus = [f"cuda:{k}" for k in range(count)]
    for rule, optimizer in _rules().items():
        for case, devices in ((rule, gpus), (f"{rule}, some on the host", [*gpus, "cpu"])):
            rng = np.random.default_rng(1)
            expected = _arrays(rng)
            state = optimizer.init(expected)
            places = [devices[k % len(devices)] for k in range(len(_SHAPES))]
            parameters = [
                torch.nn.Parameter(torch.from_numpy(x.copy()).to(place))
                for x, place in zip(expected, places, strict=True)
            ]
            adapter = portopt_torch.TorchOptimizer(parameters, optimizer)
            for _ in range(_STEPS):
                new = _arrays(rng)
                for p, x in zip(parameters, new, strict=True):
                    p.grad = torch.from_numpy(x).to(p.device)
                adapter.step()
                with portopt.interpreted(), np.errstate(all="ignore"):
                    expected, state = optimizer.apply(expected, new, state)
            wrong = {
                k: d
                for k, (p, e) in enumerate(zip(parameters, expected, strict=True))
                if (d := differing(p.detach().cpu().numpy(), e))
            }
            found[case] = {"differs": wrong} if wrong else "same"
    found["capture"] = _refused_capture(torch, portopt_torch, gpus)
    return found


def _refused_capture(torch: Any, portopt_torch: Any, gpus: list[str]) -> str:
    """Return the words with which a capture on one device refuses a step on two."""
    parameters = [torch.nn.Parameter(torch.ones(5, device=device)) for device in gpus[:2]]
    for p in parameters:
        p.grad = torch.ones_like(p)
    adapter = portopt_torch.TorchOptimizer(parameters, portopt.Adam(), capturable=True)
    adapter.step()
    torch.cuda.synchronize()
    before = [p.detach().cpu() for p in parameters]
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            adapter.step()
    except RuntimeError as error:
        same = all(torch.equal(p.detach().cpu(), b) for p, b in zip(parameters, before, strict=True))
        return str(error)[:200] if same else f"differs: {error}"
    return "was captured: differs"


@contextlib.contextmanager
def _streams(name: str, devices: list[str]) -> Iterator[None]:
    """Let each device have a stream of its own for a while."""
    library = importlib.import_module(name)
    with contextlib.ExitStack() as stack:
        for device in devices:
            number = int(device.partition(":")[2])
            if name == "torch":
                stack.enter_context(library.cuda.stream(library.cuda.Stream(device)))
            else:
                with library.cuda.Device(number):
                    stack.enter_context(library.cuda.Stream(non_blocking=True))
        yield


def _let_wait(name: str, device: str) -> None:
    """Keep a device's stream busy for a while, so that others come before it."""
    library, number = importlib.import_module(name), int(device.partition(":")[2])
    if name == "torch":
        with library.cuda.device(number):
            library.cuda._sleep(_BUSY_CYCLES)
    else:
        with library.cuda.Device(number):
            a = library.ones((2000, 2000), "float32")
            for _ in range(20):
                a = library.sqrt(a)
