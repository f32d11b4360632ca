"""What both kinds of GPU kernels are tested with: rules, words, gradients, programs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from support.bits import Array, assert_same_bits, numpy_dtype, ordinary, random_words
from support.elementwise import ELEMENTWISE
from support.keeping_rule import Keeping
from support.turns import in_turns

import portopt
from portopt.arithmetic import elementary
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.kernels.groups import array_order, kernel_key
from portopt.kernels.key import KernelKey
from portopt.kernels.totals import can_total, reducing
from portopt.program import Kind, Program
from portopt.program.builder import Builder, Node
from portopt.scalars import where
from portopt.slot import slot
from portopt_conformance.configurations import configurations
from portopt_conformance.words import products_near_smallest_normal, special_words, to_floats

NUMPY: Any = portopt.get_backend("numpy")
DTYPES = ("float16", "bfloat16", "float32", "float64")
CASES = [(rule, clipped) for rule in ELEMENTWISE for clipped in (False, True)]
_REDUCTIONS = ("sum", "mean", "norm", "max", "min", "any", "all", "count")
PAIRS = [(p, g) for p in DTYPES for g in DTYPES if p != g]
"""Dtypes of a parameter and of a gradient of another dtype."""
each_case = pytest.mark.parametrize(("rule", "clipped"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
CASES_IN_A_DTYPE = [
    (rule, clipped, dtype)
    for i, (rule, clipped) in enumerate(CASES)
    for k, dtype in enumerate(DTYPES)
    if rule is portopt.Adam or k == (i // 2 + 2 * clipped) % len(DTYPES)
]
"""A rule decides about the operations of a kernel, a dtype about how each is written: all of both, but not all pairs."""
each_case_in_a_dtype = pytest.mark.parametrize(
    ("rule", "clipped", "dtype"), CASES_IN_A_DTYPE, ids=lambda x: getattr(x, "__name__", str(x))
)


def in_a_dtype(rules: Sequence[Any], in_all: Collection[Any]) -> pytest.MarkDecorator:
    """Return the same for rules without clipping, of which some meet all dtypes."""
    pairs = in_turns(rules, DTYPES, in_all=in_all)
    return pytest.mark.parametrize(("rule", "dtype"), pairs, ids=lambda x: getattr(x, "__name__", str(x)))


def optimizer_of(rule: type[portopt.Optimizer], clipped: bool) -> portopt.Optimizer:
    """Return a rule with its defaults, or with all its options and both clippings."""
    return configurations(rule)[-1 if clipped else 0].optimizer()


def key_of(
    optimizer: portopt.Optimizer,
    dtype: str,
    slot_dtype: str | None = None,
    in_place: bool = True,
    gradient_dtype: str | None = None,
) -> KernelKey:
    slots = dict.fromkeys(optimizer.slots, slot_dtype or COMPUTE_DTYPE[dtype])
    dtypes = {"p": dtype, "g": gradient_dtype or dtype, **slots}
    return kernel_key(optimizer.program(), dtypes, in_place=in_place, flush="where")


def staged_key(program: Program, dtype: str) -> KernelKey:
    """Return the key of the kernels that do a program in place."""
    dtypes = {**dict.fromkeys(array_order(program), COMPUTE_DTYPE[dtype]), "p": dtype, "g": dtype}
    return kernel_key(program, dtypes, in_place=True, flush="where")


def words_of(dtype: str, seed: int, count: int = 2000) -> Array:
    """Return special words, factors of products in the gap, and raw random words; an even and an odd seed make all pairs."""
    specials = to_floats(special_words(dtype), dtype)
    gap = products_near_smallest_normal("bfloat16" if dtype == "float16" else dtype, 64)
    pairs = np.tile(specials, len(specials)) if seed % 2 else np.repeat(specials, len(specials))
    return np.concatenate([pairs, to_floats(gap[seed % 2], dtype), random_words((count,), dtype, seed)])


def words_and_gradients(dtype: str, *, clipped: bool) -> tuple[list[Array], list[list[Array]]]:
    """Return parameters of raw words, and gradients of several steps: raw words first, then ordinary ones."""
    params = [words_of(dtype, 0), random_words((7, 11), dtype, 5), random_words((), dtype, 6)]
    raw = [words_of(dtype, 1), random_words((7, 11), dtype, 7), random_words((), dtype, 8)]
    gradients = [raw, [ordinary(g.shape, dtype, 9 + i) for i, g in enumerate(raw)]]
    if clipped:
        one = numpy_dtype(dtype).type(1)
        # NaN among the gradients would make the norm NaN, and everything else too.
        with np.errstate(invalid="ignore"):
            gradients[0] = [np.where(np.isfinite(g), g, one) for g in raw]
        gradients.append([g * numpy_dtype(dtype).type(1e-3) for g in gradients[1]])
    return params, gradients


def compare_steps(
    to_device: Callable[[Any], Any],
    to_host: Callable[[Any], Array],
    optimizer: portopt.Optimizer,
    params: list[Array],
    gradients: list[list[Array]],
    *,
    slot_dtype: str | None = None,
    seed: int | None = None,
    in_place: bool = False,
) -> None:
    """Compare steps on arrays of a device with the interpreter's on NumPy; slots are random words if there is a seed."""
    state = optimizer.init(params, slot_dtype=slot_dtype)
    trees = [name for name in state.slots if name not in optimizer.scalar_slots]
    if seed is not None:
        for k, name in enumerate(trees):
            for i, slot in enumerate(state.slots[name]):
                slot[...] = random_words(slot.shape, slot.dtype.name, seed + 100 * k + i)
    actual: Any = [to_device(p) for p in params]
    slots = {name: [None if x is None else to_device(x) for x in state.slots[name]] for name in trees}
    actual_state = state._replace(slots={**state.slots, **slots})
    expected: Any = params
    for gradient in gradients:
        on_device = [to_device(g) for g in gradient]
        # The kernels played on the host are NumPy's as well: it warns of overflow there.
        with np.errstate(all="ignore"):
            if in_place:
                actual_state = optimizer.apply_(actual, on_device, actual_state)
            else:
                actual, actual_state = optimizer.apply(actual, on_device, actual_state)
            with portopt.interpreted():
                expected, state = optimizer.apply(expected, gradient, state)
    for i in range(len(params)):
        assert type(actual[i]) is type(to_device(params[i]))
        assert_same_bits(to_host(actual[i]), expected[i], f"params[{i}]")
        for name in trees:
            wanted = state.slots[name][i]
            if wanted is not None:
                assert_same_bits(to_host(actual_state.slots[name][i]), wanted, f"{name}[{i}]")
    for name in optimizer.scalar_slots:
        found = actual_state.slots[name]
        # JAX's state holds the two words of a float64.
        found = found if isinstance(found, float) else float(np.asarray(found).view(np.float64).item())
        assert found.hex() == state.slots[name].hex()


class Elementary(portopt.Optimizer):
    """A product and a quotient of what it is given."""

    slots = ("quotient",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p * g, {"quotient": slots.quotient / g}


class EveryOperation(portopt.Optimizer):
    """Each operation of a program on the parameter and the gradient as they are."""

    slots = (
        "sum", "difference", "root", "opposite", "size", "larger", "smaller", "sign", "chosen", "either", "same", "by_scalars",
        "by_both",
    )  # fmt: skip

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        finite = xp.abs(g) < float("inf")
        return g, {
            "sum": p + g,
            "difference": p - g,
            "root": xp.sqrt(p),
            "opposite": -p,
            "size": xp.abs(p),
            "larger": xp.maximum(p, g),
            "smaller": xp.minimum(p, g),
            "sign": xp.sign(p),
            "chosen": xp.where((p <= g) & finite, p, g),
            "either": xp.where((p == g) | ~finite, p, c.lr),
            "same": p,
            "by_scalars": xp.where((c.lr > 0.05) & ~(c.lr > 1), p, g),
            "by_both": xp.where((c.lr > 1) | (p < g), p, c.lr),
        }


class EveryFunction(portopt.Optimizer):
    """Each elementary function of the parameter and the gradient."""

    slots = ("exponential", "logarithm", "tangent", "root", "angle", "power", "power_of_all", "root_of_exponential")

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        exponential = xp.exp(p)
        return p - c.lr * xp.tanh(g), {
            "exponential": exponential,
            "logarithm": xp.log(p),
            "tangent": xp.tanh(p),
            "root": xp.cbrt(p),
            "angle": xp.atan2(p, g),
            "power": xp.abs(p) ** 0.3,
            "power_of_all": xp.abs(p) ** c.lr,
            "root_of_exponential": xp.sqrt(exponential),
        }


class EveryReduction(portopt.Optimizer):
    """Each reduction of all elements, of rows, of columns and of what those give."""

    slots = (
        *(slot(f"{name}_of_all", shape=()) for name in _REDUCTIONS),
        *(slot(f"{name}_of_rows", drop=-1) for name in _REDUCTIONS),
        *(slot(f"{name}_of_columns", drop=-2) for name in _REDUCTIONS),
        slot("of_slices", keep=0),
        slot("of_means", shape=()),
    )

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        functions: dict[str, tuple[Any, Any]] = {
            "sum": (xp.sum, p),
            "mean": (xp.mean, g),
            "norm": (xp.linalg.vector_norm, p),
            "max": (xp.max, p),
            "min": (xp.min, p),
            "any": (xp.any, p < g),
            "all": (xp.all, p < 2.0**70),
            "count": (xp.count_nonzero, p < g),
        }
        found: dict[str, Any] = {}
        for name, (function, x) in functions.items():
            whole = function(x)
            rows, columns = (function(x, axis=axis, keepdims=True) for axis in (-1, -2))
            if name in ("any", "all"):
                whole = where(whole, 1.0, 2.0)
                rows, columns = (xp.where(mask, 1.0, 2.0) for mask in (rows, columns))
            found |= {f"{name}_of_all": whole * 1.0, f"{name}_of_rows": rows, f"{name}_of_columns": columns}
        of_slices = xp.sum(found["mean_of_rows"] * p, axis=tuple(range(1, p.ndim)), keepdims=True)
        of_means = xp.sum(xp.mean(p, axis=-1, keepdims=True))
        changed = p - c.lr * found["norm_of_all"] * found["mean_of_rows"] * g
        return changed, {**found, "of_slices": of_slices, "of_means": of_means}


class EveryTotal(portopt.Optimizer):
    """Each total of all parameters, of what is computed for each element, kept in the state."""

    slots = ()
    scalar_slots: ClassVar[Mapping[str, float]] = dict.fromkeys(("added", "length", "largest", "of_gradients"), 0.0)

    def totals(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        norm = xp.linalg.vector_norm
        return {"sum": xp.sum(p - g), "norm": norm(p - g), "max": xp.max(p - g), "norm_of_gradients": norm(g)}

    def coefficients(self, t: Any, sum: Any, norm: Any, max: Any, norm_of_gradients: Any, **before: Any) -> Any:
        return {"added": sum, "length": norm, "largest": max, "of_gradients": norm_of_gradients, "rate": norm}

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return p + 2.0**-10 * g / c.rate, {}


def programs_of_totals() -> list[Program]:
    """Return the program of each total of rules that have some, all of which kernels can do."""
    found = []
    for rule in (EveryTotal(), portopt.Prodigy()):
        program = rule.program(shape=(3, 4))
        for op in program.totals.values():
            found.append(reducing(program.part(op.args[0]), op.name.removeprefix("total_")))
            assert can_total(found[-1])
    return found


def trees_with_totals(dtype: str) -> list[tuple[list[Array], list[list[Array]]]]:
    """Return parameters and gradients: many of several dtypes, with and without words that are not finite; none; tiny ones."""
    shapes = [(40, 70), (), (0, 3), (2500,), *((k % 5,) for k in range(20))]
    params = [ordinary(shape, "float64" if i % 3 == 1 else dtype, i) for i, shape in enumerate(shapes)]
    words = [random_words(p.shape, p.dtype.name, 100 + i) for i, p in enumerate(params)]
    with np.errstate(invalid="ignore"):
        finite = [np.where(np.abs(g) < 2.0**100, g, g.dtype.type(1)) for g in words]
    tiny = [ordinary((3, 2), dtype, 0) * 0, np.full(5, 2.0**-600)]
    nothing = [np.zeros((0, 3), dtype)]
    return [(params, [finite]), (params, [words]), (nothing, [nothing]), (tiny, [[tiny[0], 3 * tiny[1]]])]


class EveryDraw(portopt.Optimizer):
    """Random numbers of each distribution, one of them used twice, once in a sum."""

    draws: ClassVar[Mapping[str, Any]] = {"noise": "normal", "share": "uniform", "further": "normal"}

    seed: int = portopt.hyperparameters.seed_hyperparameter(default=2**40 + 12345)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any, noise: Any, share: Any, further: Any) -> Any:
        return p + share * further - c.lr * (g + xp.sum(noise) * noise), {}


def compare_gradients_of_another_dtype(
    to_device: Callable[[Any], Any], to_host: Callable[[Any], Array], dtype: str, gradient_dtype: str
) -> None:
    """Compare steps with gradients of raw words, and of numbers at which conversions part, with the interpreter's."""
    numbers = [2.0**-126 * (1 - x) for x in (0.0, 2.0**-24, 2.0**-25, 2.0**-25 + 2.0**-52, 2.0**-26, 0.5)]
    numbers += [2.0**-149, 3 * 2.0**-149, 2.0**-150, 2.0**-1074, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 3.4028235e38, 1e300]
    with np.errstate(all="ignore"):
        special = np.asarray([*numbers, *(-x for x in numbers)]).astype(numpy_dtype(gradient_dtype))
    gradient = np.concatenate([special, random_words((500,), gradient_dtype, 1)])
    params = [random_words(gradient.shape, dtype, 2)]
    compare_steps(to_device, to_host, Keeping(), params, [[gradient], [gradient]])
    ordinary_gradient = ordinary(gradient.shape, gradient_dtype, 3)
    compare_steps(to_device, to_host, portopt.Adam(0.1, clipnorm=1.0), params, [[ordinary_gradient]], in_place=True)


class WithoutGradient(portopt.Optimizer):
    """Exchanges the parameter and a slot: the gradient is given, but not read."""

    slots = ("other",)

    def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
        return slots.other, {"other": p}


def assert_gradient_need_not_be_read(
    to_device: Callable[[Any], Any], to_host: Callable[[Any], Array], dtype: str
) -> None:
    """A kernel must do with arrays that its program does not read, whether it writes in place or not."""
    for in_place in (False, True):
        params, gradients = [words_of(dtype, 0)], [[words_of(dtype, 1)]]
        compare_steps(to_device, to_host, WithoutGradient(0.1), params, gradients, seed=2, in_place=in_place)


def assert_gap_is_zero(to_device: Callable[[Any], Any], to_host: Callable[[Any], Array], dtype: str) -> None:
    """Products and quotients that round up to the smallest normal number from below must become zero."""
    left, right = (to_floats(w, dtype) for w in products_near_smallest_normal(dtype, 4000))
    tiny = np.finfo(dtype).smallest_normal
    # Only (1 - 2**-p) 2**-n over a power of two is a quotient in the gap.
    exponents = -np.arange(40)
    numerators = np.ldexp(np.nextafter(np.ones(40, dtype), np.zeros(40, dtype)), exponents)
    denominators = np.ldexp(1 / np.full(40, tiny), exponents)
    optimizer = Elementary()
    params, gradients = [left, numerators], [right, denominators]
    state = optimizer.init(params)
    state.slots["quotient"][1][...] = numerators
    on_device = state._replace(slots={"quotient": [to_device(x) for x in state.slots["quotient"]]})
    with np.errstate(all="ignore"):
        p, actual = optimizer.apply([to_device(x) for x in params], [to_device(x) for x in gradients], on_device)
        with portopt.interpreted():
            expected, expected_state = optimizer.apply(params, gradients, state)
        assert np.count_nonzero((expected[0] == 0) & (np.abs(left * right) == tiny)) > 1000
        quotients = expected_state.slots["quotient"]
        assert np.count_nonzero((quotients[1] == 0) & (np.abs(numerators / denominators) == tiny)) == 40
    for i in range(2):
        assert_same_bits(to_host(p[i]), expected[i])
        assert_same_bits(to_host(actual.slots["quotient"][i]), quotients[i])


each_extreme = pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0], [2.0**-1022], [2.0**-1023], [2.0**1023, 2.0**-1022], [1.5 * 2.0**1023, 2.0**1023], [3.0, 4.0],
        [np.inf, 1.0], [1.0, np.nan], [np.nan, -np.inf], [2.0**-540, 2.0**-560], [2.0**-511, 3 * 2.0**-512],
    ],
    ids=str,
)  # fmt: skip
"""Gradients whose norm is hard to get right."""


def spread_gradients(dtype: str) -> list[Array]:
    """Return gradients whose sum of squares depends on the order, unless it is exact."""
    spread = ordinary((20_000,), "float64", 2) * 10.0 ** np.random.default_rng(1).uniform(-4, 4, 20_000)
    return [spread[:7000].astype(numpy_dtype(dtype)), spread[7000:].astype(numpy_dtype(dtype))]


def shuffled(gradients: list[Array]) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.permutation(g) for g in reversed(gradients)]


def reference_norm(gradients: list[Array]) -> float:
    with np.errstate(all="ignore"):
        loaded = [NUMPY.primitives(COMPUTE_DTYPE[g.dtype.name]).load(g) for g in gradients]
        return float(NUMPY.reductions("float64").total("norm", *loaded))


def reference_sums(gradients: list[Array]) -> list[int]:
    """Return the three sums of integers that the norm is computed from."""
    with np.errstate(all="ignore"):
        loaded = [NUMPY.primitives(COMPUTE_DTYPE[g.dtype.name]).load(g) for g in gradients]
        return list(NUMPY.reductions("float64").partial("norm", *loaded).sums)


def norm_program() -> Program:
    """Return a program with every kind of scalar operation on the norm."""
    b = Builder()
    g = b.record("load", Kind.ARRAY, label="g")
    norm = Node(b.record("total_norm", Kind.FLOAT, g, label="gradient_norm"))
    t = Node(b.record("input", Kind.INTEGER, label="t"))
    rate = Node(b.record("input", Kind.FLOAT, label="learning_rate"))
    steps = b.where(b.less(norm, 3.0), b.subtract(b.multiply(t, -7), 2), b.add(t, 2))
    values = [
        elementary.exp(b, b.negative(norm)), elementary.log(b, norm), elementary.cos(b, norm), elementary.power(b, norm, rate),
        b.integer_power(norm, steps), b.integer_power(b.multiply(norm, 2.0**-600), 2), b.floor_divide(steps, 4),
        b.divide(b.add(norm, t), 3), b.sqrt(b.subtract(norm, 2.0)), b.floor(b.negative(norm)), b.to_float(steps),
        b.where(b.equal(norm, norm), rate, float("inf")), b.where(b.less_equal(rate, norm), float("-inf"), norm),
        b.add(rate, t), b.multiply(b.negative(steps), norm), b.multiply(norm, 2.0**-140),
        # A quarter of these lies in the gap below the smallest normal float32, and just below the gap.
        b.multiply(norm, 2.0**-124 * (1 - 2.0**-26)), b.multiply(norm, 2.0**-124 * (1 - 2.0**-25)),
        b.multiply(norm, 2.0**-124 * (1 - 2.0**-24)),
    ]  # fmt: skip
    p = b.record("load", Kind.ARRAY, label="p")
    rounded = [b.record("round", Kind.ARRAY, value.index) for value in values]
    total = p
    for i in rounded:
        total = b.record("add", Kind.ARRAY, total, i)
    total = b.record("add", Kind.ARRAY, total, g)
    return Program("Everything", tuple(b.ops), {"p": total})
