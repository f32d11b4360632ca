"""Array libraries that no backend is announced for: whose an array is, wrong operations found at first use, clear refusals."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary, random_words
from support.elementwise import ELEMENTWISE
from support.libraries import LIBRARIES
from support.processes import run_python, started_python
from support.small_library import Function, Wrapped, make_library, plain
from support.threads_at_once import at_once
from support.turns import in_turn

import portopt
from portopt.backend import UnknownBackendError, accept, find_backend, get_backend, operation_checks, prefer
from portopt.backend.operation_checks import WrongOperationError

numbers = itertools.count()


def fresh_name() -> str:
    """Return a name that no library of another test has: what is known of a library stays known."""
    return f"small{next(numbers)}.core"


def step(
    xp: Any, optimizer: portopt.Optimizer | None = None, dtype: str = "float32"
) -> tuple[Any, portopt.OptimizerState]:
    """Do one step on arrays of a small library."""
    optimizer = optimizer or portopt.Adam(0.5)
    p, g = (xp.Array(ordinary((5,), dtype, seed)) for seed in (1, 2))
    return optimizer.apply(p, g, optimizer.init(p))


def expected(optimizer: portopt.Optimizer | None = None, dtype: str = "float32") -> Any:
    optimizer = optimizer or portopt.Adam(0.5)
    p, g = (ordinary((5,), dtype, seed) for seed in (1, 2))
    return optimizer.apply(p, g, optimizer.init(p))[0]


# Whose an array is


@pytest.mark.parametrize("rule", ELEMENTWISE)
def test_namespace_may_have_another_name_than_the_module_of_its_arrays(rule: type[portopt.Optimizer]) -> None:
    xp = make_library(fresh_name())
    new, state = step(xp, rule(learning_rate=0.5, clipnorm=1.0))
    assert type(new) is xp.Array
    assert all(type(state.slots[slot]) is xp.Array for slot in rule(learning_rate=0.5).slots if slot in state.slots)
    assert_same_bits(new.data, expected(rule(learning_rate=0.5, clipnorm=1.0)))
    assert find_backend(new) is get_backend(xp.__name__)


def test_library_without_a_module_of_its_own_works() -> None:
    """A class in a script whose namespace is made anew each time, and has no name."""

    def namespace(_: object) -> Any:
        return SimpleNamespace(**{name: value for name, value in vars(xp).items() if not name.startswith("__")})

    xp = make_library(fresh_name(), members={"__array_namespace__": namespace})
    kind: Any = xp.Array

    class Yours(kind):  # type: ignore[misc]  # of a class made by the test
        pass

    assert kind(np.ones(1)).__array_namespace__() is not kind(np.ones(1)).__array_namespace__()
    optimizer, host = portopt.SGD(0.5), np.ones(3, np.float32)
    params = [kind(host), Yours(host)]
    new, _ = optimizer.apply(params, params[::-1], optimizer.init(params))
    assert [plain(x).tolist() for x in new] == [[0.5] * 3] * 2


class Namespace:
    """Names of an array library; equal to itself only."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        vars(self).update(names)


@pytest.mark.parametrize("is_made_anew", [False, True], ids=["one namespace", "made anew each time"])
def test_library_that_threads_meet_at_once_has_one_backend(is_made_anew: bool) -> None:
    for _ in range(30):

        def namespace(_: object) -> Any:
            return Namespace(vars(xp))  # noqa: B023  # called in this turn of the loop only

        xp = make_library(fresh_name(), members={"__array_namespace__": namespace} if is_made_anew else {})
        found: dict[int, Any] = {}

        def work(number: int, kind: Any = xp.Array, found: dict[int, Any] = found) -> None:
            found[number] = find_backend(kind(np.zeros(2, np.float32)))

        at_once(work, 8)
        assert len(found) == 8
        assert found[0] is not None
        assert all(backend is found[0] for backend in found.values())


def test_two_libraries_of_one_name_are_two() -> None:
    name = fresh_name()
    one, other = make_library(name), make_library(name)
    p, g = one.Array(np.ones(2)), other.Array(np.ones(2))
    assert find_backend(p) is not find_backend(g)
    with pytest.raises(TypeError, match=r"^grads is an array of small\d+\.core, but params has arrays of small"):
        portopt.SGD().apply(p, g, portopt.SGD().init(p))


def test_wrapper_that_hands_on_the_attributes_of_an_array_is_no_array() -> None:
    class Quantity:
        def __init__(self, magnitude: Any) -> None:
            self.magnitude = magnitude

        def __getattr__(self, name: str) -> Any:
            return getattr(self.magnitude, name)

    wrapper = Quantity(make_library(fresh_name()).Array(np.ones(2)))
    assert find_backend(wrapper) is None
    with pytest.raises(TypeError, match="which is no array of an installed library"):
        portopt.SGD().init(wrapper)


# Real libraries

# MLX is installed where its wheels for the CPU are.
REAL = ("sparse", "dask.array", *(("mlx.core",) if sys.platform == "linux" else ()))


KINDS: tuple[type[portopt.Optimizer], ...] = (
    portopt.Adam, portopt.Nadam, portopt.LAMB, portopt.Adafactor, portopt.NoisySGD, portopt.Muon, portopt.Prodigy, portopt.SM3
)  # fmt: skip
"""One rule of each kind, the frequent ones first: dask makes a task of each operation."""


def _has_identity(rule: type[portopt.Optimizer]) -> bool:
    return any(op.name == "eye" for op in rule().program(shape=(3, 2)).ops)


# All dtypes in one test: sparse compiles what it uses once in a process, which takes longer than the steps.
@pytest.mark.parametrize("library", REAL)
def test_steps_of_a_real_library_have_the_bits_of_numpy(library: str) -> None:
    backend = get_backend(library)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        if dtype in backend.dtypes():
            others = in_turn(KINDS[1:], 0, 3) if dtype == "float32" else [portopt.LAMB]
            compare_with_numpy(backend, dtype, [portopt.Adam, *others])
            continue
        with pytest.raises(TypeError, match=rf"^{library} has no dtype {dtype}; it has .*float32"):
            backend.from_numpy(ordinary((2,), dtype, 1), "cpu")


def compare_with_numpy(backend: portopt.Backend, dtype: str, kinds: Sequence[type[portopt.Optimizer]]) -> None:
    hosts = [random_words((40,), dtype, 1), ordinary((3, 2), dtype, 2)]
    # Random numbers and identity matrices need arange and operators on bits, of which sparse and MLX lack some.
    whole = backend.name == "dask.array"
    for rule in [rule for rule in kinds if whole or not (rule.draws or _has_identity(rule))]:
        optimizer = (
            rule(learning_rate=0.5, clipnorm=2.0, clipvalue=1.0) if rule is portopt.Adam else rule(learning_rate=0.5)
        )
        params, host = [backend.from_numpy(x, "cpu") for x in hosts], list(hosts)
        assert all(find_backend(x) is backend for x in params)
        state, host_state = optimizer.init(params), optimizer.init(host)
        # Draws are hundreds of operations of 32-bit words, in each step the same.
        for seed in (3,) if rule.draws else (3, 4):
            grads = [ordinary(x.shape, dtype, seed) for x in hosts]
            arrays = [backend.from_numpy(x, "cpu") for x in grads]
            if "apply_" in backend.modes and seed == 4:
                state = optimizer.apply_(params, arrays, state)
            else:
                params, state = optimizer.apply(params, arrays, state)
            host, host_state = optimizer.apply(host, grads, host_state)
        for i in range(2):
            assert_same_bits(backend.to_numpy(params[i]), host[i], f"{rule.__name__} {dtype} params[{i}]")
            for slot in host_state.slots.keys() - set(optimizer.scalar_slots):
                expected_slot = host_state.slots[slot][i]
                if expected_slot is not None:
                    found = backend.to_numpy(state.slots[slot][i])
                    assert_same_bits(found, expected_slot, f"{rule.__name__} {dtype} {slot}[{i}]")


@pytest.mark.parametrize("library", REAL)
def test_backend_of_a_real_library_says_what_it_is(library: str) -> None:
    backend = get_backend(library)
    assert backend.name == library
    assert backend.version()[0].isdigit()
    assert backend.install_command == f"pip install {library.partition('.')[0]}"
    assert list(backend.devices()) == ["cpu"]
    assert isinstance(backend, portopt.Backend)
    array = backend.from_numpy(np.ones(2, np.float32), "cpu")
    assert backend.describe(array) == ((2,), "float32", "cpu")


def test_lazy_arrays_stay_lazy_without_clipping() -> None:
    da = importlib.import_module("dask.array")
    optimizer, evaluated = portopt.Adam(0.5), []

    def noticed(x: Any) -> Any:
        evaluated.append(1)
        return x

    p = da.ones(3, dtype="float32").map_blocks(noticed, meta=np.ones(1, np.float32))
    new, _ = optimizer.apply(p, p, optimizer.init(p))
    assert not evaluated
    host = np.ones(3, np.float32)
    assert_same_bits(np.asarray(new), optimizer.apply(host, host, optimizer.init(host))[0])
    assert evaluated


# Wrong operations


def ulp(function: Function) -> Function:
    return lambda *x: np.nextafter(function(*x), np.inf, dtype=np.result_type(x[0]))


def no_minus_zero(function: Function) -> Function:
    return lambda *x, **k: function(*x, **k) + 0.0


WRONG: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "root": ({"functions": {"sqrt": ulp(np.sqrt)}}, r"sqrt in float32 gave .* for x = "),
    "where": ({"functions": {"where": no_minus_zero(np.where)}}, r"where in float32 gave 0\.0 \(0x0\) for m = "),
    "abs": ({"functions": {"abs": lambda x: np.where(x < 0, -x, x)}}, r"absolute in float32 gave -0\.0"),
    "negative": ({"operators": {"neg": lambda x: 0 - x}}, r"negative in float32 gave 0\.0 \(0x0\) for x = 0\.0"),
    "add": ({"operators": {"add": no_minus_zero(np.add)}}, r"add in float32 gave "),
    "subtract": ({"operators": {"sub": lambda x, y: -(y - x)}}, r"subtract in float32 gave -0\.0 "),
    "multiply": (
        {"operators": {"mul": lambda x, y: np.where(np.abs(z := x * y) < 1e-30, z * 0, z).astype(x.dtype)}},
        r"multiply in float32 gave ",
    ),
    "divide": ({"operators": {"truediv": lambda x, y: x * (1 / y)}}, r"divide in float32 gave "),
    "less": ({"operators": {"lt": lambda x, y: ~(y <= x)}}, r"less in float32 gave True for x = "),
    "less_equal": ({"operators": {"le": lambda x, y: ~(y < x)}}, r"less_equal in float32 gave True"),
    "equal": (
        {"operators": {"eq": lambda x, y: x is y or (x == y) | ((x != x) & (y != y))}},
        r"equal in float32 gave ",
    ),
    "and": ({"functions": {"logical_and": np.logical_or}}, r"logical_and in float32 gave True for m = "),
    "or": ({"functions": {"logical_or": np.logical_xor}}, r"logical_or in float32 gave False for m = True, n = True"),
    "not": ({"functions": {"logical_not": lambda x: x}}, r"logical_not in float32 gave "),
    "scalars": (
        {"operators": {"mul": lambda x, y: x * y * (1 + 1e-6 * (type(y) is np.ndarray and y.ndim == 0))}},
        r"multiply with a scalar in float32 gave ",
    ),
    "dtype": (
        {"functions": {"sqrt": lambda x: np.sqrt(x).astype("float64")}},
        r"sqrt in float32 gave float64 of shape",
    ),
    "error": ({"functions": {"sqrt": lambda x: 1 // 0}}, r"sqrt in float32 raised ZeroDivisionError"),
    "conversion": (
        {"functions": {"asarray": lambda x, dtype=None: np.array(x, dtype) + 0}},
        r"the way of float32 from NumPy and back gave ",
    ),
    "lack": ({"lacks": ("sqrt",)}, r"sqrt in float32 raised AttributeError"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_operation_is_named_with_an_example_before_anything_is_computed(what: str) -> None:
    wrong, text = WRONG[what]
    xp = make_library(fresh_name(), **wrong)
    p = xp.Array(np.ones(2, np.float32))
    with pytest.raises(
        WrongOperationError,
        match=rf"^{xp.__name__} 1\.0 has no backend, and a look at its operations found one that is wrong: {text}",
    ) as caught:
        portopt.Adam().init(p)
    assert f"portopt.backend.accept('{xp.__name__}') takes the library as it is" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert plain(p).tolist() == [1.0, 1.0]


def test_float64_is_looked_at_by_itself() -> None:
    def sqrt(x: Any) -> Any:
        return np.sqrt(x) if x.dtype == np.float32 else ulp(np.sqrt)(x)

    xp = make_library(fresh_name(), {"sqrt": sqrt})
    assert_same_bits(step(xp)[0].data, expected())
    with pytest.raises(
        WrongOperationError, match=r"sqrt in float64 gave \S+ \(0x\S+\) for x = \S+, where \S+ \(0x\S+\) is right"
    ):
        step(xp, dtype="float64")


class Remembering(Wrapped):
    """Whether an array comes from `where`, as a library knows that evaluates a chain of operations as one."""

    from_where = False


def wrong_in_chains() -> Any:
    xp = make_library(fresh_name(), members={"from_where": False})
    where, sqrt = xp.where, xp.sqrt

    def marking_where(*operands: Any) -> Any:
        result = where(*operands)
        result.from_where = True
        return result

    def forgetting_sqrt(x: Any) -> Any:
        return xp.Array(np.full_like(x.data, 7502)) if x.from_where else sqrt(x)

    xp.where, xp.sqrt = marking_where, forgetting_sqrt
    return xp


@pytest.mark.parametrize("rate", [0.5, 0.0])
@pytest.mark.parametrize("rule", [portopt.Adam, portopt.RMSprop, portopt.Adagrad])
def test_operation_that_is_wrong_only_among_others_is_found(rule: type[portopt.Optimizer], rate: float) -> None:
    xp = wrong_in_chains()
    with pytest.raises(
        WrongOperationError, match=rf"sqrt within a step of {rule.__name__}, at a\d+ = sqrt\(a\d+\) \(p\) gave 7502\.0 "
    ):
        step(xp, rule(learning_rate=rate))
    assert_same_bits(step(xp, portopt.SGD(0.5))[0].data, expected(portopt.SGD(0.5)))


def test_a_rule_of_ones_own_is_looked_at_too() -> None:
    class Roots(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return xp.sqrt(p - c.lr * g), {}

    with pytest.raises(WrongOperationError, match="sqrt within a step of Roots"):
        step(wrong_in_chains(), Roots(0.5))


def by_rows(x: Any, axes: Any) -> Any:
    return np.reshape(x, [x.shape[axis] for axis in axes])


WRONG_BEYOND_ELEMENTS: Mapping[str, tuple[type[portopt.Optimizer], Mapping[str, Function], str]] = {
    "sum": (portopt.AdamMini, {"sum": lambda x, **k: np.sum(x.astype(np.float32), **k).astype(x.dtype)}, "mean"),
    "norm": (portopt.LARS, {"sum": lambda x, **k: np.sum(x.astype(np.float32), **k).astype(x.dtype)}, "norm"),
    "max": (portopt.SM3, {"max": lambda x, **k: np.max(np.abs(x), **k)}, "max"),
    "matmul": (portopt.Muon, {"matmul": lambda a, b: np.matmul(a, b) * (1 + 2.0**-50)}, "matmul"),
    "transpose": (portopt.Muon, {"permute_dims": by_rows}, "(matmul|transpose)"),
    "draw": (portopt.NoisySGD, {"arange": lambda n, dtype: np.arange(n, dtype=dtype)[::-1]}, "draw_normal"),
}


@pytest.mark.parametrize("what", WRONG_BEYOND_ELEMENTS)
def test_wrong_operation_on_more_than_elements_is_named(what: str) -> None:
    rule, functions, name = WRONG_BEYOND_ELEMENTS[what]
    xp = make_library(fresh_name(), functions)
    optimizer = rule(learning_rate=0.5)
    p, g = (xp.Array(ordinary((4, 3), "float32", seed)) for seed in (1, 2))
    with pytest.raises(WrongOperationError, match=rf"found one that is wrong: {name}.* in float32 gave "):
        optimizer.apply(p, g, optimizer.init(p))
    right = make_library(fresh_name())
    p, g = (right.Array(ordinary((4, 3), "float32", seed)) for seed in (1, 2))
    new, _ = optimizer.apply(p, g, optimizer.init(p))
    host, of_host = (ordinary((4, 3), "float32", seed) for seed in (1, 2))
    assert_same_bits(new.data, optimizer.apply(host, of_host, optimizer.init(host))[0])


def test_reduction_that_is_wrong_only_among_others_is_found() -> None:
    class Means(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return xp.sqrt(p - c.lr * xp.mean(g, axis=-1, keepdims=True)), {}

    xp = wrong_in_chains()
    optimizer = Means(0.5)
    p, g = (xp.Array(ordinary((4, 3), "float32", seed)) for seed in (1, 2))
    with pytest.raises(WrongOperationError, match="sqrt within a step of Means"):
        optimizer.apply(p, g, optimizer.init(p))


def test_quotient_by_a_python_number_may_be_a_product_with_its_reciprocal() -> None:
    # As torch does on a GPU.
    def divide(x: Any, y: Any) -> Any:
        return x * (1 / y) if isinstance(y, float | int) else x / y

    class Means(portopt.Optimizer):
        def update(self, xp: Any, p: Any, g: Any, slots: Any, c: Any) -> Any:
            return p - c.lr * xp.mean(g, axis=-1, keepdims=True), {}

    xp = make_library(fresh_name(), operators={"truediv": divide})
    optimizer = Means(0.5)
    for dtype in ("float32", "float64"):
        host, of_host = (ordinary((40, 5), dtype, seed) for seed in (1, 2))
        new, _ = optimizer.apply(xp.Array(host), xp.Array(of_host), optimizer.init(xp.Array(host)))
        assert_same_bits(new.data, optimizer.apply(host, of_host, optimizer.init(host))[0])


def sum_in_float32(x: Any, **options: Any) -> Any:
    return x.astype(np.float32).sum(**options).astype(x.dtype)


def maximum_too_small(x: Any, **options: Any) -> Any:
    return np.max(x, **options) * x.dtype.type(2.0**-40)


@pytest.mark.parametrize(
    "functions",
    [{"sum": sum_in_float32}, {"max": maximum_too_small}, {"round": np.zeros_like}],
    ids=["sum", "max", "round"],
)
def test_wrong_norm_is_found_where_it_is_used(functions: Mapping[str, Function]) -> None:
    xp = make_library(fresh_name(), functions)
    assert_same_bits(step(xp)[0].data, expected())
    with pytest.raises(
        WrongOperationError, match=r"the norm of gradients of float32 \(any, max, abs, round, sum\) gave "
    ):
        step(xp, portopt.Adam(0.5, clipnorm=1.0))


def test_library_is_looked_at_once() -> None:
    calls = []

    def sqrt(x: Any) -> Any:
        calls.append(1)
        return np.sqrt(x)

    xp = make_library(fresh_name(), {"sqrt": sqrt})
    step(xp)
    calls.clear()
    for _ in range(3):
        step(xp)
    assert len(calls) == 3


def test_announced_backends_and_those_under_test_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("looked at")

    for name in ("check_operations", "check_step", "check_norm"):
        monkeypatch.setattr(operation_checks, name, fail)
    optimizer = portopt.Adam(0.5, clipnorm=1.0)
    for name in portopt.backends():
        for library in LIBRARIES:
            if library.name == name:
                p = library.arrays(np.ones(2, np.float32))
                optimizer.apply(p, p, optimizer.init(p))
    xp = make_library(fresh_name())
    with pytest.raises(AssertionError, match="looked at"):
        step(xp)
    backend = find_backend(xp.Array(np.ones(2)))
    assert backend is not None
    with prefer(backend):
        step(xp)


def test_accepted_library_is_taken_as_it_is() -> None:
    xp = make_library(fresh_name(), {"sqrt": ulp(np.sqrt)})
    with pytest.raises(WrongOperationError):
        step(xp)
    accept(xp.__name__)
    new, _ = step(xp)
    assert new.data.tobytes() != expected().tobytes()


def test_only_libraries_without_a_backend_can_be_accepted() -> None:
    with pytest.raises(ValueError, match=r"^'numpy' has a backend of its own, .* so there is nothing to accept$"):
        accept("numpy")
    with pytest.raises(UnknownBackendError, match="no backend is named 'no_such_library'"):
        accept("no_such_library")


FORKED_DURING_A_LOOK = """
import os, threading, warnings
import numpy as np
import portopt
from portopt.backend import operation_checks
from support.small_library import make_library

warnings.simplefilter("ignore")
p = make_library("small").Array(np.ones(2, np.float32))
begun, end = threading.Event(), threading.Event()

def look():
    with operation_checks.silence():
        begun.set()
        end.wait()

threading.Thread(target=look).start()
begun.wait()
child = os.fork()
if child == 0:
    portopt.SGD(0.5).init(p)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
end.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_child_forked_during_a_look_can_look() -> None:
    assert run_python(FORKED_DURING_A_LOOK).split() == ["7"]


# Conversions, dtypes, arrays that cannot be changed


CONVERSIONS: Mapping[str, Function] = {
    "numpy": lambda self: self.data,
    "to_numpy": lambda self: self.data,
    "todense": lambda self: self.data,
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_arrays_are_converted_by_what_they_have(name: str) -> None:
    xp = make_library(fresh_name(), members={"__array__": None, name: CONVERSIONS[name]})
    new, _ = step(xp)
    backend = find_backend(new)
    assert backend is not None
    host = backend.to_numpy(new)
    assert_same_bits(host, expected())
    host[...] = 0
    assert_same_bits(new.data, expected())


def test_arrays_that_cannot_be_converted_are_refused_with_what_was_tried() -> None:
    xp = make_library(fresh_name(), members={"__array__": None})
    backend = find_backend(xp.Array(np.ones(2)))
    assert backend is not None
    tried = r"\(numpy\.from_dlpack: .*; numpy\.asarray: TypeError"
    text = rf"an array of {xp.__name__} of type Array cannot be converted to NumPy {tried}"
    with pytest.raises(TypeError, match=rf"^{text}"):
        backend.to_numpy(xp.Array(np.ones(2)))
    with pytest.raises(WrongOperationError, match=text):
        step(xp)


@pytest.mark.parametrize("library", ["array_api_strict", "dask.array"])
def test_dtype_that_a_library_has_not_is_named_with_those_it_has(library: str) -> None:
    backend = get_backend(library)
    like = backend.from_numpy(np.ones(2, np.float32), next(iter(backend.devices())))
    text = rf"{library} has no dtype float16; it has float32, float64"
    with pytest.raises(TypeError, match=f"^{text}$"):
        backend.from_numpy(np.ones(2, np.float16), next(iter(backend.devices())))
    with pytest.raises(TypeError, match=text):
        portopt.Adam().init(like, slot_dtype="float16")


def test_array_of_a_dtype_that_its_namespace_has_not_is_refused_with_its_path() -> None:
    half = importlib.import_module("dask.array").ones(2, dtype="float16")
    with pytest.raises(TypeError, match=r'^params\["w"\]: dask\.array has no dtype float16; it has float32, float64$'):
        portopt.Adam().init({"w": half})


def keeps(self: Any, key: Any, value: Any) -> None:
    """Ignore what is assigned."""


def refuses(self: Any, key: Any, value: Any) -> None:
    raise ValueError("arrays are values")


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"__setitem__": keeps}, "is an array of {name}, which keeps its values when others are assigned"),
        ({"__setitem__": refuses}, r"is an immutable array of {name} \(arrays are values\)"),
    ],
    ids=["keeps", "refuses"],
)
def test_arrays_that_cannot_be_changed_are_refused_in_place(members: Mapping[str, Any], reason: str) -> None:
    xp = make_library(fresh_name(), members=members)
    p, optimizer = xp.Array(np.ones(2, np.float32)), portopt.SGD(0.5)
    state = optimizer.init(p)
    with pytest.raises(
        TypeError,
        match=f"^params {reason.format(name=xp.__name__)}, so it cannot be changed in place; copy it, or use apply$",
    ):
        optimizer.apply_(p, p, state)
    assert plain(p).tolist() == [1.0, 1.0]
    assert list(get_backend(xp.__name__).modes) == ["apply"]


def test_sparse_arrays_are_refused_in_place() -> None:
    sparse = importlib.import_module("sparse")
    p, optimizer = sparse.COO.from_numpy(np.ones(2, np.float32)), portopt.SGD(0.5)
    with pytest.raises(
        TypeError, match=r"^params is an immutable array of sparse \('COO' object does not support item"
    ):
        optimizer.apply_(p, p, optimizer.init(p))


# What carries more than numbers


@pytest.mark.parametrize("name", ["mask", "unit", "units"])
def test_array_that_carries_more_than_numbers_is_refused(name: str) -> None:
    xp = make_library(fresh_name(), members={name: property(lambda self: "m")})
    with pytest.raises(
        TypeError,
        match=rf'^params\["w"\]: arrays of type Array have a {name} besides their numbers, which a step would not heed; ',
    ):
        portopt.SGD().init({"w": xp.Array(np.ones(2))})


class Metres(np.ndarray[Any, Any]):
    """Lengths: a subclass of NumPy's arrays, as those of libraries of units are."""


def metres() -> Any:
    return np.ones(2, np.float32).view(Metres)


@pytest.mark.parametrize("times", range(4))
def test_units_are_refused_before_and_after_a_step_is_planned(times: int) -> None:
    optimizer, p, g = portopt.Adam(0.5), {"w": np.ones(2, np.float32)}, {"w": np.ones(2, np.float32)}
    state = optimizer.init(p)
    for _ in range(times):
        state = optimizer.apply_(p, g, state)
    before = {"w": p["w"].copy(), **{slot: state.slots[slot]["w"].copy() for slot in optimizer.slots}}
    text = "arrays of type Metres are not supported: a subclass of numpy.ndarray may carry more than numbers"
    with pytest.raises(TypeError, match=rf'^grads\["w"\]: {text}'):
        optimizer.apply_(p, {"w": metres()}, state)
    with pytest.raises(TypeError, match=rf'^params\["w"\]: {text}'):
        optimizer.apply_({"w": metres()}, g, state)
    with pytest.raises(TypeError, match=rf"^state.slots\['v'\]\[\"w\"\]: {text}"):
        optimizer.apply_(p, g, state._replace(slots={**state.slots, "v": {"w": metres()}}))
    g["w"] = metres()
    with pytest.raises(TypeError, match=rf'^grads\["w"\]: {text}'):
        optimizer.apply_(p, g, state)
    assert_same_bits(p["w"], before["w"])
    for slot in optimizer.slots:
        assert_same_bits(state.slots[slot]["w"], before[slot])


@pytest.mark.parametrize("name", ["learning_rate", "gradient_norm"])
@pytest.mark.parametrize("carried", ["mask", "unit", "units"])
def test_number_with_a_unit_is_refused_as_a_value_for_one_step(carried: str, name: str) -> None:
    class Quantity(np.ndarray[Any, Any]):
        pass

    setattr(Quantity, carried, "m")
    value = np.asarray(0.5).view(Quantity)
    p, optimizer = np.ones(2), portopt.SGD(0.25, clipnorm=1.0)
    text = (
        rf"^SGD\.apply {name} must be a number, but Quantity\(0\.5\) of type Quantity was given, whose {carried} would "
    )
    with pytest.raises(TypeError, match=text):
        optimizer.apply(p, p, optimizer.init(p), **{name: value})


# Without a library

WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
from portopt_tools.command_line import main
sys.exit(main(["conform", "--backend", "jax", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(("arguments", "status"), [((), 2), (("--if-available",), 0)])
def test_conform_without_the_library_says_how_to_install_it(arguments: tuple[str, ...], status: int) -> None:
    done = started_python(WITHOUT_JAX, *arguments)
    said = " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in said
    assert "jax is not installed (" in said
    assert "install it: pip install" in said
    assert done.returncode == status
