"""Threads whose first use of a library is portopt, while another thread is still importing it."""

from __future__ import annotations

import importlib.util

import pytest
from support.processes import run_python

RACE = """
import sys, threading, traceback
import numpy as np
import portopt
from portopt.backend import backends
from portopt.interchange.frameworks import frameworks

library = sys.argv[1]
backend = backends()[library]
errors = []
barrier = threading.Barrier(8)
sys.setswitchinterval(1e-5)

def step():
    w = backend.from_numpy(np.ones(3, np.float32), next(iter(backend.devices())))
    portopt.Adam().apply(w, w, portopt.Adam().init(w))

def ask():
    backend.version()

def go_on_with_numpy():
    while library not in sys.modules:
        pass
    for _ in range(2000):
        assert not backend.owns(np.ones(3))
        assert not any(f.owns(step) for f in frameworks().values())

def run(work):
    barrier.wait()
    try:
        work()
    except BaseException:
        errors.append(traceback.format_exc())

threads = [threading.Thread(target=run, args=(work,)) for work in (step, ask, go_on_with_numpy, lambda: __import__(library)) * 2]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("".join(errors) or None)
"""


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_threads_may_use_a_library_first_through_portopt(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    run_python(RACE, library)


HALF = """
import sys, threading
from types import ModuleType
import importlib.machinery, portopt
from portopt.backend import backends
from portopt.interchange.frameworks import frameworks
import numpy as np

for name in ("torch", "torch.distributed.tensor", "jax", "optax", "cupy", "tensorflow", "tf_keras", "keras"):
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__spec__._initializing = True
    sys.modules[name] = module
assert not any(backend.owns(print) for backend in backends().values())
assert not any(framework.owns(print) for framework in frameworks().values())
w = np.ones(3)
portopt.Adam().apply(w, w, portopt.Adam().init(w))
"""


def test_a_library_of_which_nothing_is_there_yet_owns_nothing() -> None:
    run_python(HALF)
