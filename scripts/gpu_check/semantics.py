"""What steps do beside their own arithmetic: streams, graphs, threads, huge arrays, memory, products of matrices and totals."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import portopt
from gpu_check.comparison import differing
from gpu_check.options import Options
from gpu_check.pieces import compare_products, compare_totals
from gpu_check.targets import synchronize, torch_device
from gpu_check.workers import Keep, failure, last_line, run_worker

_LIMIT = 30
_TOGETHER = 6
_WORDS = 200_003
_BUSY_CYCLES = 20_000_000


def run(options: Options) -> Mapping[str, Any]:
    """Return what each case found; a case that says so itself is counted as wrong."""
    names = [
        name
        for name, case in _CASES.items()
        if options.chosen(name) and name.split()[0] in options.backends and (options.on_gpu or not case.needs_gpu)
    ]
    alone = [name for name in names if _CASES[name].alone]
    together = [name for name in names if name not in alone]
    with concurrent.futures.ThreadPoolExecutor(min(_TOGETHER, options.jobs)) as pool:
        results = pool.map(lambda name: run_worker(options, "semantics", {"name": name}, _LIMIT), together)
        found = dict(zip(together, results, strict=True))
    for name in alone:
        found[name] = run_worker(options, "semantics", {"name": name}, _LIMIT)
    wrong = []
    for name, result in found.items():
        text = (
            last_line(result["text"]) if "text" in result else result.get("skipped") or json.dumps(result.get("found"))
        )
        if "text" in result or result.get("wrong"):
            wrong.append(name)
        print(f"  {name}: {'WRONG: ' * (name in wrong)}{text[:400]}", flush=True)
    (options.out / "semantics.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return {**found, "wrong": wrong}


def work(options: Options, argument: Mapping[str, Any], keep: Keep) -> None:
    """Run one case."""
    try:
        found = _CASES[argument["name"]].run(options)
        keep({"found": found, "wrong": "differs" in json.dumps(found) or "captured" in found})
    except Exception:
        keep({"text": failure()})


class _Case:
    def __init__(self, run: Callable[[Options], Any], *, needs_gpu: bool = False, alone: bool = False) -> None:
        self.run, self.needs_gpu, self.alone = run, needs_gpu, alone


# What is expected ---------------------------------------------------------------------------------------------------


def _run_on_host(count: int = _WORDS, steps: int = 10, seed: int = 0) -> tuple[Any, list[Any]]:
    """Return a parameter and its gradients."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count, np.float32), list(rng.standard_normal((steps, count), np.float32))


def _compare(actual: Any, start: Any, gradients: list[Any]) -> Any:
    """Compare with Adam's steps in NumPy."""
    optimizer, p = portopt.Adam(0.01), start.copy()
    state = optimizer.init(p)
    for gradient in gradients:
        state = optimizer.apply_(p, gradient, state)
    found = differing(actual, p)
    return "same" if found is None else {"differs": found}


# torch --------------------------------------------------------------------------------------------------------------


def _torch_stream(options: Options) -> Any:
    """Gradients that come late on a stream of one's own: a step must not run ahead of them, nor wait on the host."""
    torch = importlib.import_module("torch")
    start, gradients = _run_on_host()
    optimizer, device = portopt.Adam(0.01), torch_device(options)
    on_gpu = options.on_gpu
    with torch.cuda.stream(torch.cuda.Stream()) if on_gpu else contextlib.nullcontext():
        p, g = torch.from_numpy(start.copy()).to(device), torch.zeros(start.size, device=device)
        pinned = [torch.from_numpy(x).pin_memory() if on_gpu else torch.from_numpy(x) for x in gradients]
        state, begin = optimizer.init([p]), time.perf_counter()
        for x in pinned:
            if on_gpu:
                torch.cuda._sleep(_BUSY_CYCLES)
            g.copy_(x, non_blocking=True)
            state = optimizer.apply_([p], [g], state)
        returned = time.perf_counter() - begin
        synchronize(options)
        done = time.perf_counter() - begin
    return {"bits": _compare(p.cpu().numpy(), start, gradients), "returned_ms": returned * 1e3, "done_ms": done * 1e3}


def _torch_two_streams(options: Options) -> Any:
    """What a step keeps on the device is uploaded on one busy stream, and used on another."""
    torch = importlib.import_module("torch")
    optimizer, rng = portopt.Adam(0.01), np.random.default_rng(0)
    starts, gradients = rng.standard_normal((2, 3, 1_000_003), np.float32)

    def put(arrays: Any) -> list[Any]:
        return [torch.from_numpy(x.copy()).to(torch_device(options)) for x in arrays]

    warm = put(np.zeros((2, 1000), np.float32))
    optimizer.apply_(warm, put(np.zeros((2, 1000), np.float32)), optimizer.init(warm))
    first, second, given = put(starts), put(starts), put(gradients)
    states = [optimizer.init(first), optimizer.init(second)]
    torch.cuda.synchronize()
    busy, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(_BUSY_CYCLES * 20)
        optimizer.apply_(first, given, states[0])
    with torch.cuda.stream(other):
        optimizer.apply_(second, given, states[1])
    torch.cuda.synchronize()
    return {
        name: [_compare(p.cpu().numpy(), start, [g]) for p, start, g in zip(params, starts, gradients, strict=True)]
        for name, params in (("busy", first), ("other", second))
    }


def _torch_graph(options: Options) -> Any:
    """A step inside the capture of a graph is refused, and changes nothing."""
    torch = importlib.import_module("torch")
    portopt_torch = importlib.import_module("portopt_torch")
    start, gradients = _run_on_host(steps=4)
    optimizer = portopt.Adam(0.01)
    p, g = torch.from_numpy(start.copy()).cuda(), torch.from_numpy(gradients[0]).cuda()
    state = optimizer.init([p])
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()).cuda())
    parameter.grad = g.clone()
    adapter = portopt_torch.TorchOptimizer([parameter], optimizer)
    side = torch.cuda.Stream()
    for x in gradients[:2]:
        g.copy_(torch.from_numpy(x))
        state = optimizer.apply_([p], [g], state)
    torch.cuda.synchronize()
    found: dict[str, Any] = {}
    for name, step in (("apply_", lambda: optimizer.apply_([p], [g], state)), ("TorchOptimizer", adapter.step)):
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side):
                step()
            found["captured"] = name
        except RuntimeError as error:
            found[name] = str(error)
    torch.cuda.synchronize()
    for x in gradients[2:]:
        g.copy_(torch.from_numpy(x))
        state = optimizer.apply_([p], [g], state)
    found["bits afterwards"] = _compare(p.cpu().numpy(), start, gradients)
    found["parameter"] = _compare(parameter.detach().cpu().numpy(), start, [])
    return found


def _torch_large(options: Options) -> Any:
    """More than 2**31 elements in one array: is its end updated?"""
    torch = importlib.import_module("torch")
    small = options.small or not options.on_gpu
    count = (1 << 16) + 3 if small else (1 << 31) + 4099
    if not small and torch.cuda.mem_get_info()[0] < 40e9:
        return "NOT RUN: not enough memory"
    device = torch_device(options)
    p = torch.ones(count, dtype=torch.bfloat16, device=device)
    g = torch.full((count,), 0.5, dtype=torch.bfloat16, device=device)
    optimizer = portopt.SGD(0.5)
    optimizer.apply_([p], [g], optimizer.init([p], slot_dtype="bfloat16"))
    wrong = int((p != 0.75).sum().item())
    return {"elements": count, "wrong": f"{wrong} differs" if wrong else 0}


def _torch_memory(options: Options) -> Any:
    """Bytes that a step takes beyond its arrays."""
    torch = importlib.import_module("torch")
    count, found = _count(options), {}
    for name, optimizer in (("Adam", portopt.Adam()), ("Adam, clipnorm", portopt.Adam(clipnorm=1.0))):
        p, g = ([torch.randn(count, device=torch_device(options))] for _ in range(2))
        state = optimizer.apply_(p, g, optimizer.init(p))
        if not options.on_gpu:
            continue
        for how in ("apply_", "apply"):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = getattr(optimizer, how)(p, g, state)
            torch.cuda.synchronize()
            found[f"{name} {how} extra MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
            state = result if how == "apply_" else state
            del result
    return found


# CuPy ---------------------------------------------------------------------------------------------------------------


def _cupy_stream(options: Options) -> Any:
    """As for torch; uploads from pageable memory make CuPy wait for its stream by themselves."""
    cupy = importlib.import_module("cupy")
    start, gradients = _run_on_host()
    optimizer, side = portopt.Adam(0.01), cupy.cuda.Stream(non_blocking=True)
    text = 'extern "C" __global__ void spin(long long n) { long long t = clock64(); while (clock64() - t < n); }'
    spin = cupy.RawKernel(text, "spin")
    with side:
        p, g = cupy.asarray(start), cupy.zeros(start.size, np.float32)
        state, begin = optimizer.init([p]), time.perf_counter()
        for x in gradients:
            spin((1,), (1,), (np.int64(_BUSY_CYCLES),))
            g.set(x)
            state = optimizer.apply_([p], [g], state)
        returned = time.perf_counter() - begin
        side.synchronize()
        done = time.perf_counter() - begin
    return {"bits": _compare(cupy.asnumpy(p), start, gradients), "returned_ms": returned * 1e3, "done_ms": done * 1e3}


def _cupy_graph(options: Options) -> Any:
    """A step inside the capture of a graph is refused, and changes nothing."""
    cupy = importlib.import_module("cupy")
    start, gradients = _run_on_host(steps=4)
    p, g, optimizer = cupy.asarray(start), cupy.asarray(gradients[0]), portopt.Adam(0.01)
    state = optimizer.init([p])
    for x in gradients[:2]:
        g.set(x)
        state = optimizer.apply_([p], [g], state)
    cupy.cuda.Device(0).synchronize()
    found: dict[str, Any] = {}
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            optimizer.apply_([p], [g], state)
            found["captured"] = "apply_"
        except RuntimeError as error:
            found["apply_"] = str(error)
        finally:
            stream.end_capture()
    for x in gradients[2:]:
        g.set(x)
        state = optimizer.apply_([p], [g], state)
    found["bits afterwards"] = _compare(cupy.asnumpy(p), start, gradients)
    return found


# Both ---------------------------------------------------------------------------------------------------------------


def _threads(name: str, options: Options) -> Any:
    """Four threads, each with a stream and arrays of its own."""
    backend: Any = portopt.get_backend("numpy" if name == "cupy" and not options.on_gpu else name)
    device, found = "cuda:0" if options.on_gpu else "cpu", {}
    backend.version()  # imports the library

    def work(seed: int) -> None:
        try:
            start, gradients = _run_on_host(50_000 + seed, 30, seed)
            optimizer = portopt.Adam(0.01)
            with _stream(name, options):
                p = [backend.from_numpy(start, device)]
                state = optimizer.init(p)
                for g in gradients:
                    state = optimizer.apply_(p, [backend.from_numpy(g, device)], state)
                found[seed] = _compare(backend.to_numpy(p[0]), start, gradients)
        except Exception:
            found[seed] = {"differs": failure()}

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def _stream(name: str, options: Options) -> AbstractContextManager[Any]:
    if not options.on_gpu:
        return contextlib.nullcontext()
    cuda = importlib.import_module(name).cuda
    stream: AbstractContextManager[Any] = (
        cuda.stream(cuda.Stream()) if name == "torch" else cuda.Stream(non_blocking=True)
    )
    return stream


def _count(options: Options) -> int:
    return 50_000_000 if options.on_gpu and not options.small else 50_000


def _zero_gradients(name: str, options: Options) -> Any:
    """Milliseconds of a step on random gradients and on zeros: a kernel may take another way for what is tiny."""
    from gpu_check.measuring import measure

    return {
        f"{kind} gradients ms": measure(options, _step_on(name, options, zero=kind == "zero"))["ms"]
        for kind in ("random", "zero")
    }


def _step_on(name: str, options: Options, *, zero: bool) -> Callable[[], None]:
    backend: Any = portopt.get_backend("numpy" if name == "cupy" and not options.on_gpu else name)
    device, rng = "cuda:0" if options.on_gpu else "cpu", np.random.default_rng(0)
    p, g = (backend.from_numpy(rng.standard_normal(_count(options), np.float32), device) for _ in range(2))
    if zero:
        g[...] = 0
    optimizer = portopt.Adam()
    state = optimizer.init(p)

    def step() -> None:
        nonlocal state
        state = optimizer.apply_(p, g, state)

    return step


def _cases() -> Iterator[tuple[str, _Case]]:
    yield "torch stream", _Case(_torch_stream)
    yield "torch two streams", _Case(_torch_two_streams, needs_gpu=True)
    yield "torch graph", _Case(_torch_graph, needs_gpu=True)
    yield "torch threads", _Case(lambda options: _threads("torch", options))
    yield "torch products", _Case(lambda options: compare_products("torch", options))
    yield "torch totals", _Case(lambda options: compare_totals("torch", options))
    yield "torch large", _Case(_torch_large, alone=True)
    yield "torch memory", _Case(_torch_memory, alone=True)
    yield "torch zero gradients", _Case(lambda options: _zero_gradients("torch", options), alone=True)
    yield "cupy stream", _Case(_cupy_stream, needs_gpu=True)
    yield "cupy graph", _Case(_cupy_graph, needs_gpu=True)
    yield "cupy threads", _Case(lambda options: _threads("cupy", options))
    yield "cupy products", _Case(lambda options: compare_products("cupy", options))
    yield "cupy totals", _Case(lambda options: compare_totals("cupy", options))
    yield "cupy zero gradients", _Case(lambda options: _zero_gradients("cupy", options), alone=True)


_CASES = dict(_cases())
