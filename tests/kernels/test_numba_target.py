"""numba translates kernels for a target of their own, whatever else numba is used for; LLVM optimizes them and changes no bit."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from support.processes import run_python

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
    for rule in (portopt.Adam(clipnorm=1.0), portopt.LAMB(), portopt.Adafactor()):
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
    print(digest.hexdigest())
"""


def test_kernels_and_other_functions_of_numba_are_in_no_one_s_way() -> None:
    digests = {run_python(STEPS, kind, PORTOPT_CACHE_DIR="") for kind in ("none", "other")}
    assert len(digests) == 1


OUTSIDE = """
from numba import types

outside = types.ExternalFunction("outside", types.void())


def kernel():
    outside()
"""


def test_a_function_that_is_not_there_without_numba_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"the translated kernel calls outside, which is not there without numba"):
        compiler.compile_function(OUTSIDE, "part")


@pytest.mark.parametrize("fault", ["it is not there", "it does something else"])
def test_numba_without_what_a_target_needs_compiles_kernels_with_the_same_bits(fault: str) -> None:
    if fault == "it is not there":
        before = "import sys; sys.modules['portopt.kernels.host.target_support'] = None"
    else:
        before = "from portopt.kernels.host import target_support; del target_support._Library.add_ir_module"
    after = """
    from portopt.kernels.host import translation_support

    assert (translation_support._target() is None) == (sys.argv[1] == "none")
    """
    # The digest is on the first line.
    digests = [
        run_python(start + textwrap.dedent(STEPS) + textwrap.dedent(after), kind, PORTOPT_CACHE_DIR="")
        for start, kind in ((before + "\n", "none"), ("", "other"))
    ]
    assert len(set(digests)) == 1


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
