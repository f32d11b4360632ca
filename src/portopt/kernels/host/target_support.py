"""A target of numba's for kernels: it translates functions to LLVM's language, optimizes nothing, and makes no machine code.

Kernels are a target of their own (numba's documentation calls it extending numba by a target). The one that numba compiles for
by itself loads all that it knows of NumPy and SciPy, and looks through it at each operation; it optimizes each function alone,
and all of it again in each function that calls it; and it makes machine code of each, which nobody would run.

Imports numba: only `portopt.kernels.host.translation_support` imports this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, codegen, cpu, target_extension, typed_passes, untyped_passes
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.descriptors import TargetDescriptor
from numba.core.dispatcher import Dispatcher
from numba.core.typing import BaseContext

_NAME = "portopt"


class _Library(codegen.CodeLibrary):  # type: ignore[misc]
    """A function in LLVM's language, and the libraries of those that it calls."""

    def __init__(self, maker: Any, name: str) -> None:
        super().__init__(maker, name)
        self._texts: list[str] = []
        self._called: dict[_Library, None] = {}

    def add_linking_library(self, library: Any) -> None:
        self._called[library] = None

    def add_ir_module(self, ir_module: Any) -> None:
        self._texts.append(str(ir_module))

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no machine code of it."""
        return 0

    def get_function(self, name: str) -> Any:
        return self.linked().get_function(name)

    def get_llvm_str(self) -> str:
        return str(self.linked())

    def get_asm_str(self) -> str:
        return ""

    def linked(self) -> Any:
        """Return one module of all functions."""
        module, *others = map(llvm.parse_assembly, dict.fromkeys(self.all_texts()))
        for other in others:
            module.link_in(other)
        return module

    def all_texts(self) -> Iterator[str]:
        """Yield all functions, some more than once."""
        yield from self._texts
        for library in self._called:
            yield from library.all_texts()


class _Codegen(codegen.Codegen):  # type: ignore[misc]
    _library_class = _Library

    def __init__(self) -> None:
        llvm.initialize_native_target()
        machine = llvm.Target.from_default_triple().create_target_machine(codemodel="jitdefault", jit=True)
        self._target_data = machine.target_data

    def _create_empty_module(self, name: str) -> Any:
        module = ir.Module(cgutils.normalize_ir_text(name))
        module.triple = llvm.get_process_triple()
        return module

    def _add_module(self, module: Any) -> None:
        """Do nothing: nothing runs."""

    def set_env(self, env_name: str, env: Any) -> None:
        """Do nothing: the same."""


class _Context(cpu.CPUContext):  # type: ignore[misc]
    """How operations are written in LLVM's language: those of numbers, and intrinsics."""

    def init(self) -> None:
        self.is32bit = self.address_size == 32
        self._internal_codegen = _Codegen()

    def load_additional_registries(self) -> None:
        from numba.cpython import builtins, mathimpl, numbers, rangeobj, tupleobj  # noqa: F401  # they register what is in them

        self.install_registry(mathimpl.registry)

    def post_lowering(self, mod: Any, library: Any) -> None:
        """Do nothing, where numba's own links what counts references to objects."""


class _Target(TargetDescriptor):  # type: ignore[misc]
    options = cpu.CPUTargetOptions

    @functools.cached_property
    def typing_context(self) -> Any:
        return BaseContext()

    @functools.cached_property
    def target_context(self) -> Any:
        return _Context(self.typing_context, _NAME)


class _Passes(CompilerBase):  # type: ignore[misc]
    """What numba does of a function: what functions of numbers and pointers need, of what it does of all."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager(_NAME)
        for each in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.GenericRewrites,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.IRLegalization,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            manager.add_pass(each, each.__name__)
        manager.finalize()
        return [manager]


class _Kernels(target_extension.CPU):  # type: ignore[misc]
    """The target by its name."""


class _Function(Dispatcher):  # type: ignore[misc]
    targetdescr = _Target(_NAME)


def translatable(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return what makes a function one of this target's, given options of `numba.njit`."""
    return lambda function: _Function(function, targetoptions={**options, "nopython": True}, pipeline_class=_Passes)


def register(**options: Any) -> None:
    """Make the target known to numba, which compiles functions of its own with it, of which some operations consist."""
    target_extension.target_registry[_NAME] = _Kernels
    target_extension.dispatcher_registry[_Kernels] = _Function
    target_extension.jit_registry[_Kernels] = functools.partial(translatable, **options)


def translated(function: Any, signature: Any) -> tuple[Any, str]:
    """Return a module of LLVM with a function of the target's, and all that it calls; and the function's name in it."""
    with target_extension.target_override(_NAME):
        function.compile(signature)
    (result,) = function.overloads.values()
    return result.library.linked(), result.fndesc.mangled_name
