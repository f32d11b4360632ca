"""Whose steps are timed: portopt's, and those of the libraries themselves."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import portopt
from gpu_check.measuring import Step
from gpu_check.options import Options
from gpu_check.targets import torch_device
from portopt_tools.bench.contenders import PEERS, counterpart, why_not_compared

Shapes = Sequence[tuple[int, ...]]
_HAND_WRITTEN_ADAM = """
    const float gg = g; m = m + (1 - b1) * (gg - m); v = b2 * v + (1 - b2) * gg * gg;
    p = p - lr * m / (sqrtf(v) * c + eps);
"""


class Contender(NamedTuple):
    """Attributes: name; make: returns a step, and what waits for it, if the device's events do not."""

    name: str
    make: Callable[[], tuple[Step, Callable[[], object] | None]]


def contenders(options: Options, rule: str, optimizer: portopt.Optimizer, shapes: Shapes) -> Iterator[Contender]:
    """Yield who steps parameters of these shapes by a rule."""
    if "torch" in options.backends:
        yield Contender("portopt torch", lambda: (_torch_step(options, optimizer, shapes), None))
        if rule == "Adam":
            yield Contender("portopt TorchOptimizer", lambda: (_adapter(options, optimizer, shapes), None))
        for kind in ("foreach", "fused") if _compared("torch", optimizer) else ():
            make = functools.partial(_native, options, optimizer, shapes, kind)
            yield Contender(f"torch.optim {kind}", lambda make=make: (make(), None))  # type: ignore[misc]  # a default argument
    if "cupy" in options.backends and options.on_gpu:
        yield Contender("portopt cupy", lambda: (_cupy_step(optimizer, shapes), None))
        if rule == "Adam":
            yield Contender("cupy ElementwiseKernel", lambda: (_elementwise(shapes), None))
    if "jax" in options.backends:
        yield Contender("portopt jax jit", lambda: _jax_step(options, optimizer, shapes))
        if rule == "Adam":
            yield Contender("portopt jax in XLA", lambda: _jax_step(options, optimizer, shapes, in_xla=True))
            # What JAX takes to pass these arrays on.
            yield Contender("portopt jax no step", lambda: _no_jax_step(options, optimizer, shapes))
        if _compared("optax", optimizer):
            yield Contender("optax jit", lambda: _optax_step(options, optimizer, shapes))


def _compared(peer: str, optimizer: portopt.Optimizer) -> bool:
    return why_not_compared(PEERS[peer], optimizer) is None


def _tensors(options: Options, shapes: Shapes) -> list[Any]:
    torch = importlib.import_module("torch")
    generator = torch.Generator(device=torch_device(options)).manual_seed(1)
    return [torch.randn(s, device=torch_device(options), generator=generator) * 1e-2 for s in shapes]


def _in_place(optimizer: portopt.Optimizer, params: Any, gradients: Any) -> Step:
    state = optimizer.init(params)

    def step() -> None:
        nonlocal state
        state = optimizer.apply_(params, gradients, state)

    return step


def _torch_step(options: Options, optimizer: portopt.Optimizer, shapes: Shapes) -> Step:
    return _in_place(optimizer, _tensors(options, shapes), _tensors(options, shapes))


def _parameters(options: Options, shapes: Shapes) -> list[Any]:
    torch = importlib.import_module("torch")
    parameters = [torch.nn.Parameter(tensor) for tensor in _tensors(options, shapes)]
    for parameter, gradient in zip(parameters, _tensors(options, shapes), strict=True):
        parameter.grad = gradient
    return parameters


def _adapter(options: Options, optimizer: portopt.Optimizer, shapes: Shapes) -> Step:
    adapter = importlib.import_module("portopt_torch").TorchOptimizer(_parameters(options, shapes), optimizer)
    step: Step = adapter.step
    return step


def _native(options: Options, optimizer: portopt.Optimizer, shapes: Shapes, kind: str) -> Step:
    found = counterpart(PEERS["torch"], optimizer)
    step: Step = found.factory(_parameters(options, shapes), **found.arguments, **{kind: True}).step
    return step


def _cupy_values(shape: tuple[int, ...]) -> Any:
    cupy = importlib.import_module("cupy")
    return (cupy.sin(cupy.arange(math.prod(shape), dtype=np.float32)) * np.float32(0.01)).reshape(shape)


def _cupy_step(optimizer: portopt.Optimizer, shapes: Shapes) -> Step:
    return _in_place(optimizer, list(map(_cupy_values, shapes)), list(map(_cupy_values, shapes)))


def _elementwise(shapes: Shapes) -> Step:
    cupy = importlib.import_module("cupy")
    arguments = "T g, T lr, T b1, T b2, T c, T eps"
    kernel = cupy.ElementwiseKernel(arguments, "T p, T m, T v", _HAND_WRITTEN_ADAM, "adam")
    scalars = tuple(map(np.float32, (1e-3, 0.9, 0.999, 1.0, 1e-8)))
    rows = [(_cupy_values(s), _cupy_values(s), cupy.zeros(s, np.float32), cupy.zeros(s, np.float32)) for s in shapes]

    def step() -> None:
        for p, g, m, v in rows:
            kernel(g, *scalars, p, m, v)

    return step


def _jax_arrays(options: Options, shapes: Shapes) -> tuple[list[Any], list[Any]]:
    jax = importlib.import_module("jax")
    device = jax.devices("cuda" if options.on_gpu else "cpu")[0]

    def arrays(seed: int) -> list[Any]:
        keys = (jax.random.key(seed + i) for i in range(len(shapes)))
        values = (jax.random.normal(key, s) * 1e-2 for key, s in zip(keys, shapes, strict=True))
        return [jax.device_put(value, device) for value in values]

    return arrays(0), arrays(1000)


def _jitted(update: Callable[..., Any], params: Any, gradients: Any, state: Any) -> tuple[Step, Callable[[], object]]:
    jax = importlib.import_module("jax")
    run = jax.jit(update, donate_argnums=(0, 2))

    def step() -> None:
        nonlocal params, state
        params, state = run(params, gradients, state)

    return step, lambda: jax.block_until_ready(params)


def _jax_step(
    options: Options, optimizer: portopt.Optimizer, shapes: Shapes, *, in_xla: bool = False
) -> tuple[Step, Callable[[], object]]:
    without_kernels = importlib.import_module("portopt_jax._kernel").without_kernels
    params, gradients = _jax_arrays(options, shapes)

    def update(p: Any, g: Any, s: Any) -> Any:
        with without_kernels() if in_xla else contextlib.nullcontext():
            return optimizer.apply(p, g, s)

    return _jitted(update, params, gradients, optimizer.init(params))


def _no_jax_step(options: Options, optimizer: portopt.Optimizer, shapes: Shapes) -> tuple[Step, Callable[[], object]]:
    params, gradients = _jax_arrays(options, shapes)
    return _jitted(lambda p, g, s: (p, s), params, gradients, optimizer.init(params))


def _optax_step(options: Options, optimizer: portopt.Optimizer, shapes: Shapes) -> tuple[Step, Callable[[], object]]:
    optax, found = importlib.import_module("optax"), counterpart(PEERS["optax"], optimizer)
    made = found.factory(**found.arguments)
    params, gradients = _jax_arrays(options, shapes)

    def update(p: Any, g: Any, s: Any) -> tuple[Any, Any]:
        changes, s = made.update(g, s, p)
        return optax.apply_updates(p, changes), s

    return _jitted(update, params, gradients, made.init(params))
