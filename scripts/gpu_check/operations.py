"""What single operations of each library do: where they flush, and how they round."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import portopt
from gpu_check.options import Options
from gpu_check.targets import torch_device
from gpu_check.workers import failure
from portopt.kernels.cuda import driver, nvrtc

PROBE = r"""
extern "C" __global__ void probe(const float *a, const float *b, float *r, int n)
{
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float x;
        asm volatile("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(x) : "f"(a[i]), "f"(b[i])); r[i] = x;
        asm volatile("mul.rn.f32 %0, %1, %2;" : "=f"(x) : "f"(a[i]), "f"(b[i])); r[n + i] = x;
        asm volatile("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(x) : "f"(a[i]), "f"(b[i]), "f"(-0.0f)); r[2 * n + i] = x;
        asm volatile("div.full.f32 %0, %1, %2;" : "=f"(x) : "f"(a[i]), "f"(b[i])); r[3 * n + i] = x;
        asm volatile("div.rn.f32 %0, %1, %2;" : "=f"(x) : "f"(a[i]), "f"(b[i])); r[4 * n + i] = x;
        asm volatile("div.rn.ftz.f32 %0, %1, %2;" : "=f"(x) : "f"(a[i]), "f"(b[i])); r[5 * n + i] = x;
    }
}
"""
_PROBED = ("mul.ftz", "mul", "fma.ftz", "div.full", "div.rn", "div.rn.ftz")
_SMALLEST_NORMAL = 2.0**-126


class _Operands:
    """Random numbers, and factors whose products lie just below the smallest normal number N.

    Attributes:
        a, b: random numbers.
        left, right: the factors.
        gap: where the product rounds to less than N: it is tiny before and after rounding.
        rounded_up: where it rounds to N: it is tiny before rounding only.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.a, self.b = rng.standard_normal((2, 1 << 18), dtype=np.float32)
        word = rng.integers((1 << 23) + 1, 1 << 24, 40_000)
        top = np.where(rng.random(word.size) < 0.5, 1 << 47, (1 << 47) - (1 << 22))
        self.left = (word * 2.0**-83).astype(np.float32)
        self.right = ((top - 1) // word * 2.0**-90).astype(np.float32)
        exact, half = self.left.astype(np.float64) * self.right.astype(np.float64), _SMALLEST_NORMAL * (1 - 2.0**-25)
        self.rounded_up = (exact >= half) & (exact < _SMALLEST_NORMAL)
        self.gap = (exact >= _SMALLEST_NORMAL * (1 - 2.0**-24)) & (exact < half)

    def zeros(self, products: Any) -> str:
        """Count the zeros in the gap, and among what rounds up to N."""
        counts = [f"{int((products[where] == 0).sum())}/{int(where.sum())}" for where in (self.gap, self.rounded_up)]
        return f"zero in the gap {counts[0]}, rounded up to N {counts[1]}"


def run(options: Options) -> Mapping[str, Any]:
    """Return what was found; whether portopt's own kernels may rely on it, the bits and conformance show."""
    operands, found = _Operands(), {}
    for name, operations in _libraries(options).items():
        try:
            multiply, divide, root = operations()
            found[f"{name}: a*b"] = operands.zeros(multiply(operands.left, operands.right))
            found[f"{name}: a/b wrong"] = _share(divide(operands.a, operands.b), operands.a / operands.b)
            positive = np.abs(operands.a)
            found[f"{name}: sqrt wrong"] = _share(root(positive), np.sqrt(positive))
        except ImportError as error:
            found[name] = f"NOT RUN: {error}"
        except Exception:
            found[name] = failure()
    for name, further in (("jax", _of_jax), ("cupy", _of_ptx)):
        if name in options.backends and (options.on_gpu or name == "jax"):
            try:
                found.update(further(operands))
            except Exception:
                found[f"{name}, further"] = failure()
    for key, value in found.items():
        print(f"  {key}: {str(value).strip()[-300:]}", flush=True)
    return found


def _libraries(options: Options) -> dict[str, Callable[[], tuple[Callable[..., Any], ...]]]:
    def torch() -> tuple[Callable[..., Any], ...]:
        torch = importlib.import_module("torch")
        put: Any = lambda x: torch.from_numpy(x.copy()).to(torch_device(options))  # noqa: E731  # two of three lines
        return (
            lambda a, b: (put(a) * put(b)).cpu().numpy(),
            lambda a, b: (put(a) / put(b)).cpu().numpy(),
            lambda a: torch.sqrt(put(a)).cpu().numpy(),
        )

    def jax() -> tuple[Callable[..., Any], ...]:
        jax = importlib.import_module("jax")
        compiled = (jax.jit(lambda a, b: a * b), jax.jit(lambda a, b: a / b), jax.jit(jax.numpy.sqrt))
        return tuple(lambda *x, f=f: np.asarray(f(*x)) for f in compiled)

    def cupy() -> tuple[Callable[..., Any], ...]:
        cupy = importlib.import_module("cupy")
        return (
            lambda a, b: cupy.asnumpy(cupy.asarray(a) * cupy.asarray(b)),
            lambda a, b: cupy.asnumpy(cupy.asarray(a) / cupy.asarray(b)),
            lambda a: cupy.asnumpy(cupy.sqrt(cupy.asarray(a))),
        )

    known = {"torch": torch, "jax": jax, **({"cupy": cupy} if options.on_gpu else {})}
    return {name: known[name] for name in options.backends if name in known}


def _share(actual: Any, expected: Any) -> str:
    same = (actual == expected) & (np.signbit(actual) == np.signbit(expected)) | (np.isnan(actual) & np.isnan(expected))
    return f"{1 - np.mean(same):.2%}"


def _of_jax(operands: _Operands) -> Iterator[tuple[str, Any]]:
    jax = importlib.import_module("jax")
    a, b, c = operands.a, operands.b, np.abs(operands.a)
    yield "jax: a*b+c contracted", _share(np.asarray(jax.jit(lambda a, b, c: a * b + c)(a, b, c)), a * b + c)
    narrow, wide = jax.numpy.bfloat16, jax.numpy.float32
    kept = jax.jit(lambda a: a.astype(narrow).astype(wide) - a)(a)
    yield "jax: float32 to bfloat16 and back is left out", bool((np.asarray(kept) == 0).all())


def _of_ptx(operands: _Operands) -> Iterator[tuple[str, Any]]:
    """Yield what PTX instructions do, and what CuPy's own kernels do to single operations of the interpreted mode."""
    cupy = importlib.import_module("cupy")
    compiler = nvrtc.compiler(driver.driver().version() // 1000)
    target = nvrtc.target_of(driver.device(0).capability, compiler.architectures)
    module = cupy.cuda.Module()
    module.load(compiler.compile(PROBE, target))

    def probed(a: Any, b: Any) -> dict[str, Any]:
        r = cupy.zeros(len(_PROBED) * a.size, np.float32)
        module.get_function("probe")((1,), (256,), (cupy.asarray(a), cupy.asarray(b), r, np.int32(a.size)))
        return dict(zip(_PROBED, cupy.asnumpy(r).reshape(len(_PROBED), -1), strict=True))

    products = probed(operands.left, operands.right)
    for name in _PROBED[:3]:
        yield f"PTX {name}", operands.zeros(products[name])
    a, b = operands.a[:4096], operands.b[:4096]
    quotients = probed(a, b)
    for name in _PROBED[3:]:
        yield f"PTX {name} wrong", _share(quotients[name], a / b)
    optimizer, zero = portopt.SGD(1.0), cupy.zeros(4, np.float32)
    p, _ = optimizer.apply(-zero, zero, optimizer.init(zero))
    yield "cupy SGD: -0 - lr * (+0) keeps -0", bool(cupy.asnumpy(cupy.signbit(p)).all())
