"""Layer 1: every operation of a program, on arrays; chains of them that compilers like to rewrite; scalars; the norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from portopt import Optimizer
from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.program import ARRAY_OPERATIONS, DRAWS, FUNCTIONS
from portopt_conformance.experiment import Experiment
from portopt_conformance.platform import Platform
from portopt_conformance.probes import (
    OPERANDS,
    REDUCED,
    Assembler,
    IdentityProbe,
    ProductProbe,
    array_probe,
    divisor_probe,
    draw_probe,
    function_probe,
    gradient_probe,
    norm_probe,
    reduction_probe,
    round_probe,
    scalar_probe,
    slot_probe,
)
from portopt_conformance.words import (
    FORMATS,
    Words,
    canonical,
    crossed,
    finite,
    numpy_dtype,
    products_near_smallest_normal,
    random_between,
    random_words,
    special_words,
    to_floats,
    to_words,
    without_nan,
)

Write = Callable[..., int]

_NEAR = 2048
_RANDOM = 16384
_GAP = 512


def _mask(name: str) -> Write:
    return lambda a, *operands: a.as_numbers(a.mask(name, *operands))


def _logical(name: str) -> Write:
    def write(a: Assembler, p: int, g: int, s: int) -> int:
        return a.as_numbers(a.mask(name, a.mask("less", p, s), a.mask("less", g, s)))

    return write


OPERATIONS: Mapping[str, tuple[int, Write]] = {
    **{name: (2, lambda a, x, y, name=name: a.array(name, x, y)) for name in ("add", "subtract", "multiply", "divide")},
    **{name: (1, lambda a, x, name=name: a.array(name, x)) for name in ("sqrt", "negative", "absolute")},
    **{name: (2, _mask(name)) for name in ("less", "less_equal", "equal")},
    **{name: (3, _logical(name)) for name in ("logical_and", "logical_or")},
    "logical_not": (2, lambda a, x, y: a.as_numbers(a.mask("logical_not", a.mask("less", x, y)))),
    "where": (3, lambda a, x, y, z: a.array("where", a.mask("less", y, z), x, z)),
}
"""Operations on arrays by name: number of operands, and how to write one. `load` and `round` have experiments of their own."""

CHAINS: Mapping[str, tuple[int, Write]] = {
    "multiply_add": (3, lambda a, x, y, z: a.array("add", a.array("multiply", x, y), z)),
    "multiply_subtract": (3, lambda a, x, y, z: a.array("subtract", a.array("multiply", x, y), z)),
    "subtract_product": (3, lambda a, x, y, z: a.array("subtract", z, a.array("multiply", x, y))),
    "two_products": (
        4,
        lambda a, x, y, z, w: a.array("add", a.array("multiply", x, y), a.array("multiply", z, w)),
    ),
    "negated_product_add": (3, lambda a, x, y, z: a.array("add", a.array("negative", a.array("multiply", x, y)), z)),
    "add_add": (3, lambda a, x, y, z: a.array("add", a.array("add", x, y), z)),
    "multiply_multiply": (3, lambda a, x, y, z: a.array("multiply", a.array("multiply", x, y), z)),
    "add_subtract_same": (2, lambda a, x, y: a.array("subtract", a.array("add", x, y), y)),
    "quotient_times_divisor": (2, lambda a, x, y: a.array("multiply", a.array("divide", x, y), y)),
    "divide_divide": (3, lambda a, x, y, z: a.array("divide", a.array("divide", x, y), z)),
    "divide_by_quotient": (3, lambda a, x, y, z: a.array("divide", x, a.array("divide", y, z))),
    "add_large_subtract_large": (
        1,
        lambda a, x: a.array("subtract", a.array("add", x, a.constant(1024.0)), a.constant(1024.0)),
    ),
    "add_two_constants": (1, lambda a, x: a.array("add", a.array("add", x, a.constant(0.1)), a.constant(0.7))),
    "multiply_two_constants": (
        1,
        lambda a, x: a.array("multiply", a.array("multiply", x, a.constant(0.1)), a.constant(0.7)),
    ),
    "multiply_distributed": (
        2,
        lambda a, x, y: a.array(
            "add", a.array("multiply", x, a.constant(0.9)), a.array("multiply", y, a.constant(0.9))
        ),
    ),
    "constant_by_array": (1, lambda a, x: a.array("divide", a.constant(1.0), x)),
    "divide_by_root": (2, lambda a, x, y: a.array("divide", x, a.array("sqrt", y))),
    "product_of_roots": (2, lambda a, x, y: a.array("multiply", a.array("sqrt", x), a.array("sqrt", y))),
    "root_of_square": (1, lambda a, x: a.array("sqrt", a.array("multiply", x, x))),
    "times_zero": (1, lambda a, x: a.array("multiply", x, a.constant(0.0))),
    "plus_zero": (1, lambda a, x: a.array("add", x, a.constant(0.0))),
    "minus_itself": (1, lambda a, x: a.array("subtract", x, x)),
    "by_itself": (1, lambda a, x: a.array("divide", x, x)),
    "zero_minus": (1, lambda a, x: a.array("subtract", a.constant(0.0), x)),
    "larger": (
        2,
        lambda a, x, y: a.array(
            "where",
            a.mask("logical_or", a.mask("less_equal", y, x), a.mask("logical_not", a.mask("equal", x, x))),
            x,
            y,
        ),
    ),
}
"""Programs that a compiler may be tempted to contract, reassociate or simplify."""


@functools.cache
def operands(dtype: str) -> Mapping[str, Words]:
    """Return operands for all operations: specials with specials, near pairs, raw random words, and products in the gap."""
    form = FORMATS[dtype]
    specials = special_words(dtype)
    first = [np.repeat(specials, specials.size)]
    second = [np.tile(specials, specials.size)]
    bottom, top = 1 - form.bias, form.bias
    ranges = (
        ((-2, 2), (-2, 2)),  # sums cancel
        ((bottom, bottom + 3), (bottom, bottom + 3)),  # differences are subnormal
        (
            (bottom // 2 - 2, bottom // 2 + 2),
            (bottom // 2 - 2, bottom // 2 + 2),
        ),  # products are near the smallest normal
        ((top // 2 - 1, top // 2 + 2), (top // 2 - 1, top // 2 + 2)),  # products overflow
        ((top - 2, top), (top - 2, top)),  # sums overflow
        ((bottom, bottom + 2), (-2, 2)),  # quotients are near the smallest normal
        ((top - 2, top), (-2, 2)),  # quotients overflow
    )
    for i, (left, right) in enumerate(ranges):
        first.append(random_between(dtype, *left, _NEAR, f"primitives/{dtype}/{i}/first"))
        second.append(random_between(dtype, *right, _NEAR, f"primitives/{dtype}/{i}/second"))
    first.append(random_words(dtype, _RANDOM, f"primitives/{dtype}/first"))
    second.append(random_words(dtype, _RANDOM, f"primitives/{dtype}/second"))
    gap = products_near_smallest_normal(dtype, _GAP)
    quotients = _quotients_at_smallest_normal(dtype)
    first += [gap[0], quotients[0]]
    second += [gap[1], quotients[1]]
    x, y = np.concatenate(first), np.concatenate(second)
    # The third meets the product of the first two, so that a contracted sum shows.
    with np.errstate(all="ignore"):
        product = canonical(-(to_floats(x, dtype) * to_floats(y, dtype)))
    others = np.concatenate(
        [random_words(dtype, x.size // 2, f"primitives/{dtype}/third"), crossed(dtype, x.size, "third")]
    )
    z = np.where(np.arange(x.size) % 3 == 0, others[: x.size], product)
    w = np.roll(x, 7)
    return {name: to_floats(words, dtype) for name, words in zip(OPERANDS, (x, y, z, w), strict=True)}


def _quotients_at_smallest_normal(dtype: str) -> tuple[Words, Words]:
    """Return operands of the one quotient in the gap, (1 - 2**-p) times the smallest normal number, and of its neighbours."""
    form = FORMATS[dtype]
    largest_below_one, one = form.one - 1, form.one
    first, second = [], []
    for shift in range(8):
        for word in (largest_below_one - 1, largest_below_one, one):
            # 2**-shift times the word, divided by 2**(emax' - shift), where 2**-emax' is the smallest normal number.
            first.append(word - (shift << form.mantissa_bits))
            second.append((form.bias + form.bias - 1 - shift) << form.mantissa_bits)
    return np.array(first, np.uint64).astype(form.unsigned), np.array(second, np.uint64).astype(form.unsigned)


def array_experiments(dtype: str) -> Iterator[tuple[str, Experiment]]:
    """Yield name and experiment of every operation and chain in a compute dtype, and of quotients by what elements share."""
    uncovered = set(ARRAY_OPERATIONS) - {*OPERATIONS, "load", "round"}
    if uncovered:
        raise NotImplementedError(f"the suite has no experiment for the array operations {sorted(uncovered)}")
    for name, (count, write) in {**OPERATIONS, **CHAINS}.items():
        yield name, _array_experiment(name, count, write, dtype)
    yield "divisors", divisor_experiment(dtype)


def _array_experiment(name: str, count: int, write: Write, dtype: str) -> Experiment:
    @functools.cache
    def probe() -> Optimizer:
        return array_probe(name, count, write)

    def inputs() -> Mapping[str, Words]:
        return {operand: operands(dtype)[operand] for operand in OPERANDS[:count]}

    def run(platform: Platform) -> dict[str, Words]:
        given = {operand: platform.array(array) for operand, array in inputs().items()}
        gradient = given.get("g")
        if gradient is None:
            gradient = platform.array(operands(dtype)["g"])
        state = probe().init(given["p"])
        state = state._replace(slots={slot: given[slot] for slot in OPERANDS[2:count]})
        p, _ = platform.many(probe(), given["p"], [gradient], state)
        return {name: platform.to_numpy(p)}

    return Experiment(f"primitives/{name}/{dtype}", run, inputs)


def function_experiment(dtype: str) -> Experiment:
    """Return the experiment on the elementary functions of arrays in a compute dtype."""

    @functools.cache
    def inputs() -> Mapping[str, Words]:
        specials = special_words(dtype)
        crossed_specials = {"p": np.repeat(specials, specials.size), "g": np.tile(specials, specials.size)}
        return {
            name: to_floats(
                np.concatenate(
                    [
                        first,
                        random_words(dtype, _NEAR, f"functions/{dtype}/{name}"),
                        random_between(dtype, -10, 8, _NEAR, f"functions/{dtype}/{name}"),
                    ]
                ),
                dtype,
            )
            for name, first in crossed_specials.items()
        }

    def run(platform: Platform) -> dict[str, Words]:
        probe = function_probe(tuple(FUNCTIONS))
        p, g = (platform.array(array) for array in inputs().values())
        _, state = platform.many(probe, p, [g], probe.init(p))
        return {name: platform.to_numpy(state.slots[name]) for name in FUNCTIONS}

    return Experiment(f"primitives/functions/{dtype}", run, inputs)


def dear_experiments(dtype: str) -> Mapping[str, Experiment]:
    """Return, by name, the experiments in a compute dtype of which each takes the time of many operations."""
    return {
        "functions": function_experiment(dtype),
        "products": product_experiment(dtype),
        "identity": identity_experiment(dtype),
        "draws": draw_experiment(dtype),
        **{name: reduction_experiment(name, dtype) for name in REDUCED},
    }


_FACTORS: Mapping[str, tuple[tuple[int, ...], tuple[int, int] | None]] = {
    "near": ((7, 300), (-3, 3)),
    "far": ((3, 5, 40), (-60, 60)),
    "raw": ((40, 17), None),
    "single": ((1, 1), (-3, 3)),
}
"""Matrices that are multiplied: their shapes, and between which exponents their elements are; None for raw words."""


def product_experiment(dtype: str) -> Experiment:
    """Return the experiment on products of matrices in a compute dtype."""

    @functools.cache
    def factors(role: str) -> Mapping[str, Words]:
        found = {}
        for name, (shape, exponents) in _FACTORS.items():
            size, seed = math.prod(shape), f"products/{dtype}/{role}/{name}"
            words = (
                random_words(dtype, size, seed) if exponents is None else random_between(dtype, *exponents, size, seed)
            )
            found[name] = to_floats(words, dtype).reshape(shape)
        # An infinity and a NaN meet zeros and numbers.
        found["near"][1, 3:5] = (np.inf, 0.0) if role == "p" else (0.0, np.nan)
        return found

    def run(platform: Platform) -> dict[str, Words]:
        probe = ProductProbe()
        p, g = ({name: platform.array(array) for name, array in factors(role).items()} for role in ("p", "g"))
        _, state = platform.many(probe, p, [g], probe.init(p))
        return {
            str(slot): np.concatenate([platform.to_numpy(state.slots[slot][name]).reshape(-1) for name in sorted(p)])
            for slot in probe.slots
        }

    return Experiment(f"primitives/products/{dtype}", run)


_DRAWN_SHAPES = ((40, 3), (257,))
"""Shapes of the parameters for which random numbers are drawn."""


def draw_experiment(dtype: str) -> Experiment:
    """Return the experiment on random numbers in a compute dtype: parameters, steps and keys of all sizes."""

    def run(platform: Platform) -> dict[str, Words]:
        probe, backend = draw_probe(tuple(DRAWS)), platform.backend
        results: dict[str, list[Words]] = {name: [] for name in DRAWS}
        for key, finished in ((0, 0), (2**53 - 1, 2**31 - 3), (0x9ABCDEF01234, 41)):
            params = [platform.array(np.zeros(shape, dtype)) for shape in _DRAWN_SHAPES]
            state = probe.init(params)
            slots = {**state.slots, "key": backend.stored_scalar(float(key))}
            state = state._replace(step=platform.step_number(finished), slots=slots)
            _, state = platform.many(probe, params, [params], state)
            for name, found in results.items():
                found += [platform.to_numpy(array).reshape(-1) for array in state.slots[name]]
        return {name: np.concatenate(found) for name, found in results.items()}

    return Experiment(f"primitives/draws/{dtype}", run)


def identity_experiment(dtype: str) -> Experiment:
    """Return the experiment on identity matrices, of one row and of more, in a compute dtype."""

    def run(platform: Platform) -> dict[str, Words]:
        probe = IdentityProbe()
        p = {name: platform.array(np.ones((count, 2), dtype)) for name, count in (("one", 1), ("two", 2), ("some", 33))}
        _, state = platform.many(probe, p, [p], probe.init(p))
        identities = state.slots["identity"]
        return {name: platform.to_numpy(identities[name]).reshape(-1) for name in identities}

    return Experiment(f"primitives/identity/{dtype}", run)


def reduction_experiment(kind: str, dtype: str) -> Experiment:
    """Return the experiment on reductions, whole and along axes, of one of the lists of `REDUCED`, in a compute dtype."""
    shape = (61, 5)
    count, key = shape[0] * shape[1], f"reductions/{dtype}"
    top, bottom = FORMATS[dtype].bias, 1 - FORMATS[dtype].bias
    infinite = random_between(dtype, -2, 2, count, key)
    infinite[7:9] = FORMATS[dtype].infinity

    def cancelling(largest: float) -> Words:
        """Return small numbers among large ones that cancel in every sum, so that the last bits show which bins there were."""
        numbers = to_floats(random_between(dtype, -50, -40, count, key), dtype)
        numbers[[0, shape[1] + 1]], numbers[[1, shape[1]]] = largest, -largest
        return to_words(numbers)

    def inputs() -> Mapping[str, Words]:
        words = {
            "moderate": random_between(dtype, -20, 10, count, key),
            "wide": finite(random_words(dtype, count, key), dtype),
            "huge": random_between(dtype, top, top, count, key),
            "tiny": random_between(dtype, bottom, bottom + 3, count, key),
            "infinite": infinite,
            "raw": random_words(dtype, count, f"{key}/raw"),
            "zeros": np.full(count, FORMATS[dtype].sign, FORMATS[dtype].unsigned),
            "cancelling": cancelling(2.0**16),
            "cancelling below": cancelling(2.0**16 * (1.0 - 2.0 ** -(FORMATS[dtype].mantissa_bits + 1))),
        }
        return {name: to_floats(numbers, dtype).reshape(shape) for name, numbers in words.items()}

    def run(platform: Platform) -> dict[str, Words]:
        probe, results = reduction_probe(kind), {}
        for name, numbers in inputs().items():
            p, g = platform.array(numbers), platform.array(np.ascontiguousarray(numbers[::-1]))
            _, state = platform.many(probe, p, [g], probe.init(p))
            for slot, value in state.slots.items():
                known = (
                    np.float64(platform.backend.scalar(value))
                    if slot in probe.scalar_slots
                    else platform.to_numpy(value)
                )
                results[f"{slot} of {name}"] = np.asarray(known).reshape(-1)
        return results

    return Experiment(f"primitives/{kind}/{dtype}", run)


def divisor_experiment(dtype: str) -> Experiment:
    """Return the experiment on quotients by a number that many elements share, in a compute dtype.

    A compiler may take the reciprocal once and multiply.
    """
    shape = (61, 5)

    @functools.cache
    def inputs() -> Mapping[str, Words]:
        words = random_between(dtype, -20, 10, shape[0] * shape[1], f"divisors/{dtype}")
        return {"p": to_floats(words, dtype).reshape(shape)}

    def run(platform: Platform) -> dict[str, Words]:
        probe, p = divisor_probe(), platform.array(inputs()["p"])
        _, state = platform.many(probe, p, [p], probe.init(p))
        return {name: platform.to_numpy(state.slots[name]).reshape(-1) for name in probe.slots}

    return Experiment(f"primitives/divisors/{dtype}", run, inputs)


def conversion_experiment(dtype: str) -> Experiment:
    """Return the experiment that converts every kind of word to the compute dtype and back: `load`, and storing."""
    compute = COMPUTE_DTYPE[dtype]

    @functools.cache
    def inputs() -> Mapping[str, Words]:
        narrow = np.concatenate([special_words(dtype), random_words(dtype, 4 * _RANDOM, f"load/{dtype}")])
        wide = np.concatenate([special_words(compute), _halfway(dtype, compute)])
        rest = random_words(compute, narrow.size - wide.size, f"store/{dtype}")
        return {"p": to_floats(narrow, dtype), "s": to_floats(np.concatenate([wide, rest]), compute)}

    def run(platform: Platform) -> dict[str, Words]:
        probe = slot_probe()
        p, s = (platform.array(array) for array in inputs().values())
        gradient = platform.array(inputs()["p"])
        state = probe.init(p)._replace(slots={"s": s})
        p, state = platform.many(probe, p, [gradient], state)
        return {"stored": platform.to_numpy(p), "loaded": platform.to_numpy(state.slots["s"])}

    return Experiment(f"primitives/load/{dtype}", run, inputs)


def gradient_experiment(dtype: str, gradient_dtype: str) -> Experiment:
    """Return the experiment that loads gradients of another dtype than their parameter into the compute dtype."""

    @functools.cache
    def inputs() -> Mapping[str, Words]:
        parts = [special_words(gradient_dtype), random_words(gradient_dtype, _RANDOM, f"gradient/{gradient_dtype}")]
        if gradient_dtype == "float64":
            near = random_between("float64", -152, -124, 2 * _NEAR, "gradient/near")
            parts += [_halfway("float32", "float64"), near, np.array(rounding_values(), np.float64).view(np.uint64)]
        return {"g": to_floats(np.concatenate(parts), gradient_dtype)}

    def run(platform: Platform) -> dict[str, Words]:
        probe = gradient_probe()
        # Some libraries need a setting for the one dtype, and none for the other.
        with platform.backend.dtype_context(gradient_dtype):
            g = inputs()["g"]
            p = platform.array(np.zeros(g.shape, numpy_dtype(dtype)))
            p, state = platform.many(probe, p, [platform.array(g)], probe.init(p))
            return {"loaded": platform.to_numpy(state.slots["s"]), "doubled": platform.to_numpy(state.slots["r"])}

    return Experiment(f"primitives/gradient/{dtype}/{gradient_dtype}", run, inputs)


def _halfway(dtype: str, compute: str) -> Words:
    """Return words of the compute dtype at, just below and just above halfway between neighbours of the narrower dtype."""
    narrow, wide = FORMATS[dtype], FORMATS[compute]
    drop = wide.mantissa_bits - narrow.mantissa_bits
    if not drop:
        return special_words(compute)
    # Down to where the narrow format's subnormals end, and up to where it overflows.
    low, high = max(1 - narrow.bias - narrow.mantissa_bits - 1, 1 - wide.bias), narrow.bias
    words = random_between(compute, low, high, 3 * _NEAR, f"halfway/{dtype}").astype(np.uint64)
    kept = words >> np.uint64(drop) << np.uint64(drop) | np.uint64(1 << (drop - 1))
    shift = np.arange(words.size).astype(np.uint64) % np.uint64(3)
    return (kept + shift - np.uint64(1)).astype(wide.unsigned)


_X = (
    0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 0.1, 0.9, 0.999, 1 / 3, 0.96, 1.0 + 2.0**-52, 1.0 - 2.0**-53, 1e-7, 1e-3, 7.25, 100.0,
    -7.25, 709.5, 709.9, -708.0, -745.5, 1e5, 2.0**-1022, 2.0**-1021, 2.0**-511, 2.0**511, 2.0**1023, 1.7976931348623157e308,
    5e-324, 2.0**-1074 * 3, float("inf"), float("-inf"), float("nan"), 1.5707963267948966, 3.141592653589793, 2.0**-26,
    0.6931471805599453, 1.4142135623730951, 0.7071067811865476,
)  # fmt: skip
_Y = (
    1.0, 0.0, -0.0, 0.5, 3.0, 2.0, 1e-7, 0.004, 2.0**-1022, 2.0**-511, 2.0**511, 2.0**1023, 10.0, float("inf"), float("nan"),
    -2.5,
)  # fmt: skip

_SCALAR_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "add": ("add", "x", "y"),
    "subtract": ("subtract", "x", "y"),
    "multiply": ("multiply", "x", "y"),
    "divide": ("divide", "x", "y"),
    "negative": ("negative", "x"),
    "sqrt": ("sqrt", "x"),
    "floor": ("floor", "x"),
    "power": ("power", "x", "y"),
    "power_of_step": ("integer_power", "x", "t"),
    "times_step": ("multiply", "x", "t"),
    "exp": ("exp", "x"),
    "log": ("log", "x"),
    "cos": ("cos", "y"),
    "sin": ("sin", "y"),
    "tanh": ("tanh", "x"),
    "cbrt": ("cbrt", "x"),
    "atan2": ("atan2", "x", "y"),
}


def scalar_pairs() -> list[tuple[float, float, int]]:
    """Return values of x and y, and numbers of finished steps, for the experiments on scalars."""
    random = to_floats(random_between("float64", -12, 6, 48, "scalars"), "float64").tolist()
    near = [
        float(a * b)
        for a, b in zip(*(to_floats(w, "float64") for w in products_near_smallest_normal("float64", 8)), strict=True)
    ]
    values = [*_X, *random, *near]
    small = [*_Y, *(abs(x) for x in random[:16])]
    steps = (0, 1, 2, 6, 99, 999, 99_999, 1_000_003)
    pairs = [(x, small[i % len(small)], steps[i % len(steps)]) for i, x in enumerate(values)]
    pairs += [(x, small[(3 * i + 5) % len(small)], steps[(5 * i + 3) % len(steps)]) for i, x in enumerate(values)]
    gap = products_near_smallest_normal("float64", 24)
    pairs += [(float(x), float(y), 0) for x, y in zip(*(to_floats(w, "float64") for w in gap), strict=True)]
    quotients = _quotients_at_smallest_normal("float64")
    pairs += [(float(x), float(y), 0) for x, y in zip(*(to_floats(w, "float64") for w in quotients), strict=True)]
    return pairs


def scalar_experiment() -> Experiment:
    """Return the experiment on the arithmetic of scalars: operators, roots, powers and elementary functions."""

    def run(platform: Platform) -> dict[str, Words]:
        backend, probe = platform.backend, scalar_probe(_SCALAR_FUNCTIONS)
        p = platform.array(np.zeros(1, np.float32))
        results: dict[str, list[float]] = {name: [] for name in _SCALAR_FUNCTIONS}
        for x, y, step in scalar_pairs():
            state = probe.init(p)
            slots = {**state.slots, "x": backend.stored_scalar(x), "y": backend.stored_scalar(y)}
            _, after = platform.step(probe)(p, p, state._replace(step=step, slots=slots))
            for name, values in results.items():
                values.append(float(backend.scalar(after.slots[name])))
        return {name: np.array(values, np.float64) for name, values in results.items()}

    def inputs() -> Mapping[str, Words]:
        return {
            name: np.array(values, np.float64)
            for name, values in zip("xyt", zip(*scalar_pairs(), strict=True), strict=True)
        }

    return Experiment("scalars/functions", run, inputs, literal=True)


def rounding_values() -> list[float]:
    """Return float64 scalars at which rounding to float32 is delicate, then random ones."""
    tiny, ulp = 2.0**-126, 2.0**-149
    threshold = tiny * (1 - 2.0**-25)
    edges = [
        0.0, 1.0, 0.1, 1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-52, 1 + 3 * 2.0**-24, 2.0**128, 2.0**128 * (1 - 2.0**-25),
        2.0**128 * (1 - 2.0**-25 - 2.0**-50), 3.4028234663852886e38, tiny, tiny - ulp, ulp, ulp / 2, 2.0**-1022, 2.0**-1074,
        threshold, threshold * (1 + 2.0**-52), threshold * (1 - 2.0**-52), tiny * (1 - 2.0**-24), tiny * (1 - 1.5 * 2.0**-25),
        float("inf"), float("nan"),
    ]  # fmt: skip
    random = to_floats(random_between("float64", -130, 130, 24, "round"), "float64").tolist()
    return [*edges, *(-x for x in edges), *random]


def round_experiment(dtype: str) -> Experiment:
    """Return the experiment that rounds scalars to the compute dtype."""

    def run(platform: Platform) -> dict[str, Words]:
        probe = round_probe()
        results = []
        for x in rounding_values():
            p = platform.array(np.zeros(1, dtype))
            state = probe.init(p)._replace(slots={"x": platform.backend.stored_scalar(x)})
            results.append(platform.to_numpy(platform.step(probe)(p, platform.array(np.zeros(1, dtype)), state)[0]))
        return {"rounded": np.concatenate(results)}

    return Experiment(
        f"primitives/round/{dtype}", run, lambda: {"x": np.array(rounding_values(), np.float64)}, literal=True
    )


def norm_inputs(dtype: str) -> Mapping[str, list[Words]]:
    """Return lists of gradients by name; names that differ only after a slash must have the same norm."""
    key, count = f"norm/{dtype}", 5000
    moderate = random_between(dtype, -20, 10, count, key)
    wide = finite(random_words(dtype, count, key), dtype)
    raw = random_words(dtype, count, key)
    huge = random_between(dtype, 2000, 2000, count, key)
    tiny = random_between(dtype, -2000, -2000, count, key)
    subnormal = random_words(dtype, count, key) & np.array(
        FORMATS[dtype].sign | ((1 << FORMATS[dtype].mantissa_bits) - 1), raw.dtype
    )
    infinity = np.array([FORMATS[dtype].infinity], raw.dtype)
    nan = np.array([FORMATS[dtype].quiet_nan], raw.dtype)
    shuffled = np.argsort(random_words("float64", count, key), kind="stable")
    words: dict[str, list[Words]] = {
        "moderate": [moderate],
        "moderate/reversed": [moderate[::-1]],
        "moderate/shuffled": [moderate[shuffled]],
        "moderate/in_three": [moderate[:0], moderate[:4000], moderate[4000:]],
        "wide": [wide],
        "wide/shuffled": [wide[shuffled]],
        "wide/in_three": [wide[:0], wide[1000:], wide[:1000]],
        "huge": [huge],
        "tiny": [tiny],
        "subnormal": [subnormal],
        "zeros": [np.zeros(count, raw.dtype)],
        "empty": [np.zeros(0, raw.dtype)],
        "one": [moderate[:1]],
        "raw": [raw],
        "infinite": [np.concatenate([without_nan(raw, dtype)[1:], infinity])],
        "infinite/first": [np.concatenate([infinity, without_nan(raw, dtype)[1:]])],
        "nan_and_infinite": [np.concatenate([moderate[4:], infinity, nan, infinity, infinity])],
        "nan_and_infinite/swapped": [np.concatenate([nan, infinity, infinity, infinity, moderate[4:]])],
        "nan_and_infinite/apart": [moderate[:0], np.concatenate([nan, wide[:3999]]), np.concatenate([infinity, wide[:999]])],
    }  # fmt: skip
    return {name: [to_floats(part, dtype) for part in parts] for name, parts in words.items()}


def norm_experiments(dtype: str) -> Iterator[tuple[str, Experiment]]:
    """Yield name and experiment of the norm of each list of gradients."""
    for name, parts in norm_inputs(dtype).items():
        yield name, _norm_experiment(name, parts, dtype)


def _norm_experiment(name: str, parts: list[Words], dtype: str) -> Experiment:
    def run(platform: Platform) -> dict[str, Words]:
        probe = norm_probe()
        params = [platform.array(np.zeros_like(part)) for part in parts]
        gradients = [platform.array(part) for part in parts]
        _, state = platform.many(probe, params, [gradients], probe.init(params))
        return {"norm": np.array([platform.backend.scalar(state.slots["norm"])], np.float64)}

    return Experiment(f"norm/{name.partition('/')[0]}/{dtype}", run, literal=True)
