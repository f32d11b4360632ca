"""Backends: how they are found, the generic one, and what importing portopt loads."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import array_api_strict
import numpy as np
import pytest
from support.bits import assert_same_bits, ordinary
from support.entry_points import further_entry_points
from support.libraries import Library, each_library
from support.processes import run_python

import portopt
from portopt.backend import ArrayAPIBackend, Backend, UnknownBackendError, find_backend, prefer

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Add entry points, `(name, value)` pairs, to the installed."""
    with further_entry_points(tmp_path) as add:

        def install_all(*entries: tuple[str, str]) -> None:
            for name, value in entries:
                add(name, value)

        yield install_all


NUMPY = ("numpy", "portopt_numpy:backend")


# Finding a backend


def test_first_party_backends_are_installed_by_entry_points() -> None:
    assert {"numpy", "torch", "jax", "cupy"} <= set(portopt.backends())
    assert list(portopt.backends()) == sorted(portopt.backends())


@each_library
def test_backend_satisfies_the_protocol(library: Library) -> None:
    backend = library.backend
    assert isinstance(backend, Backend)
    assert backend.name == library.name
    assert backend.install_command.startswith("pip install ")
    assert backend.version()[0].isdigit()
    assert library.device in backend.devices()
    assert repr(backend) == f"<portopt backend {library.name}>"
    assert all(mode.name == name for name, mode in backend.modes.items())


@each_library
def test_arrays_find_their_backend(library: Library) -> None:
    assert find_backend(library.arrays(np.zeros(2, np.float32))) is library.backend


@pytest.mark.parametrize("leaf", [1.0, "x", object(), None, int], ids=lambda leaf: type(leaf).__name__)
def test_what_is_no_array_has_no_backend(leaf: object) -> None:
    assert find_backend(leaf) is None


def test_unknown_name_lists_the_installed() -> None:
    installed = ", ".join(sorted(portopt.backends()))
    with pytest.raises(UnknownBackendError, match=f"^no backend is named 'tensorflow'; installed are {installed}$"):
        portopt.get_backend("tensorflow")
    assert issubclass(UnknownBackendError, ValueError)


@pytest.mark.parametrize("name", ["", ".", "math", "no.such.module", "numpy.linalg"])
def test_name_of_a_module_that_is_no_array_library_is_refused(name: str) -> None:
    with pytest.raises(UnknownBackendError, match=r"^no backend is named "):
        portopt.get_backend(name)


def test_name_that_two_packages_provide_is_refused(install: Install) -> None:
    install(("numpy", "portopt_torch:backend"))
    with pytest.raises(
        ValueError,
        match=r"^two packages provide the portopt backend 'numpy': portopt_torch:backend and portopt_numpy:backend; "
        r"uninstall one of them$",
    ):
        portopt.backends()


def test_same_entry_point_seen_twice_is_one(install: Install) -> None:
    """An editable install beside a wheel lists its metadata twice."""
    before = list(portopt.backends())
    install(NUMPY)
    assert list(portopt.backends()) == before


def test_backend_that_cannot_be_loaded_is_left_out_with_a_warning(install: Install) -> None:
    before = list(portopt.backends())
    install(("broken", "no_such_module:backend"))
    with pytest.warns(
        RuntimeWarning,
        match=r"the portopt backend 'broken' \(no_such_module:backend\) cannot be loaded and is left out: ModuleNotFoundError",
    ):
        assert list(portopt.backends()) == before
    optimizer = portopt.SGD(0.5)
    assert optimizer.apply(np.ones(1), np.ones(1), optimizer.init(np.ones(1)))[0] == 0.5


def test_third_party_backend_is_found(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("third_party_backend")
    module.backend = ArrayAPIBackend("strict", lambda: array_api_strict, root="array_api_strict")  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "third_party_backend", module)
    install(("strict", "third_party_backend:backend"))
    backend = portopt.get_backend("strict")
    assert backend is module.backend
    array = array_api_strict.ones(2)
    assert find_backend(array) is backend
    with pytest.raises(TypeError, match="is an array of strict, but params has arrays of numpy"):
        portopt.SGD().init([np.ones(2), array])


def test_preferred_backend_goes_before_the_installed_and_only_for_a_while() -> None:
    mine = ArrayAPIBackend("mine", lambda: __import__("array_api_compat.numpy").numpy, root="numpy")
    array = np.zeros(2)
    before = find_backend(array)
    with prefer(mine):
        assert find_backend(array) is mine
    assert find_backend(array) is before
    with pytest.raises(ZeroDivisionError), prefer(mine):
        1 / 0  # noqa: B018  # an error inside
    assert find_backend(array) is before


# The generic backend


def test_array_api_library_without_a_backend_of_its_own_works() -> None:
    """Nothing is installed for array-api-strict: its arrays say what their namespace is."""
    assert "array_api_strict" not in portopt.backends()
    optimizer = portopt.Adam(0.5, clipnorm=1.0)
    host = {"w": ordinary((3,), "float32", 1)}
    params = {"w": array_api_strict.asarray(host["w"])}
    new, state = optimizer.apply(params, params, optimizer.init(params))
    expected, _ = optimizer.apply(host, host, optimizer.init(host))
    assert type(new["w"]) is type(params["w"])
    assert type(state.slots["v"]["w"]) is type(params["w"])
    assert_same_bits(np.asarray(new["w"]), expected["w"])
    assert find_backend(params["w"]) is portopt.get_backend("array_api_strict")


def test_generic_backend_keeps_arrays_on_their_device() -> None:
    backend = portopt.get_backend("array_api_strict")
    assert len(backend.devices()) > 1
    host = np.ones(2, np.float32)
    for device in backend.devices():
        params = backend.from_numpy(host, device)
        assert backend.describe(params).device == device
        # The norm is computed in float64, which some of these devices do not have.
        optimizer = portopt.Adam(0.5, clipnorm=None if device.startswith("array_api_strict.Device('no_") else 1.0)
        new, state = optimizer.apply(params, params, optimizer.init(params))
        for array in (new, state.slots["m"]):
            assert backend.describe(array).device == device


def test_arrays_on_two_devices_are_one_tree_but_not_one_leaf() -> None:
    backend = portopt.get_backend("array_api_strict")
    here, there = list(backend.devices())[:2]
    host = np.ones(2, np.float32)
    params = {"a": backend.from_numpy(host, here), "b": backend.from_numpy(host, there)}
    optimizer = portopt.SGD(0.5)
    new, _ = optimizer.apply(params, params, optimizer.init(params))
    assert [backend.describe(new[name]).device for name in "ab"] == [here, there]
    text = re.escape(f'grads["a"] has device {there}, but params["a"] has device {here}; they must agree')
    with pytest.raises(ValueError, match=text):
        optimizer.apply(params, {"a": params["b"], "b": params["b"]}, optimizer.init(params))


@each_library
def test_unknown_device_is_refused_with_the_known(library: Library) -> None:
    with pytest.raises(ValueError, match=rf"{library.name} .*device 'moon'"):
        library.backend.from_numpy(np.ones(2, np.float32), "moon")


@pytest.mark.needs("torch")
def test_cuda_without_a_device_says_why() -> None:
    import torch

    if torch.cuda.is_available():
        assert portopt.get_backend("torch").devices()["cuda:0"] is None
        return
    reason = portopt.get_backend("torch").devices()["cuda"]
    assert reason is not None
    assert "CUDA" in reason
    with pytest.raises(ValueError, match="torch cannot use the device 'cuda': "):
        portopt.get_backend("torch").from_numpy(np.ones(2, np.float32), "cuda")


@each_library
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_round_trip_keeps_bits_and_memory_apart(dtype: str, library: Library) -> None:
    if dtype not in library.backend.dtypes():
        with pytest.raises((AttributeError, TypeError, ValueError)):
            library.arrays(ordinary((2,), dtype, 1))
        return
    host = ordinary((3, 2), dtype, 1)
    with library.precision(dtype):
        array = library.arrays(host)
        before = host.copy()
        host[...] = 0
        back = library.numpy(array)
        assert_same_bits(back, before)
        back[...] = 0
        assert_same_bits(library.numpy(array), before)


# What is imported


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in list(sys.modules)}})"
    return set(run_python(script).split())


FRAMEWORKS = {"torch", "jax", "jaxlib", "cupy", "tensorflow"}
HEAVY = FRAMEWORKS | {
    "array_api_compat",
    "array_api_strict",
    "matplotlib",
    "ml_dtypes",
    "numba",
    "llvmlite",
    "rich",
    "sklearn",
}

STEP = "opt = portopt.Adam(clipnorm=1.0); state = opt.init(w); opt.apply(w, w, state); opt.get_weights(state)"


def test_import_loads_no_framework() -> None:
    loaded = loaded_by("import portopt")
    assert "portopt" in loaded
    assert not loaded & HEAVY


def test_step_on_numpy_arrays_loads_no_framework() -> None:
    loaded = loaded_by(f"import numpy, portopt; w = numpy.ones(3); {STEP}")
    assert not loaded & FRAMEWORKS


@pytest.mark.needs("torch")
def test_step_on_torch_tensors_loads_no_other_framework() -> None:
    loaded = loaded_by(f"import torch, portopt; w = torch.ones(3); {STEP}")
    assert not loaded & (FRAMEWORKS - {"torch"})


@pytest.mark.needs("jax")
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_step_on_jax_arrays_loads_no_other_framework(jit: bool) -> None:
    step = "jax.jit(opt.apply)(w, w, state)" if jit else "pass"
    loaded = loaded_by(f"import jax, portopt; w = jax.numpy.ones(3); {STEP}; {step}")
    assert not loaded & (FRAMEWORKS - {"jax", "jaxlib"})


def test_listing_backends_loads_no_framework() -> None:
    assert not loaded_by("import portopt; portopt.backends()") & FRAMEWORKS


def test_rules_are_imported_at_the_first_use_of_one_and_found_in_every_way() -> None:
    assert run_python("import sys, portopt; print('portopt.rules.sgd' in sys.modules)").strip() == "False"
    for use in (
        "from portopt import *; print(SGD.__name__)",
        "from portopt import SGD; print(SGD.__name__)",
        "from portopt.rules import SGD; print(SGD.__name__)",
        "import portopt; print([name for name in dir(portopt) if name == 'SGD'].pop())",
        "import portopt; print(type(portopt.get('sgd')).__name__)",
    ):
        assert run_python(use).strip() == "SGD"


def test_a_name_that_portopt_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'portopt' has no attribute 'SDG'"):
        portopt.SDG  # type: ignore[attr-defined]  # noqa: B018  # asking for it is the test


TIMER = """
import time
start = time.process_time()
import numpy
middle = time.process_time()
import portopt
print(middle - start, time.process_time() - middle)
"""


def import_times() -> tuple[float, float]:
    """Return the medians of the processor's seconds that numpy, and then portopt, took in fresh interpreters."""
    # Where no bytecode may be written, each of them would compile portopt, which pip does when it installs it.
    runs = [run_python(TIMER, PYTHONDONTWRITEBYTECODE="").split() for _ in range(5)]
    numpy, ours = zip(*((float(a), float(b)) for a, b in runs), strict=True)
    return statistics.median(numpy), statistics.median(ours)


def test_import_takes_at_most_60_ms_beyond_numpy() -> None:
    """Where numpy itself takes more than 100 ms the machine is slow, and the limit grows in proportion."""
    attempts = []
    for _ in range(5):
        numpy, ours = import_times()
        attempts.append(f"{ours * 1e3:.0f} ms (numpy {numpy * 1e3:.0f} ms)")
        if ours <= 0.060 * max(1.0, numpy / 0.100):
            return
    pytest.fail(f"import portopt took {', '.join(attempts)}")
