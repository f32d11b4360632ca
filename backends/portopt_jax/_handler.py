"""The function that XLA calls to run a host kernel: machine code made by llvmlite, so that no step waits for Python.

It reads XLA's description of the call (the C API of its foreign function interface, version 0), fills the kernel's table of
addresses, and shares the elements with XLA's own threads: the calling thread and helpers take chunk after chunk from a common
counter, and the caller waits only for chunks that were begun. A helper that starts when all is done finds nothing to do; the
last one to leave frees the counter. If there is no memory for it, it is on the stack and nobody helps; if there is none for the
tables, XLA gets an error.

A kernel with stages makes several passes: one over all small parameters, then one for each stage of each large one. What
depends on the shapes for that comes as an attribute of the call, see `layout`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from portopt.kernels.host.staged_steps import row_width, workspace
from portopt.kernels.host.threads import ELEMENTS_PER_THREAD, is_small
from portopt.kernels.stages import Stages

_SHARING = {"LEAST": ELEMENTS_PER_THREAD, "TWICE_LEAST": 2 * ELEMENTS_PER_THREAD, "CHUNKS_PER_THREAD": 4}
_engines: list[Any] = []


@functools.cache
def supported() -> bool:
    """Tell whether the handler fits this system: a 64-bit processor, a C library with the names of POSIX, a fit jaxlib and LLVM.

    jaxlib 0.8.0 ends the process when a handler made outside of it is registered, and llvmlite before 0.45, which comes with
    numba before 0.62, does not know the pointers that the handler is written with.
    """
    version: str = importlib.import_module("jaxlib").__version__
    release = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    return sys.platform in ("linux", "darwin") and sys.maxsize > 2**32 and release > (0, 8, 0) and _parses_pointers()


def _parses_pointers() -> bool:
    try:
        _llvm().parse_assembly("declare void @function(ptr)")
    except RuntimeError:
        return False
    return True


def layout(stages: Stages, shapes: Sequence[Sequence[int]], places: Sequence[int], *, apart: bool = True) -> Any:
    """Return what a handler of a kernel with stages must know of parameters of some shapes, int64.

    Number, elements and words of workspace of those parameters that are done at once; then of each parameter its row in the
    table, in which those come first, its elements, its workspace for each part and besides, its lengths, and if the program draws
    its number in the tree. Large parameters are done apart, or all at once.
    """
    lengths = [stages.lengths(shape) for shape in shapes]
    memory = [workspace(stages, of_each) for of_each in lengths]
    # Also a parameter without elements has scalars.
    sizes = [max(int(np.prod(shape)), 1) for shape in shapes]
    at_once = [i for i, size in enumerate(sizes) if is_small(size) or not apart]
    rows = {i: row for row, i in enumerate(sorted(range(len(sizes)), key=lambda i: i not in at_once))}
    words = [len(at_once), sum(sizes[i] for i in at_once), max((memory[i].words(1) for i in at_once), default=0)]
    for i, size in enumerate(sizes):
        words += [rows[i], size, memory[i].part, memory[i].whole, *lengths[i], *places[i : i + 1]]
    return np.array(words, np.int64)


def make_handler(
    kernel: Any,
    operands: int,
    results: int,
    *,
    in_place: bool,
    has_outputs: bool,
    stages: Stages | None,
    shared_steps: Sequence[bool] = (),
) -> Any:
    """Return a handler for XLA as a ctypes function.

    Operands are the kernel's scalar inputs in one float64 array, the number of the step as int32, then parameter, gradient,
    slots and further inputs of each parameter. Results are the scalar outputs in one float64 array, if there are any, then
    parameter and slots of each. A kernel with stages has one attribute, as `layout` returns it.

    Args:
        kernel: as `portopt.kernels.host.compiler.compile_kernel` returns it.
        operands: how many arrays each parameter has among the operands.
        results: how many it has among the results.
        in_place: whether the kernel overwrites its operands; then XLA must give the results the memory of the operands.
        has_outputs: whether the kernel has scalar outputs.
        stages: of the kernel; None if it is elementwise.
        shared_steps: as `portopt.kernels.host.staged_steps.shared_steps` returns them.
    """
    columns = operands if in_place else operands + results
    function, rows = entering(operands, results, fixed=2, fixed_results=int(has_outputs), in_place=in_place)
    values = {
        **rows,
        "KERNEL": ctypes.cast(kernel, ctypes.c_void_p).value,
        "COLUMNS": columns,
        "WIDTH": columns,
        "HAS_OUTPUTS": str(has_outputs).lower(),
    }
    if stages is None:
        parts = {"CALL": _CALL, "LAYOUT": "", "PLACE": _PLACE, "PASSES": _PASS}
    else:
        values |= _widths(stages, columns)
        done = "".join(
            string.Template(_PASS_OF_STAGE).safe_substitute(STAGE=i, WHICH="" if is_shared else "whole_")
            for i, is_shared in enumerate(shared_steps)
        )
        parts = _staged_parts(stages, columns, _PASSES.replace("$STAGES", done))
    call = parts.pop("CALL")
    return compiled(call, string.Template(_STEP).safe_substitute(parts), values, function)


def make_total_handler(
    kernel: Any, operands: int, stages: Stages, first: Sequence[int], kind_and_order: tuple[int, int], joining: int
) -> Any:
    """Return a handler for XLA, as a ctypes function, of a total over all parameters.

    Operands are those of `make_handler`, the result is the total, float64. It has one attribute, as `layout` returns it for
    parameters that are done at once.

    Args:
        kernel: of a program whose result is a reduction, as `portopt.kernels.totals.reducing` returns it.
        operands: how many arrays each parameter has.
        stages: of the kernel.
        first: the words that each thread's part begins with.
        kind_and_order: as `portopt.kernels.host.planned_totals.kind_and_order` returns it.
        joining: as the function of that name there does.
    """
    kind, order = kind_and_order
    function, rows = entering(operands, 0, fixed=2, fixed_results=0, in_place=False)
    values = {
        **rows,
        "KERNEL": ctypes.cast(kernel, ctypes.c_void_p).value,
        "COLUMNS": operands,
        "HAS_OUTPUTS": "false",
        "KIND": kind,
        "ORDER": order,
        "JOINING": joining,
    }
    begin = "".join(
        f"  %word_{k}_to = getelementptr i64, ptr %part, i64 {k}\n  store i64 {word}, ptr %word_{k}_to\n"
        for k, word in enumerate(first)
    )
    parts = _staged_parts(stages, operands, _TOTAL.replace("$BEGIN", begin))
    call = parts.pop("CALL")
    return compiled(call, string.Template(_STEP).safe_substitute(parts), values | _widths(stages, operands), function)


def _widths(stages: Stages, columns: int) -> dict[str, int]:
    lengths = row_width(stages, ())
    return {"WIDTH": columns + lengths, "WORDS": 4 + lengths}


def _staged_parts(stages: Stages, columns: int, passes: str) -> dict[str, str]:
    """Return the parts of a handler of a kernel with stages."""
    place = _PLACE_IN_LAYOUT + "".join(
        string.Template(_LENGTH).safe_substitute(K=k, FROM=4 + k, TO=columns + k) for k in range(row_width(stages, ()))
    )
    return {"CALL": _CALL_STAGES, "LAYOUT": LAYOUT, "PLACE": place, "PASSES": passes}


def compiled(call: str | None, body: str, values: Mapping[str, Any], constants: str = "") -> Any:
    """Return a handler for XLA as a ctypes function.

    Args:
        call: how the kernel, at the address `$KERNEL`, is called for one chunk; None if threads share nothing.
        body: what the handler does with the call's operands.
        values: what is put in place of names with a dollar sign.
        constants: definitions of what the two use besides.
    """
    llvm = _llvm()
    sharing = "" if call is None else string.Template(_SHARING_SOURCE).safe_substitute(CALL=call)
    source = string.Template(_SOURCE).safe_substitute(SHARING=sharing, BODY=body, CONSTANTS=constants)
    module = llvm.parse_assembly(string.Template(source).substitute(_SHARING, **values))
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(engine.get_function_address("handler"))


@functools.cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


_STEP = """  %array_count = sub i64 %operand_count, $FIXED
  %count = udiv i64 %array_count, $OPERANDS
  %entries = mul i64 %count, $WIDTH
  %words = add i64 %count, %entries
  %bytes = mul i64 %words, 8
  %sizes = call ptr @memory(i64 %bytes)
  %has_sizes = icmp ne ptr %sizes, null
  br i1 %has_sizes, label %fill, label %no_memory
fill:
  %table = getelementptr i64, ptr %sizes, i64 %count
  %inputs = call ptr @data(ptr %operands, i64 0)
  %step_from = call ptr @data(ptr %operands, i64 1)
  %narrow = load i32, ptr %step_from
  %step = sext i32 %narrow to i64
$LAYOUT  br i1 $HAS_OUTPUTS, label %take_outputs, label %begin_parameters
take_outputs:
  %outputs_given = call ptr @data(ptr %results, i64 0)
  br label %begin_parameters
begin_parameters:
  %outputs = phi ptr [ %outputs_given, %take_outputs ], [ null, %fill ]
  br label %next_parameter

next_parameter:
  %k = phi i64 [ 0, %begin_parameters ], [ %k_next, %sized ]
  %total = phi i64 [ 0, %begin_parameters ], [ %total_next, %sized ]
  %any_parameter = icmp ult i64 %k, %count
  br i1 %any_parameter, label %parameter, label %begin_passes
parameter:
$PLACE  %row = mul i64 %place, $WIDTH
  %size_to = getelementptr i64, ptr %sizes, i64 %place
  store i64 %size, ptr %size_to
  %entries_of_row = getelementptr i64, ptr %table, i64 %row
  %stays = call i1 @enter_row(ptr %operands, ptr %results, i64 %k, ptr %entries_of_row, i64 1)
  br i1 %stays, label %sized, label %refuse
sized:
  %total_next = add i64 %total, %size
  %k_next = add i64 %k, 1
  br label %next_parameter
refuse:
  call void @free(ptr %sizes)
  %moved = call ptr @error(ptr %frame, ptr @moved, i32 13)
  ret ptr %moved
no_memory:
  call void @free(ptr %sizes)
  %no_memory_error = call ptr @error(ptr %frame, ptr @exhausted, i32 8)
  ret ptr %no_memory_error

begin_passes:
$PASSES  call void @free(ptr %sizes)
  ret ptr null
"""

_ENTERING = """
; Enters where the arrays of a parameter lie, each so many words after the one before. Tells whether those that are overwritten
; lie where what replaces them does.
define internal i1 @enter_row(ptr %operands, ptr %results, i64 %row, ptr %table, i64 %stride) {
begin:
  %operands_before = mul i64 %row, $OPERANDS
  %operand_row = add i64 %operands_before, $FIXED
  %results_before = mul i64 %row, $RESULTS
  %result_row = add i64 %results_before, $FIXED_RESULTS
  br label %next
next:
  %c = phi i64 [ 0, %begin ], [ %c_next, %done ]
  %any = icmp ult i64 %c, $OPERANDS
  br i1 %any, label %operand, label %end
operand:
  %index = add i64 %operand_row, %c
  %address = call ptr @data(ptr %operands, i64 %index)
  %entry = mul i64 %c, %stride
  %entry_to = getelementptr ptr, ptr %table, i64 %entry
  store ptr %address, ptr %entry_to
  %is_gradient = icmp eq i64 %c, 1
  %is_further = icmp ugt i64 %c, $RESULTS
  %is_not_written = or i1 %is_gradient, %is_further
  %is_read_only = or i1 %is_not_written, $ONLY_READS
  br i1 %is_read_only, label %done, label %result
result:
  %after_gradient = icmp ugt i64 %c, 1
  %skipped = zext i1 %after_gradient to i64
  %result_column = sub i64 %c, %skipped
  %result_index = add i64 %result_row, %result_column
  %result_address = call ptr @data(ptr %results, i64 %result_index)
  br i1 $IN_PLACE, label %compare, label %enter_result
compare:
  %same = icmp eq ptr %address, %result_address
  br i1 %same, label %done, label %look
look:
  %buffer = call ptr @item(ptr %operands, i64 %index)
  %elements = call i64 @elements(ptr %buffer)
  %nothing = icmp eq i64 %elements, 0
  br i1 %nothing, label %done, label %refuse
enter_result:
  %column = add i64 %result_column, $OPERANDS
  %result_entry = mul i64 %column, %stride
  %result_entry_to = getelementptr ptr, ptr %table, i64 %result_entry
  store ptr %result_address, ptr %result_entry_to
  br label %done
done:
  %c_next = add i64 %c, 1
  br label %next
refuse:
  ret i1 false
end:
  ret i1 true
}
"""


def entering(
    operands: int, results: int, *, fixed: int, fixed_results: int, in_place: bool
) -> tuple[str, dict[str, Any]]:
    """Return the function `@enter_row`, and what is put in place of names with a dollar sign.

    Args:
        operands: how many arrays each parameter has among the operands.
        results: how many it has among the results.
        fixed: how many operands there are before the parameters'.
        fixed_results: how many results there are before the parameters'.
        in_place: whether operands are overwritten; then XLA must give the results the memory of the operands.
    """
    return _ENTERING, {
        "OPERANDS": operands,
        "RESULTS": results,
        "FIXED": fixed,
        "FIXED_RESULTS": fixed_results,
        "IN_PLACE": str(in_place).lower(),
        "ONLY_READS": str(not results).lower(),
    }


_CALL = """  %status = call i32 %kernel(ptr %unused, ptr %unused_too, ptr %table, ptr %sizes, i64 %count,
    i64 %start, i64 %stop, ptr %inputs, i64 %step, ptr %outputs)
"""

_CALL_STAGES = """  %stage_at = getelementptr %shared, ptr %job, i64 0, i32 14
  %workspace_at = getelementptr %shared, ptr %job, i64 0, i32 15
  %stride_at = getelementptr %shared, ptr %job, i64 0, i32 16
  %parts_at = getelementptr %shared, ptr %job, i64 0, i32 17
  %stage = load i64, ptr %stage_at
  %workspace = load ptr, ptr %workspace_at
  %stride = load i64, ptr %stride_at
  %parts = load i64, ptr %parts_at
  %own_at = mul i64 %i, %stride
  %own = getelementptr i64, ptr %workspace, i64 %own_at
  %is_of_stage = icmp sge i64 %stage, 0
  %part = select i1 %is_of_stage, i64 %i, i64 0
  %status = call i32 %kernel(ptr %unused, ptr %unused_too, ptr %table, ptr %sizes, i64 %count,
    i64 %start, i64 %stop, ptr %inputs, i64 %step, ptr %outputs, i64 %stage, ptr %own, i64 %part, i64 %parts)
"""

_PLACE = """  %place = add i64 %k, 0
  %operands_before = mul i64 %k, $OPERANDS
  %operand_row = add i64 %operands_before, $FIXED
  %parameter_buffer = call ptr @item(ptr %operands, i64 %operand_row)
  %elements = call i64 @elements(ptr %parameter_buffer)
  %size = add i64 %elements, 0
"""

LAYOUT = """  %attributes_at = getelementptr %frame, ptr %frame, i64 0, i32 7, i32 5
  %attributes = load ptr, ptr %attributes_at
  %attribute = load ptr, ptr %attributes
  %layout_at = getelementptr %array, ptr %attribute, i64 0, i32 2
  %layout = load ptr, ptr %layout_at
"""

_PLACE_IN_LAYOUT = """  %words_before = mul i64 %k, $WORDS
  %words_from = add i64 %words_before, 3
  %own_layout = getelementptr i64, ptr %layout, i64 %words_from
  %place = load i64, ptr %own_layout
  %size_at = getelementptr i64, ptr %own_layout, i64 1
  %size = load i64, ptr %size_at
  %lengths_before = mul i64 %place, $WIDTH
  %lengths = getelementptr i64, ptr %table, i64 %lengths_before
"""

_LENGTH = """  %length_${K}_at = getelementptr i64, ptr %own_layout, i64 $FROM
  %length_$K = load i64, ptr %length_${K}_at
  %length_${K}_to = getelementptr i64, ptr %lengths, i64 $TO
  store i64 %length_$K, ptr %length_${K}_to
"""

_PASS = """  %chunk = call i64 @chunk(ptr %frame, ptr %context, i64 %total)
  call void @pass(ptr %frame, ptr %context, ptr %table, ptr %sizes, i64 %count, i64 %total, i64 %chunk, ptr %inputs,
    i64 %step, ptr %outputs, i64 -1, ptr null, i64 0, i64 1)
"""

_PASSES = """  %alone_count = load i64, ptr %layout
  %alone_total_at = getelementptr i64, ptr %layout, i64 1
  %alone_total = load i64, ptr %alone_total_at
  %alone_words_at = getelementptr i64, ptr %layout, i64 2
  %alone_words = load i64, ptr %alone_words_at
  %any_alone = icmp ne i64 %alone_count, 0
  br i1 %any_alone, label %alone, label %begin_shared
alone:
  %alone_chunk = call i64 @chunk(ptr %frame, ptr %context, i64 %alone_total)
  %alone_chunks = call i64 @chunks(i64 %alone_total, i64 %alone_chunk)
  %alone_words_of_all = mul i64 %alone_words, %alone_chunks
  %alone_bytes = mul i64 %alone_words_of_all, 8
  %alone_workspace = call ptr @memory(i64 %alone_bytes)
  %alone_has_workspace = icmp ne ptr %alone_workspace, null
  br i1 %alone_has_workspace, label %run_alone, label %no_memory
run_alone:
  call void @pass(ptr %frame, ptr %context, ptr %table, ptr %sizes, i64 %alone_count, i64 %alone_total, i64 %alone_chunk,
    ptr %inputs, i64 %step, ptr %outputs, i64 -1, ptr %alone_workspace, i64 %alone_words, i64 1)
  call void @free(ptr %alone_workspace)
  br label %begin_shared
begin_shared:
  br label %next_shared
next_shared:
  %s = phi i64 [ 0, %begin_shared ], [ %s_next, %shared_done ]
  %any_shared = icmp ult i64 %s, %count
  br i1 %any_shared, label %look_shared, label %passes_done
look_shared:
  %s_before = mul i64 %s, $WORDS
  %s_from = add i64 %s_before, 3
  %s_layout = getelementptr i64, ptr %layout, i64 %s_from
  %s_place = load i64, ptr %s_layout
  %was_done = icmp ult i64 %s_place, %alone_count
  br i1 %was_done, label %shared_done, label %shared
shared:
  %s_size_at = getelementptr i64, ptr %s_layout, i64 1
  %s_size = load i64, ptr %s_size_at
  %s_part_words_at = getelementptr i64, ptr %s_layout, i64 2
  %s_part_words = load i64, ptr %s_part_words_at
  %s_whole_words_at = getelementptr i64, ptr %s_layout, i64 3
  %s_whole_words = load i64, ptr %s_whole_words_at
  %s_row = mul i64 %s_place, $WIDTH
  %s_table = getelementptr i64, ptr %table, i64 %s_row
  %s_sizes = getelementptr i64, ptr %sizes, i64 %s_place
  %s_chunk = call i64 @chunk(ptr %frame, ptr %context, i64 %s_size)
  %s_whole_chunk = add i64 %s_size, 0
  %s_chunks = call i64 @chunks(i64 %s_size, i64 %s_chunk)
  %s_words_of_parts = mul i64 %s_part_words, %s_chunks
  %s_words = add i64 %s_words_of_parts, %s_whole_words
  %s_bytes = mul i64 %s_words, 8
  %s_workspace = call ptr @memory(i64 %s_bytes)
  %s_has_workspace = icmp ne ptr %s_workspace, null
  br i1 %s_has_workspace, label %run_stages, label %no_memory
run_stages:
$STAGES  call void @free(ptr %s_workspace)
  br label %shared_done
shared_done:
  %s_next = add i64 %s, 1
  br label %next_shared
passes_done:
"""

_TOTAL = """  %sum_at = getelementptr i64, ptr %layout, i64 1
  %sum = load i64, ptr %sum_at
  %own_words_at = getelementptr i64, ptr %layout, i64 2
  %own_words = load i64, ptr %own_words_at
  %own_chunk = call i64 @chunk(ptr %frame, ptr %context, i64 %sum)
  %own_chunks = call i64 @chunks(i64 %sum, i64 %own_chunk)
  %own_bytes = mul i64 %own_words, 8
  %bytes_of_all = mul i64 %own_bytes, %own_chunks
  %workspace = call ptr @memory(i64 %bytes_of_all)
  %has_workspace = icmp ne ptr %workspace, null
  br i1 %has_workspace, label %next_begin, label %no_memory
next_begin:
  %b = phi i64 [ 0, %begin_passes ], [ %b_next, %begin_part ]
  %any_begin = icmp ult i64 %b, %own_chunks
  br i1 %any_begin, label %begin_part, label %run_total
begin_part:
  %words_to_part = mul i64 %b, %own_words
  %part = getelementptr i64, ptr %workspace, i64 %words_to_part
$BEGIN  %b_next = add i64 %b, 1
  br label %next_begin
run_total:
  call void @pass(ptr %frame, ptr %context, ptr %table, ptr %sizes, i64 %count, i64 %sum, i64 %own_chunk, ptr %inputs,
    i64 %step, ptr null, i64 -1, ptr %workspace, i64 %own_words, i64 1)
  %kept = alloca [5 x i64]
  store i64 $KIND, ptr %kept
  %order_to = getelementptr i64, ptr %kept, i64 1
  store i64 $ORDER, ptr %order_to
  %first_to = getelementptr i64, ptr %kept, i64 2
  store ptr %workspace, ptr %first_to
  %apart_to = getelementptr i64, ptr %kept, i64 3
  store i64 %own_bytes, ptr %apart_to
  %parts_to = getelementptr i64, ptr %kept, i64 4
  store i64 %own_chunks, ptr %parts_to
  %total_to = call ptr @data(ptr %results, i64 0)
  %joining = inttoptr i64 $JOINING to ptr
  %joined = call i32 %joining(ptr %kept, ptr %total_to)
  call void @free(ptr %workspace)
"""

_PASS_OF_STAGE = """  call void @pass(ptr %frame, ptr %context, ptr %s_table, ptr %s_sizes, i64 1, i64 %s_size,
    i64 %s_${WHICH}chunk, ptr %inputs, i64 %step, ptr %outputs, i64 $STAGE, ptr %s_workspace, i64 0, i64 %s_chunks)
"""

# What threads share of a pass, in 64-bit words: 0 next chunk, 1 chunks done, 2 references, 3 chunks, 4 elements a chunk,
# 5 elements, 6 step, 7 parameters, 8 table, 9 sizes, 10 inputs, 11 outputs, 12 and 13 unused results of the kernel, 14 stage,
# 15 workspace, 16 its words for each chunk, 17 parts of a stage.
_SOURCE = r"""
%shared = type { i64, i64, i64, i64, i64, i64, i64, i64, ptr, ptr, ptr, ptr, i64, i64, i64, ptr, i64, i64 }
%extension = type { i64, i32, ptr, ptr }
%version = type { i64, ptr, i32, i32 }
%metadata = type { i64, %version, i32, i64 }
%list = type { i64, ptr, i64, ptr, ptr }
%frame = type { i64, ptr, ptr, ptr, i32, %list, %list, %attributes }
%attributes = type { i64, ptr, i64, ptr, ptr, ptr }
%array = type { i32, i64, ptr }
%buffer = type { i64, ptr, i32, ptr, i64, ptr }
%api = type { i64, ptr, %version, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr }
%create_error = type { i64, ptr, ptr, i32 }
%destroy_error = type { i64, ptr, ptr }
%thread_count = type { i64, ptr, ptr, ptr }
%schedule = type { i64, ptr, ptr, ptr, ptr }

@moved = private constant [59 x i8] c"portopt: XLA gave a result other memory than its operand's\00"
@exhausted = private constant [48 x i8] c"portopt: there is no memory for a step's tables\00"
$CONSTANTS
declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
$SHARING
define internal ptr @memory(i64 %bytes) {
  %at_least_one = call i64 @llvm.umax.i64(i64 %bytes, i64 1)
  %memory = call ptr @malloc(i64 %at_least_one)
  ret ptr %memory
}

define internal ptr @item(ptr %list, i64 %i) {
  %items_at = getelementptr %list, ptr %list, i64 0, i32 4
  %items = load ptr, ptr %items_at
  %item_at = getelementptr ptr, ptr %items, i64 %i
  %item = load ptr, ptr %item_at
  ret ptr %item
}

define internal ptr @data(ptr %list, i64 %i) {
  %buffer = call ptr @item(ptr %list, i64 %i)
  %data_at = getelementptr %buffer, ptr %buffer, i64 0, i32 3
  %data = load ptr, ptr %data_at
  ret ptr %data
}

define internal i64 @elements(ptr %buffer) {
begin:
  %rank_at = getelementptr %buffer, ptr %buffer, i64 0, i32 4
  %rank = load i64, ptr %rank_at
  %dimensions_at = getelementptr %buffer, ptr %buffer, i64 0, i32 5
  %dimensions = load ptr, ptr %dimensions_at
  br label %next
next:
  %i = phi i64 [ 0, %begin ], [ %i_next, %more ]
  %product = phi i64 [ 1, %begin ], [ %product_next, %more ]
  %any = icmp ult i64 %i, %rank
  br i1 %any, label %more, label %end
more:
  %dimension_at = getelementptr i64, ptr %dimensions, i64 %i
  %dimension = load i64, ptr %dimension_at
  %product_next = mul i64 %product, %dimension
  %i_next = add i64 %i, 1
  br label %next
end:
  ret i64 %product
}

define internal ptr @function(ptr %frame, i32 %index) {
  %api_at = getelementptr %frame, ptr %frame, i64 0, i32 2
  %api = load ptr, ptr %api_at
  %functions = getelementptr %api, ptr %api, i64 0, i32 4
  %function_at = getelementptr ptr, ptr %functions, i32 %index
  %function = load ptr, ptr %function_at
  ret ptr %function
}

define internal void @destroy(ptr %frame, ptr %error) {
  %arguments = alloca %destroy_error
  store %destroy_error { i64 24, ptr null, ptr null }, ptr %arguments
  %error_at = getelementptr %destroy_error, ptr %arguments, i64 0, i32 2
  store ptr %error, ptr %error_at
  %destroy = call ptr @function(ptr %frame, i32 2)
  call void %destroy(ptr %arguments)
  ret void
}

define internal ptr @error(ptr %frame, ptr %message, i32 %code) {
  %arguments = alloca %create_error
  store %create_error { i64 28, ptr null, ptr null, i32 0 }, ptr %arguments
  %message_at = getelementptr %create_error, ptr %arguments, i64 0, i32 2
  store ptr %message, ptr %message_at
  %code_at = getelementptr %create_error, ptr %arguments, i64 0, i32 3
  store i32 %code, ptr %code_at
  %create = call ptr @function(ptr %frame, i32 0)
  %error = call ptr %create(ptr %arguments)
  ret ptr %error
}

define ptr @handler(ptr %frame) {
begin:
  %extension_at = getelementptr %frame, ptr %frame, i64 0, i32 1
  %extension = load ptr, ptr %extension_at
  %extended = icmp ne ptr %extension, null
  br i1 %extended, label %look, label %call
look:
  %kind_at = getelementptr %extension, ptr %extension, i64 0, i32 1
  %kind = load i32, ptr %kind_at
  %asked = icmp eq i32 %kind, 1
  br i1 %asked, label %describe, label %call
describe:
  %metadata_at = getelementptr %extension, ptr %extension, i64 0, i32 3
  %metadata = load ptr, ptr %metadata_at
  %api_at = getelementptr %frame, ptr %frame, i64 0, i32 2
  %api = load ptr, ptr %api_at
  %minor_at = getelementptr %api, ptr %api, i64 0, i32 2, i32 3
  %minor = load i32, ptr %minor_at
  %my_major = getelementptr %metadata, ptr %metadata, i64 0, i32 1, i32 2
  store i32 0, ptr %my_major
  %my_minor = getelementptr %metadata, ptr %metadata, i64 0, i32 1, i32 3
  store i32 %minor, ptr %my_minor
  %my_traits = getelementptr %metadata, ptr %metadata, i64 0, i32 2
  store i32 0, ptr %my_traits
  ret ptr null

call:
  %context_at = getelementptr %frame, ptr %frame, i64 0, i32 3
  %context = load ptr, ptr %context_at
  %operands = getelementptr %frame, ptr %frame, i64 0, i32 5
  %results = getelementptr %frame, ptr %frame, i64 0, i32 6
  %operand_count_at = getelementptr %list, ptr %operands, i64 0, i32 2
  %operand_count = load i64, ptr %operand_count_at
$BODY}
"""

_SHARING_SOURCE = r"""
define internal void @work(ptr %job) {
begin:
  %done = getelementptr %shared, ptr %job, i64 0, i32 1
  %chunks_at = getelementptr %shared, ptr %job, i64 0, i32 3
  %chunk_at = getelementptr %shared, ptr %job, i64 0, i32 4
  %total_at = getelementptr %shared, ptr %job, i64 0, i32 5
  %step_at = getelementptr %shared, ptr %job, i64 0, i32 6
  %count_at = getelementptr %shared, ptr %job, i64 0, i32 7
  %table_at = getelementptr %shared, ptr %job, i64 0, i32 8
  %sizes_at = getelementptr %shared, ptr %job, i64 0, i32 9
  %inputs_at = getelementptr %shared, ptr %job, i64 0, i32 10
  %outputs_at = getelementptr %shared, ptr %job, i64 0, i32 11
  %unused = getelementptr %shared, ptr %job, i64 0, i32 12
  %unused_too = getelementptr %shared, ptr %job, i64 0, i32 13
  %chunks = load i64, ptr %chunks_at
  br label %take
take:
  %i = atomicrmw add ptr %job, i64 1 seq_cst
  %any = icmp ult i64 %i, %chunks
  br i1 %any, label %run, label %end
run:
  %chunk = load i64, ptr %chunk_at
  %total = load i64, ptr %total_at
  %step = load i64, ptr %step_at
  %count = load i64, ptr %count_at
  %table = load ptr, ptr %table_at
  %sizes = load ptr, ptr %sizes_at
  %inputs = load ptr, ptr %inputs_at
  %outputs = load ptr, ptr %outputs_at
  %start = mul i64 %i, %chunk
  %full = add i64 %start, %chunk
  %stop = call i64 @llvm.umin.i64(i64 %full, i64 %total)
  %kernel = inttoptr i64 $KERNEL to ptr
$CALL  %before = atomicrmw add ptr %done, i64 1 seq_cst
  br label %take
end:
  ret void
}

define internal void @leave(ptr %job) {
begin:
  %references = getelementptr %shared, ptr %job, i64 0, i32 2
  %before = atomicrmw sub ptr %references, i64 1 seq_cst
  %last = icmp eq i64 %before, 1
  br i1 %last, label %last_one, label %end
last_one:
  call void @free(ptr %job)
  ret void
end:
  ret void
}

define internal void @help(ptr %job) {
  call void @work(ptr %job)
  call void @leave(ptr %job)
  ret void
}

define internal i64 @threads(ptr %frame, ptr %context) {
begin:
  %count = alloca i64
  store i64 1, ptr %count
  %arguments = alloca %thread_count
  store %thread_count { i64 32, ptr null, ptr null, ptr null }, ptr %arguments
  %context_at = getelementptr %thread_count, ptr %arguments, i64 0, i32 2
  store ptr %context, ptr %context_at
  %count_at = getelementptr %thread_count, ptr %arguments, i64 0, i32 3
  store ptr %count, ptr %count_at
  %ask = call ptr @function(ptr %frame, i32 12)
  %error = call ptr %ask(ptr %arguments)
  %good = icmp eq ptr %error, null
  br i1 %good, label %known, label %unknown
known:
  %threads = load i64, ptr %count
  %at_least_one = call i64 @llvm.umax.i64(i64 %threads, i64 1)
  ret i64 %at_least_one
unknown:
  call void @destroy(ptr %frame, ptr %error)
  ret i64 1
}

define internal i64 @chunk(ptr %frame, ptr %context, i64 %total) {
begin:
  %large = icmp uge i64 %total, ${TWICE_LEAST}
  br i1 %large, label %count_threads, label %split
count_threads:
  %found = call i64 @threads(ptr %frame, ptr %context)
  br label %split
split:
  %threads = phi i64 [ 1, %begin ], [ %found, %count_threads ]
  %several = icmp ugt i64 %threads, 1
  %pieces = mul i64 %threads, $CHUNKS_PER_THREAD
  %share = udiv i64 %total, %pieces
  %share_at_least = call i64 @llvm.umax.i64(i64 %share, i64 $LEAST)
  %share_up = add i64 %share_at_least, 63
  %share_aligned = and i64 %share_up, -64
  %chunk_or_zero = select i1 %several, i64 %share_aligned, i64 %total
  %chunk = call i64 @llvm.umax.i64(i64 %chunk_or_zero, i64 1)
  ret i64 %chunk
}

define internal i64 @chunks(i64 %total, i64 %chunk) {
  %total_up = add i64 %total, %chunk
  %total_less = sub i64 %total_up, 1
  %chunks_or_zero = udiv i64 %total_less, %chunk
  %chunks = call i64 @llvm.umax.i64(i64 %chunks_or_zero, i64 1)
  ret i64 %chunks
}

define internal void @pass(ptr %frame, ptr %context, ptr %table, ptr %sizes, i64 %count, i64 %total, i64 %chunk,
    ptr %inputs, i64 %step, ptr %outputs, i64 %stage, ptr %workspace, i64 %stride, i64 %parts) {
begin:
  %chunks = call i64 @chunks(i64 %total, i64 %chunk)
  %several = icmp ugt i64 %chunks, 1
  br i1 %several, label %count_threads, label %fill
count_threads:
  %found = call i64 @threads(ptr %frame, ptr %context)
  br label %fill
fill:
  %threads = phi i64 [ 1, %begin ], [ %found, %count_threads ]
  %bytes = ptrtoint ptr getelementptr (%shared, ptr null, i64 1) to i64
  %lasting = call ptr @memory(i64 %bytes)
  %alone = icmp eq ptr %lasting, null
  %passing = alloca %shared
  %job = select i1 %alone, ptr %passing, ptr %lasting
  %possible = call i64 @llvm.umin.i64(i64 %threads, i64 %chunks)
  %team = select i1 %alone, i64 1, i64 %possible
  store i64 0, ptr %job
  %done = getelementptr %shared, ptr %job, i64 0, i32 1
  store i64 0, ptr %done
  %references = getelementptr %shared, ptr %job, i64 0, i32 2
  ; One more than leave, so that nobody frees what is on the stack.
  %references_of_all = select i1 %alone, i64 2, i64 %team
  store i64 %references_of_all, ptr %references
  %chunks_to = getelementptr %shared, ptr %job, i64 0, i32 3
  store i64 %chunks, ptr %chunks_to
  %chunk_to = getelementptr %shared, ptr %job, i64 0, i32 4
  store i64 %chunk, ptr %chunk_to
  %total_to = getelementptr %shared, ptr %job, i64 0, i32 5
  store i64 %total, ptr %total_to
  %step_to = getelementptr %shared, ptr %job, i64 0, i32 6
  store i64 %step, ptr %step_to
  %count_to = getelementptr %shared, ptr %job, i64 0, i32 7
  store i64 %count, ptr %count_to
  %table_to = getelementptr %shared, ptr %job, i64 0, i32 8
  store ptr %table, ptr %table_to
  %sizes_to = getelementptr %shared, ptr %job, i64 0, i32 9
  store ptr %sizes, ptr %sizes_to
  %inputs_to = getelementptr %shared, ptr %job, i64 0, i32 10
  store ptr %inputs, ptr %inputs_to
  %outputs_to = getelementptr %shared, ptr %job, i64 0, i32 11
  store ptr %outputs, ptr %outputs_to
  %stage_to = getelementptr %shared, ptr %job, i64 0, i32 14
  store i64 %stage, ptr %stage_to
  %workspace_to = getelementptr %shared, ptr %job, i64 0, i32 15
  store ptr %workspace, ptr %workspace_to
  %stride_to = getelementptr %shared, ptr %job, i64 0, i32 16
  store i64 %stride, ptr %stride_to
  %parts_to = getelementptr %shared, ptr %job, i64 0, i32 17
  store i64 %parts, ptr %parts_to
  %schedule_arguments = alloca %schedule
  store %schedule { i64 40, ptr null, ptr null, ptr @help, ptr null }, ptr %schedule_arguments
  %schedule_context = getelementptr %schedule, ptr %schedule_arguments, i64 0, i32 2
  store ptr %context, ptr %schedule_context
  %schedule_job = getelementptr %schedule, ptr %schedule_arguments, i64 0, i32 4
  store ptr %job, ptr %schedule_job
  br label %next_helper
next_helper:
  %h = phi i64 [ 1, %fill ], [ %h_next, %helper_done ]
  %any_helper = icmp ult i64 %h, %team
  br i1 %any_helper, label %helper, label %own_work
helper:
  %schedule = call ptr @function(ptr %frame, i32 11)
  %schedule_error = call ptr %schedule(ptr %schedule_arguments)
  %scheduled = icmp eq ptr %schedule_error, null
  br i1 %scheduled, label %helper_done, label %no_helper
no_helper:
  call void @destroy(ptr %frame, ptr %schedule_error)
  call void @leave(ptr %job)
  br label %helper_done
helper_done:
  %h_next = add i64 %h, 1
  br label %next_helper

own_work:
  call void @work(ptr %job)
  br label %wait
wait:
  %finished = load atomic i64, ptr %done seq_cst, align 8
  %all = icmp eq i64 %finished, %chunks
  br i1 %all, label %end, label %pause
pause:
  %yielded = call i32 @sched_yield()
  br label %wait
end:
  call void @leave(ptr %job)
  ret void
}
"""
