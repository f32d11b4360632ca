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
from gpu_check.several import compare_adapter, compare_steps
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
        keep({"found": found, "wrong": "differs" in json.dumps(found)})
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
    """Ten repetitions of a step that a graph holds, with new gradients each, and eager steps before and after."""
    torch = importlib.import_module("torch")

    def run(optimizer: Any, start: Any, gradients: Any) -> Any:
        p, g = ([torch.from_numpy(x.copy()).cuda() for x in arrays] for arrays in (start, gradients[0]))
        state, side, graph = optimizer.init(p, capturable=True), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            state = optimizer.apply_(p, g, state)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            optimizer.apply_(p, g, state)
        for k, arrays in enumerate(gradients[1:]):
            for target, x in zip(g, arrays, strict=True):
                target.copy_(torch.from_numpy(x))
            if k < _REPETITIONS:
                graph.replay()
            else:
                state = optimizer.apply_(p, g, state)
        return [x.cpu().numpy() for x in p], optimizer.from_capturable(state)

    found: dict[str, Any] = _compare_graphs(run)
    optimizer, p = portopt.Adam(), torch.ones(5, device="cuda")
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.apply_(p, p.clone(), optimizer.init(p))
        found["a state on the host"] = "was captured: differs"
    except RuntimeError as error:
        found["a state on the host"] = str(error)[:60]
    return found


_REPETITIONS = 10


def _rules() -> Mapping[str, Any]:
    cosine = portopt.schedules.CosineDecay(0.1, 20)
    return {
        "SGD momentum": portopt.SGD(0.1, momentum=0.9),
        "Adam cosine": portopt.Adam(cosine),
        "Nadam": portopt.Nadam(),
        "Adam clipnorm": portopt.Adam(cosine, clipnorm=0.5),
        "Adafactor": portopt.Adafactor(),
        "NoisySGD": portopt.NoisySGD(),
        "Prodigy": portopt.Prodigy(),
        "Muon": portopt.Muon(),
    }


def _compare_graphs(run: Callable[[Any, Any, Any], Any]) -> dict[str, Any]:
    """Compare what `run` makes of an optimizer, parameters and the gradients of twelve steps with NumPy's steps."""
    rng, found = np.random.default_rng(0), dict[str, Any]()
    shapes = ((20_003,), (30, 70), (64,))
    start = [rng.standard_normal(shape, np.float32) for shape in shapes]
    gradients = [[rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(_REPETITIONS + 2)]
    for name, optimizer in _rules().items():
        try:
            actual, after = run(optimizer, start, gradients)
            expected, state = start, optimizer.init(start)
            with portopt.interpreted(), np.errstate(all="ignore"):
                for arrays in gradients:
                    expected, state = optimizer.apply(expected, arrays, state)
            wrong: dict[int, Any] = {
                k: d for k, pair in enumerate(zip(actual, expected, strict=True)) if (d := differing(*pair))
            }
            scalars = {n: (after.slots[n], state.slots[n]) for n in optimizer.scalar_slots}
            if after.step != state.step or any(a != b for a, b in scalars.values()):
                wrong[-1] = f"step {after.step} for {state.step}, scalars {scalars}"
            found[name] = {"differs": wrong} if wrong else "same"
        except Exception:
            found[name] = {"differs": failure()}
    return found


def _torch_graph_network(options: Options) -> Any:
    """A network trained by two graphs, of two batch sizes, that hold forward and backward pass and `TorchOptimizer`'s step."""
    torch, portopt_torch = importlib.import_module("torch"), importlib.import_module("portopt_torch")
    found = {}
    for name, rule in _rules().items():
        try:
            found[name] = _train_by_graphs(torch, portopt_torch, rule, name)
        except Exception:
            found[name] = {"differs": failure()}
    return found


def _train_by_graphs(torch: Any, portopt_torch: Any, rule: Any, name: str) -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).cuda()
    parameters, criterion = list(model.parameters()), torch.nn.MSELoss()
    has_tensor = name == "SGD momentum"
    optimizer = portopt_torch.TorchOptimizer(
        parameters, rule, capturable=True, lr=torch.tensor(0.1, device="cuda") if has_tensor else None
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if has_tensor else None
    expected, state = [p.detach().cpu().numpy().copy() for p in parameters], None
    state = rule.init(expected)

    def train(x: Any, y: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(model(x), y).backward()
        optimizer.step()

    def follow(gradients: list[Any]) -> None:
        """Let NumPy do the step with the gradients that there were, and the scheduler its own."""
        nonlocal expected, state
        given = [g.cpu().numpy() for g in gradients]
        options = {"learning_rate": float(optimizer.param_groups[0]["lr"])} if has_tensor else {}
        with portopt.interpreted(), np.errstate(all="ignore"):
            expected, state = rule.apply(expected, given, state, **options)
        if scheduler is not None:
            scheduler.step()

    batches = [tuple(torch.randn(n, k, device="cuda") for k in (20, 1)) for n in (32, 8)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in batches:
            train(*batch)
            follow([p.grad for p in parameters])
    torch.cuda.current_stream().wait_stream(side)
    graphs = []
    for batch in batches:
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            train(*batch)
        graphs.append((graph, batch, [p.grad for p in parameters]))
    for k in range(_REPETITIONS):
        graph, batch, gradients = graphs[k % 3 % 2]
        for x in batch:
            x.copy_(torch.randn_like(x))
        graph.replay()
        follow(gradients)
    train(*batches[0])
    follow([p.grad for p in parameters])
    saved = optimizer.state_dict()["state"][0]["step"]
    wrong: dict[int, Any] = {
        k: d
        for k, (p, e) in enumerate(zip(parameters, expected, strict=True))
        if (d := differing(p.detach().cpu().numpy(), e))
    }
    if int(saved) != state.step:
        wrong[-1] = f"step {int(saved)} for {state.step}"
    return {"differs": wrong} if wrong else "same"


def _torch_graph_time(options: Options) -> Any:
    """Microseconds of a step that a graph repeats, of portopt and of torch's fused optimizer."""
    torch, portopt_torch = importlib.import_module("torch"), importlib.import_module("portopt_torch")
    found = {}
    for count, size in ((200, 256), (1000, 256), (10, 1_000_000)):
        for name in ("portopt", "torch fused", "torch foreach"):
            parameters = [torch.nn.Parameter(torch.ones(size, device="cuda")) for _ in range(count)]
            for p in parameters:
                p.grad = torch.ones_like(p)
            if name == "portopt":
                optimizer: Any = portopt_torch.TorchOptimizer(parameters, portopt.Adam(), capturable=True)
            else:
                optimizer = torch.optim.Adam(parameters, capturable=True, **{name.split()[1]: True})
            optimizer.step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            times = []
            for _ in range(5):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(20):
                    graph.replay()
                torch.cuda.synchronize()
                times.append((time.perf_counter() - begin) / 20 * 1e6)
            found[f"{count} x {size} {name} us"] = round(sorted(times)[2], 1)
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
    """As for torch; other arrays take what memory they can between the repetitions."""
    cupy = importlib.import_module("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)

    def run(optimizer: Any, start: Any, gradients: Any) -> Any:
        with stream:
            p, g = ([cupy.asarray(x) for x in arrays] for arrays in (start, gradients[0]))
            state = optimizer.apply_(p, g, optimizer.init(p, capturable=True))
            stream.synchronize()
            stream.begin_capture()
            try:
                optimizer.apply_(p, g, state)
            finally:
                graph = stream.end_capture()
            others = []
            for k, arrays in enumerate(gradients[1:]):
                for target, x in zip(g, arrays, strict=True):
                    target.set(x)
                others += [cupy.full(n, -1, np.int64) for n in (1, 8, 64, 512, 4096)]
                if k < _REPETITIONS:
                    graph.launch(stream)
                else:
                    state = optimizer.apply_(p, g, state)
            stream.synchronize()
            return [cupy.asnumpy(x) for x in p], optimizer.from_capturable(state)

    return _compare_graphs(run)


# Both ---------------------------------------------------------------------------------------------------------------


def _counted_on_device(name: str) -> Any:
    """Eager steps of states whose number is on the device, planned from the third on; gradients are elsewhere in half of them."""
    backend: Any = portopt.get_backend(name)

    def run(optimizer: Any, start: Any, gradients: Any) -> Any:
        p, g = ([backend.from_numpy(x, "cuda:0") for x in arrays] for arrays in (start, gradients[0]))
        state, kept = optimizer.init(p, capturable=True), []
        for k, arrays in enumerate(gradients):
            new = [backend.from_numpy(x, "cuda:0") for x in arrays]
            if k % 2:
                kept.append(g)
                g = new
            else:
                for target, x in zip(g, new, strict=True):
                    backend.assign(target, x)
            state = optimizer.apply_(p, g, state)
        return [backend.to_numpy(x) for x in p], optimizer.from_capturable(state)

    return _compare_graphs(run)


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
    yield "torch graph network", _Case(_torch_graph_network, needs_gpu=True)
    yield "torch counted on the device", _Case(lambda options: _counted_on_device("torch"), needs_gpu=True)
    yield "torch graph time", _Case(_torch_graph_time, needs_gpu=True, alone=True)
    yield "torch threads", _Case(lambda options: _threads("torch", options))
    yield "torch products", _Case(lambda options: compare_products("torch", options))
    yield "torch totals", _Case(lambda options: compare_totals("torch", options))
    yield "torch several", _Case(lambda options: compare_steps("torch", options), needs_gpu=True)
    yield "torch several adapter", _Case(compare_adapter, needs_gpu=True)
    yield "torch large", _Case(_torch_large, alone=True)
    yield "torch memory", _Case(_torch_memory, alone=True)
    yield "torch zero gradients", _Case(lambda options: _zero_gradients("torch", options), alone=True)
    yield "cupy stream", _Case(_cupy_stream, needs_gpu=True)
    yield "cupy graph", _Case(_cupy_graph, needs_gpu=True)
    yield "cupy counted on the device", _Case(lambda options: _counted_on_device("cupy"), needs_gpu=True)
    yield "cupy threads", _Case(lambda options: _threads("cupy", options))
    yield "cupy products", _Case(lambda options: compare_products("cupy", options))
    yield "cupy totals", _Case(lambda options: compare_totals("cupy", options))
    yield "cupy several", _Case(lambda options: compare_steps("cupy", options), needs_gpu=True)
    yield "cupy zero gradients", _Case(lambda options: _zero_gradients("cupy", options), alone=True)


_CASES = dict(_cases())
