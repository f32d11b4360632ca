"""From a kernel's source to a function in memory: numba translates, LLVM compiles, llvmlite loads.

numba serves as a translator only. What runs is always object code, loaded by llvmlite, whether it was made
just now or comes from the cache; so a process that finds its kernels in the cache never imports numba.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from portopt._version import __version__
from portopt.kernels import cache
from portopt.kernels.host.source import kernel_source
from portopt.kernels.host.staged_source import staged_source
from portopt.kernels.key import Flush, KernelKey
from portopt.program import Program

ENTRY = "portopt_kernel"
_INSIDE = "portopt_kernel_inside"
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64
# numba's calling convention: first where the result goes, and where a description of an exception goes. What is returned is 0,
# and 1 if an exception was raised.
_PROTOTYPES = {
    "kernel": ctypes.CFUNCTYPE(
        ctypes.c_int, _POINTER, _POINTER,
        _POINTER, _POINTER, _INTEGER, _INTEGER, _INTEGER, _POINTER, _INTEGER, _POINTER,
    ),
    "stages": ctypes.CFUNCTYPE(
        ctypes.c_int, _POINTER, _POINTER,
        _POINTER, _POINTER, _INTEGER, _INTEGER, _INTEGER, _POINTER, _INTEGER, _POINTER, *[_INTEGER] * 4,
    ),
    "norm": ctypes.CFUNCTYPE(
        ctypes.c_int, _POINTER, _POINTER,
        _POINTER, _INTEGER, _INTEGER, _POINTER, *[_INTEGER] * 5,
    ),
    "norm_stages": ctypes.CFUNCTYPE(
        ctypes.c_int, _POINTER, _POINTER,
        _POINTER, _POINTER, _POINTER, _POINTER, _INTEGER, _INTEGER, _POINTER, *[_INTEGER] * 4,
    ),
    "queue": ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, *[_INTEGER] * 4),
    "numbers": ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, *[_INTEGER] * 5),
    "lines": ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, *[_INTEGER] * 9),
    "part": ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER),
    "share": ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _INTEGER),
}  # fmt: skip
_lock = threading.RLock()
_engines: list[Any] = []
_definitions: list[Any] = []
# Threads may be in their code while the interpreter ends, and functions of Python's may outlive this module.
for _kept in (_engines, _definitions):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))
_compiled: dict[tuple[str, str], Any] = {}
"""Functions that kernels call, as numba translates them: those of reductions are the same in many kernels of a process."""
_COMPILED = 256
"""How many are kept."""


# A process forks between two compilations, never in one: numba and LLVM have locks of their own, which a child would get locked.
def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    with contextlib.suppress(RuntimeError):  # it was not acquired, because waiting for it was interrupted
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@functools.cache
def available() -> bool:
    """Tell whether kernels can be compiled here: numba (which brings llvmlite) is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("numba", "llvmlite"))


def default_flush() -> Flush:
    """Return how this processor makes subnormals zero.

    Only x86 decides tininess after rounding when it flushes, which is what the contract says.
    """
    return "register" if platform.machine().lower() in ("x86_64", "amd64") else "where"


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def _target_machine() -> Any:
    llvm = _llvm()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _features() -> str:
    return str(_llvm().get_host_cpu_features().flatten())


@functools.cache
def _environment() -> dict[str, str]:
    """Return what machine code depends on beside its source."""
    return {
        "portopt": __version__,
        "functions": _digest_of_functions(),
        "numba": importlib.metadata.version("numba"),
        "llvmlite": importlib.metadata.version("llvmlite"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _llvm().get_host_cpu_name(),
        "features": _features(),
    }


def _digest_of_functions() -> str:
    """Return a digest of the modules that define what kernels' sources call, and of those beside them."""
    digest = hashlib.sha256()
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def compile_kernel(program: Program, key: KernelKey) -> Any:
    """Return the kernel as a function that ctypes calls without the GIL: of the prototype `"kernel"` if it is elementwise."""
    if program.is_elementwise:
        return compile_function(kernel_source(program, key), "kernel")
    return compile_function(staged_source(program, key), "stages")


def compile_function(source: str, prototype: str) -> Any:
    """Return the function called `kernel` in a source, of the named prototype, as ctypes calls it, without the GIL."""
    return _PROTOTYPES[prototype](_address(source, prototype))


def compile_method(source: str) -> Callable[[int], Callable[..., bool]]:
    """Return what makes a function of Python's, given an address that it keeps, of the function `kernel` in a source.

    It is called as Python's own are, in a tenth of the time of a call through ctypes, and holds the GIL. The source begins with
    `METHOD`. Its `kernel` has two arguments, from which `address_of`, `argument` and `integer` take what the function was given;
    it returns what `truth` makes of whether all is well.
    """
    definition = _Definition(b"kernel", _address(METHOD + source, "method"), _FASTCALL, None)
    _definitions.append(definition)
    api = ctypes.pythonapi
    functions = api.Py_IncRef, api.PyErr_Occurred, api.PyLong_AsLongLong
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    make = api.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]

    def made(address: int) -> Callable[..., bool]:
        own = array("q", (address, id(False), id(True), *addresses)).tobytes()
        function: Callable[..., bool] = make(ctypes.addressof(definition), own, None)
        return function

    return made


class _Definition(ctypes.Structure):
    """Python's own description of a function that is written in C."""

    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("function", _POINTER),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


_FASTCALL = 0x80
"""The arguments are an array of objects."""
METHOD = f'''"""A function that Python calls with objects."""


def address_of(own):
    """Return the address that the function was made with; what it keeps are the octets of a `bytes`."""
    return pointer_to_int64(own + {bytes.__basicsize__ - 1})[0]


def argument(given, k):
    """Return an argument, a borrowed reference to an object."""
    return pointer_to_int64(given)[k]


def integer(own, given, k):
    """Return the value of an argument that is an integer."""
    return object_of_call_1(pointer_to_int64(own + {bytes.__basicsize__ - 1})[5], argument(given, k))


def truth(own, value):
    """Return a reference to True or False; or 0, if Python has raised an error."""
    words = pointer_to_int64(own + {bytes.__basicsize__ - 1})
    if object_of_call_0(words[4]) != 0:
        return 0
    found = words[2] if value else words[1]
    call_1(words[3], found)
    return found


'''


def _address(source: str, prototype: str) -> int:
    """Return the address of the function called `kernel` in a source."""
    with _lock:
        cache_key = {**_environment(), "source": source}
        code = cache.load(cache_key)
        if code is None:
            with _without_collections():
                code = _compile(source, prototype)
            cache.store(cache_key, code)
        return _load(code)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Have no garbage collected: of the many objects that numba makes few are garbage, and collections look at all of them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _compile(source: str, prototype: str) -> bytes:
    """Compile a kernel's source to an object file that needs nothing of numba's.

    Raises:
        RuntimeError: a function that is called is not there without numba.
    """
    from portopt.kernels.host import product_support, reduction_support, support, vector_support
    from portopt.kernels.host.translation_support import translatable, translated

    further = {
        "stages": {**reduction_support.NAMESPACE, **vector_support.OPERATIONS},
        "norm": vector_support.NAMESPACE,
        "lines": product_support.NAMESPACE,
    }
    namespace = support.NAMESPACE | further.get(prototype, {})
    exec(compile(source, "<portopt kernel>", "exec"), namespace)
    if len(_compiled) > _COMPILED:
        _compiled.clear()
    for name, text in _functions(source).items():
        if name != "kernel":
            namespace[name] = _compiled.setdefault((prototype, text), translatable()(namespace[name]))
    module, name = translated(namespace["kernel"], support.SIGNATURES[prototype])
    if prototype == "method":
        module.get_function(name).name = _INSIDE
        module.link_in(_llvm().parse_assembly(_as_python_calls(module)))
    else:
        module.get_function(name).name = ENTRY
    foreign = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    if foreign:
        raise RuntimeError(f"the translated kernel calls {', '.join(foreign)}, which is not there without numba")
    _optimize(module)
    return bytes(_target_machine().emit_object(module))


def _as_python_calls(module: Any) -> str:
    """Return a module with a function that Python can call, which returns what the one of numba's in a module returns."""
    from llvmlite import ir

    found, word = ir.Module(), ir.IntType(64)
    found.triple, found.data_layout = module.triple, module.data_layout
    # numba's convention: where the result goes, and where an error would.
    result, error = word.as_pointer(), word.as_pointer().as_pointer()
    inside = ir.Function(found, ir.FunctionType(ir.IntType(32), [result, error, word, word]), _INSIDE)
    function = ir.Function(found, ir.FunctionType(word, [word] * 3), ENTRY)
    builder = ir.IRBuilder(function.append_basic_block())
    place, unused = builder.alloca(word), builder.alloca(word.as_pointer())
    builder.call(inside, [place, unused, *function.args[:2]])
    builder.ret(builder.load(place))
    return str(found)


def _optimize(module: Any) -> None:
    """Optimize a module for this processor as numba does: first what is always written out where it is called, then the rest.

    Neither may change a bit: LLVM takes liberties only with operations that are marked so, and none is.
    """
    llvm, machine = _llvm(), _target_machine()
    module.data_layout = str(machine.target_data)
    module.verify()
    for level in (0, 3):
        options = llvm.create_pipeline_tuning_options(speed_level=level)
        options.slp_vectorization = False
        options.loop_vectorization = level > 0
        builder = llvm.create_pass_builder(machine, options)
        passes = builder.getModulePassManager()
        if level == 0:
            passes.add_loop_rotate_pass()
            passes.add_instruction_combine_pass()
            passes.add_jump_threading_pass()
        passes.run(module, builder)
    # Only now: LLVM would write an internal function that is called once out there, whatever its size.
    for function in module.functions:
        if not function.is_declaration and function.name != ENTRY:
            function.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)


def _functions(source: str) -> dict[str, str]:
    """Return the functions of a source by name, each as its text and that of all that it calls."""
    definitions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    lines = source.splitlines()
    texts = {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in definitions}
    names = {
        node.name: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & texts.keys() for node in definitions
    }

    def called(name: str, found: set[str]) -> set[str]:
        found.add(name)
        for other in sorted(names[name] - found):
            called(other, found)
        return found

    return {name: "\n".join(texts[other] for other in (name, *sorted(called(name, set())))) for name in texts}


def _load(code: bytes) -> int:
    llvm = _llvm()
    module = llvm.parse_assembly("")
    engine = llvm.create_mcjit_compiler(module, _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(ENTRY))
