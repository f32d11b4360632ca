"""From functions to LLVM's language by numba: for a target of their own, or the one that numba compiles for by itself.

The first is faster, but made of what numba offers to those who extend it, and that changes. Where it does not hold, functions
are compiled as any others are, with the same bits. Imports numba: only the compiler imports this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types

_OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def translatable(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return what makes a function one that others can call, and that can be translated, given options of `numba.njit`."""
    target = _target()
    if target is not None:
        made: Callable[[Callable[..., Any]], Any] = target.translatable(**_OPTIONS, **options)
        return made
    # There are no arrays whose operations could be rewritten, and looking for them takes time.
    return numba.njit(**_OPTIONS, no_rewrites=True, **options)  # type: ignore[no-any-return]  # numba is not typed


def translated(function: Callable[..., Any], signature: Any) -> tuple[Any, str]:
    """Return a module of LLVM with a function, of numba's types, and all that it calls; and the function's name in it."""
    dispatcher = translatable()(function)
    target = _target()
    if target is not None:
        found: tuple[Any, str] = target.translated(dispatcher, signature)
        return found
    dispatcher.compile(signature)
    (result,) = dispatcher.overloads.values()
    return llvm.parse_assembly(result.library.get_llvm_str()), result.fndesc.mangled_name


@functools.cache
def _target() -> Any:
    """Return the module of the target of portopt's own, if that holds."""
    try:
        from portopt.kernels.host import target_support

        target_support.register(**_OPTIONS)
        target_support.translated(target_support.translatable(**_OPTIONS)(_tried), types.int64(types.int64))
    except Exception:  # whatever an interface that has changed may raise
        return None
    return target_support


def _tried(x: Any) -> Any:
    found = 0
    for i in range(x):
        found += i if i < 7 else 2 * i
    return found
