"""numba translates kernels for a target of their own, whatever else numba is used for; LLVM optimizes them and changes no bit."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support.processes import run_python
from support.turns import in_turn

import portopt
from portopt.kernels.groups import kernel_key
from portopt.kernels.host import compiler

pytestmark = pytest.mark.needs("numba")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTOPT_CACHE_DIR", "")


def _compile(rule: portopt.Optimizer, *slots: str) -> None:
    dtypes = dict.fromkeys(("p", "g", *slots), "float32")
    compiler.compile_kernel(rule.program(), kernel_key(rule.program(), dtypes, in_place=True, flush="register"))


@pytest.mark.parametrize("rule", [portopt.Adam(), portopt.LAMB()])
def test_no_operation_lets_llvm_change_a_bit(rule: portopt.Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    optimize = compiler._optimize

    def noting(module: Any) -> None:
        seen.append(str(module))
        optimize(module)
        seen.append(str(module))

    monkeypatch.setattr(compiler, "_optimize", noting)
    _compile(rule, "m", "v")
    assert len(seen) == 2
    for text in seen:
        assert re.search(r"= f(mul|add|sub|div) ", text)
        operations = re.findall(r"= (?:tail )?(?:f\w+|call|select|phi) [^%@]*", text)
        assert not re.findall(r"\b(?:fast|nnan|ninf|nsz|arcp|contract|afn|reassoc)\b", " ".join(operations))


STEPS = """
    import hashlib
    import sys

    import numpy as np

    import portopt

    if sys.argv[1] == "other":
        import numba

        @numba.njit
        def before(x):
            return np.sum(np.sqrt(x)) + max(1, 2) + int(x[0]) + abs(x[1]) + x[2] ** 3 - np.floor(x[3])

        assert before(np.ones(5)) == 9
    params = [np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30), np.ones(7, np.float32)]
    digest = hashlib.sha256()
    for rule in (portopt.Adam(clipnorm=1.0), portopt.LAMB()):
        state = rule.init(params)
        for _ in range(2):
            params, state = rule.apply(params, params, state)
        for array in params:
            digest.update(array.tobytes())
    if sys.argv[1] == "other":

        @numba.njit
        def after(x):
            return before(x) + min(3, 4) + np.max(x)

        assert after(np.ones(4)) == 12

    from portopt.kernels.host import translation_support

    print(translation_support._target() is not None, digest.hexdigest())
"""


def steps(kind: str, before: str = "") -> list[str]:
    """Run the steps in a process; return whether kernels had a target of their own, and the digest of the bits."""
    return run_python(f"{before}\n{textwrap.dedent(STEPS)}", kind, PORTOPT_CACHE_DIR="").split()


@pytest.fixture(scope="module")
def digest() -> str:
    """Return the digest of the bits without other functions of numba."""
    has_target, found = steps("none")
    assert has_target == "True"
    return found


def test_kernels_and_other_functions_of_numba_are_in_no_one_s_way(digest: str) -> None:
    assert steps("other") == ["True", digest]


OUTSIDE = """
from numba import types

outside = types.ExternalFunction("outside", types.void())


def kernel():
    outside()
"""


def test_a_function_that_is_not_there_without_numba_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"the translated kernel calls outside, which is not there without numba"):
        compiler.compile_function(OUTSIDE, "part")


FAULTS = {
    "it is not there": "import sys; sys.modules['portopt.kernels.host.target_support'] = None",
    "it does something else": (
        "from portopt.kernels.host import target_support; del target_support._Library.add_ir_module"
    ),
}


@pytest.mark.parametrize("fault", in_turn(list(FAULTS), 0, 2))
def test_numba_without_what_a_target_needs_compiles_kernels_with_the_same_bits(fault: str, digest: str) -> None:
    assert steps("none", FAULTS[fault]) == ["False", digest]


def test_a_process_that_finds_its_kernels_does_not_import_numba(tmp_path: Path) -> None:
    program = """
        import sys

        import numpy as np

        import portopt

        rule, params = portopt.LAMB(), [np.ones((20, 30), np.float32)]
        rule.apply(params, params, rule.init(params))
        print("numba" in sys.modules)
    """
    found = [run_python(program, PORTOPT_CACHE_DIR=str(tmp_path)).strip() for _ in range(2)]
    assert found == ["True", "False"]


def test_a_function_that_outlives_the_compiler_can_be_called_and_ended() -> None:
    """As that of a plan whose optimizer is kept until the interpreter has ended all else."""
    program = """
        import os, sys, weakref
        from portopt.kernels.host import compiler

        class Last:
            def __init__(self, function, definition):
                self.function, self.definition, self.write = function, weakref.ref(definition), os.write

            def __del__(self):
                self.write(1, b"called" if self.definition() is not None and self.function() else b"gone")

        function = compiler.compile_method("def kernel(own, given): return truth(own, True)")(0)
        sys.last = Last(function, compiler._definitions[-1])
    """
    assert run_python(program) == "called"
