"""Time rules that reduce or multiply beside simpler rules, beside what they cannot do without, and beside other libraries.

Usage: python scripts/time_reductions.py [--peers DIR] [SUBJECT ...], of the subjects in `SUBJECTS`; all if none is named.
DIR is where timm and pytorch_optimizer are, such as `pip install --no-deps --target DIR timm pytorch_optimizer` puts them.

Everything is float32, in one process, in turns; printed are medians, and how many times the first the others take.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch

import portopt
from portopt.kernels.host import memory
from portopt_tools.bench.measuring import Step, alternate, median, steps_per_sample
from portopt_tools.bench.shapes import SHAPE_SETS
from portopt_tools.bench.wording import duration
from portopt_torch import _products as torch_products

Shapes = Sequence[tuple[int, ...]]
TEN_MILLION = [(10_000_000,)]
NARROW = [(256,)] * 1000
MATRICES = [(768, 768), (768, 2304), (3072, 768)]
REPEATS = 9


def arrays(shapes: Shapes, seed: int) -> list[Any]:
    pattern = np.random.default_rng(seed).standard_normal(1 << 16, np.float32)
    return [np.resize(pattern, shape) for shape in shapes]


def on_numpy(opt: portopt.Optimizer, shapes: Shapes) -> Step:
    return _in_place(opt, arrays(shapes, 0), arrays(shapes, 1))


def on_torch(opt: portopt.Optimizer, shapes: Shapes) -> Step:
    return _in_place(opt, *([torch.from_numpy(a) for a in arrays(shapes, seed)] for seed in (0, 1)))


def _in_place(opt: portopt.Optimizer, params: Any, grads: Any) -> Step:
    states = [opt.init(params)]

    def step() -> None:
        states[0] = opt.apply_(params, grads, states[0])

    return step


def of_torch(make: Callable[[Any], Any], shapes: Shapes, before: Callable[[Any], object] = lambda params: None) -> Step:
    """Return a step of an optimizer of torch's kind; `before` is called with the parameters first."""
    params = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(shapes, 0)]
    for parameter, gradient in zip(params, arrays(shapes, 1), strict=True):
        parameter.grad = torch.from_numpy(gradient)
    optimizer = make(params)

    def step() -> None:
        before(params)
        optimizer.step()

    return step


def of_optax(transformation: Any, shapes: Shapes) -> Step:
    def update(params: Any, grads: Any, state: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(update, donate_argnums=(0, 2))
    params, grads = (jax.tree.map(jax.numpy.asarray, arrays(shapes, seed)) for seed in (0, 1))
    current = [params, jax.tree.map(lambda a: a.copy(), transformation.init(params))]

    def step() -> None:
        current[:] = jax.tree.map(lambda a: a.block_until_ready(), run(current[0], grads, current[1]))

    return step


def installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"NOT RUN beside {name}, which is not installed")
        return None


def lambs(shapes: Shapes) -> Iterator[tuple[str, Step]]:
    if timm := installed("timm.optim.lamb"):
        yield "timm", of_torch(lambda params: timm.Lamb(params, lr=0.001), shapes)
    if others := installed("pytorch_optimizer"):
        yield "pytorch_optimizer", of_torch(lambda params: others.Lamb(params, lr=0.001), shapes)
    yield "optax", of_optax(optax.lamb(0.001), shapes)


def lamb() -> Iterator[tuple[str, Step]]:
    yield "LAMB, NumPy, 10M", on_numpy(portopt.LAMB(), TEN_MILLION)
    yield "LAMB, torch", on_torch(portopt.LAMB(), TEN_MILLION)
    yield "Adam, NumPy", on_numpy(portopt.Adam(), TEN_MILLION)
    yield from lambs(TEN_MILLION)


def narrow() -> Iterator[tuple[str, Step]]:
    yield "LAMB, NumPy, 1000 x 256", on_numpy(portopt.LAMB(), NARROW)
    yield "LAMB, torch", on_torch(portopt.LAMB(), NARROW)
    yield from lambs(NARROW)


def clipping() -> Iterator[tuple[str, Step]]:
    yield "Adam with clipnorm, NumPy, 10M", on_numpy(portopt.Adam(clipnorm=1.0), TEN_MILLION)
    yield "Adam with clipnorm, torch", on_torch(portopt.Adam(clipnorm=1.0), TEN_MILLION)
    yield "Adam, NumPy", on_numpy(portopt.Adam(), TEN_MILLION)
    yield (
        "torch fused after clip_grad_norm_",
        of_torch(
            lambda params: torch.optim.Adam(params, fused=True),
            TEN_MILLION,
            lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0),
        ),
    )


def adafactor() -> Iterator[tuple[str, Step]]:
    shapes = SHAPE_SETS["gpt2-small"].shapes
    yield "Adafactor, NumPy, GPT-2 small", on_numpy(portopt.Adafactor(dialect="optax"), shapes)
    yield "Adafactor of torch's formula, torch", on_torch(portopt.Adafactor(), shapes)
    yield "torch.optim", of_torch(torch.optim.Adafactor, shapes)
    yield "optax", of_optax(optax.adafactor(0.001), shapes)


def muon() -> Iterator[tuple[str, Step]]:
    yield "Muon, NumPy, 768 x 768, 768 x 2304, 3072 x 768", on_numpy(portopt.Muon(), MATRICES)
    yield "Muon, torch", on_torch(portopt.Muon(), MATRICES)
    yield "float32 iterations alone, NumPy", newton_schulz(arrays(MATRICES, 0))
    yield "float32 iterations alone, torch", newton_schulz([torch.from_numpy(a) for a in arrays(MATRICES, 0)])


def products_numpy() -> Iterator[tuple[str, Step]]:
    yield (
        "float64 products of Muon alone, NumPy",
        integer_products(np.matmul, lambda a, out: np.matmul(a, a.mT, out=out)),
    )
    yield "Muon, NumPy", on_numpy(portopt.Muon(), MATRICES)


def products_torch() -> Iterator[tuple[str, Step]]:
    def halved(a: Any, out: Any) -> None:
        torch_products.lower_half(torch.from_numpy(a))

    def multiply(a: Any, b: Any, out: Any) -> None:
        torch.matmul(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))

    alone = integer_products(multiply, halved)

    def step() -> None:
        with memory.reused():
            alone()

    yield "float64 products of Muon alone, torch", step
    yield "Muon, torch", on_torch(portopt.Muon(), MATRICES)


def integer_products(multiply: Callable[..., Any], multiply_by_transpose: Callable[..., Any]) -> Step:
    """Return the calls of the BLAS of a step of Muon, and nothing else."""
    operands = []
    for m, n in (sorted(shape) for shape in MATRICES):
        x, square = np.ones((m, n)), np.ones((m, m))
        operands.append((x, square, np.empty((m, m)), np.empty((m, n))))

    def step() -> None:
        for x, square, squared, product in operands:
            for _ in range(5):
                multiply_by_transpose(x, out=squared)
                multiply_by_transpose(square, out=squared)
                multiply(square, x, out=product)

    return step


def newton_schulz(matrices: Sequence[Any]) -> Step:
    def step() -> None:
        for matrix in matrices:
            x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
            x = x / 1000
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * (gram @ gram)) @ x

    return step


SUBJECTS_IN_ORDER = (lamb, narrow, clipping, adafactor, muon, products_numpy, products_torch)
SUBJECTS = {subject.__name__: subject for subject in SUBJECTS_IN_ORDER}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], metavar="SUBJECT")
    parser.add_argument("--peers", metavar="DIR")
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    for name in arguments.subjects or SUBJECTS:
        names, steps = zip(*SUBJECTS[name](), strict=True)
        counts = [steps_per_sample(step, 0.05) for step in steps]
        samples = alternate(steps, counts, REPEATS, lambda: None)
        first = median(samples[0])
        for label, taken in zip(names, samples, strict=True):
            print(f"{label}: {duration(median(taken))}, {median(taken) / first:.2f}", flush=True)


if __name__ == "__main__":
    main()
