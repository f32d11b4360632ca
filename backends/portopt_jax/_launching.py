"""The functions that XLA calls to launch kernels in CUDA C on its stream; see `_handler.py` for how they are made.

What tells a kernel where its parameters are goes to the device in the arguments of the launch: a handler keeps nothing, waits for
nothing, and copies nothing from the host's memory.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, Literal

from portopt.kernels.cuda.source import THREADS
from portopt_jax._handler import LAYOUT, compiled

Word = tuple[Literal["operand", "result", "layout"], int]
"""An argument of a kernel, a word: where an operand or a result lies, or a word of the call's layout, by its number."""


def make_launching_handler(
    functions: Sequence[int],
    driver: tuple[int, int],
    arguments: Sequence[Word],
    *,
    fixed: int,
    fixed_results: int,
    operands: int,
    results: int,
    in_place: bool,
    words: int,
) -> Any:
    """Return a handler for XLA, as a ctypes function, of a kernel that works on many parameters.

    Operands are the kernel's other arguments, then the arrays of each parameter; results are what the kernel makes of all, then
    those of each parameter. The call has one attribute: the number of blocks, then the table but for the addresses, as
    `portopt.kernels.cuda.tables.Chunks.few` returns it.

    Args:
        functions: the kernel on each device by its number.
        driver: the addresses of `cuCtxGetDevice` and `cuLaunchKernel`.
        arguments: of the kernel, after the table.
        fixed: how many operands there are before the parameters'.
        fixed_results: how many results there are before the parameters'.
        operands: how many arrays each parameter has among the operands.
        results: how many it has among the results.
        in_place: whether the kernel overwrites its operands; then XLA must give the results the memory of the operands.
        words: how many the table has.
    """
    columns = operands if in_place else operands + results
    body = string.Template(_ON_PARAMETERS).safe_substitute(
        LAUNCH=_launch(_words(arguments), 2 + words), STREAM=_STREAM, LAYOUT=LAYOUT
    )
    values = {
        "FIXED": fixed,
        "OPERANDS": operands,
        "FIRST_RESULT": fixed_results,
        "RESULTS": results,
        "COLUMNS": columns,
        "IN_PLACE": str(in_place).lower(),
        "BYTES": 8 * (2 + words + len(arguments)),
    }
    return _compiled(functions, driver, body, values)


def make_call_handler(functions: Sequence[int], driver: tuple[int, int], arguments: Sequence[Word]) -> Any:
    """Return a handler for XLA of a kernel of one block, as a ctypes function; see `make_launching_handler`."""
    body = string.Template(_ALONE).safe_substitute(LAUNCH=_launch(_words(arguments), 0), STREAM=_STREAM, LAYOUT=LAYOUT)
    return _compiled(functions, driver, body, {"BYTES": 8 * len(arguments)})


def _compiled(functions: Sequence[int], driver: tuple[int, int], body: str, values: dict[str, Any]) -> Any:
    words = [f"i64 {function}" for function in functions]
    listed = f"[{len(words)} x i64] [{', '.join(words)}]"
    constants = string.Template(_CONSTANTS).substitute(FUNCTIONS=listed, LAUNCH=driver[1], THREADS=THREADS)
    given = {"DEVICES": len(functions), "CURRENT_DEVICE": driver[0]}
    return compiled(None, body, values | given, constants)


def _words(arguments: Sequence[Word]) -> list[str]:
    """Return the text that finds each argument."""
    found = []
    for k, (kind, number) in enumerate(arguments):
        if kind == "layout":
            found.append(
                f"  %at_{k} = getelementptr i64, ptr %layout, i64 {number}\n  %word_{k} = load i64, ptr %at_{k}\n"
            )
        else:
            found.append(
                f"  %at_{k} = call ptr @data(ptr %{kind}s, i64 {number})\n  %word_{k} = ptrtoint ptr %at_{k} to i64\n"
            )
    return found


def _launch(words: Sequence[str], first: int) -> str:
    """Return the text that launches the kernel of the device in `%blocks` blocks, its arguments in the memory at `%arguments`.

    Args:
        words: the text that finds each argument after the table.
        first: how many words the table has, its numbers included.
    """
    stores = [
        f"  %to_{k} = getelementptr i64, ptr %arguments, i64 {first + k}\n  store i64 %word_{k}, ptr %to_{k}\n"
        for k in range(len(words))
    ]
    return (
        f"{''.join([*words, *stores])}"
        "  %function_at = getelementptr i64, ptr @functions, i64 %device_number\n"
        "  %function = load i64, ptr %function_at\n"
        "  %launched = call i32 @launch(i64 %function, i64 %blocks, ptr %arguments, i64 $BYTES, ptr %stream)\n"
    )


_CONSTANTS = """%stream_get = type { i64, ptr, ptr, ptr }
@functions = private constant $FUNCTIONS
@not_launched = private constant [47 x i8] c"portopt: CUDA's driver did not launch a kernel\\00"

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define internal i32 @launch(i64 %function, i64 %blocks, ptr %arguments, i64 %bytes, ptr %stream) {
  %size = alloca i64
  store i64 %bytes, ptr %size
  %extra = alloca [5 x ptr]
  ; The marks of a buffer, of its size, and of the end.
  store [5 x ptr] [ptr inttoptr (i64 1 to ptr), ptr null, ptr inttoptr (i64 2 to ptr), ptr null, ptr null], ptr %extra
  %buffer_to = getelementptr ptr, ptr %extra, i64 1
  store ptr %arguments, ptr %buffer_to
  %size_to = getelementptr ptr, ptr %extra, i64 3
  store ptr %size, ptr %size_to
  %kernel = inttoptr i64 %function to ptr
  %launch = inttoptr i64 $LAUNCH to ptr
  %grid = trunc i64 %blocks to i32
  %status = call i32 %launch(ptr %kernel, i32 %grid, i32 1, i32 1, i32 $THREADS, i32 1, i32 1, i32 0, ptr %stream,
    ptr null, ptr %extra)
  ret i32 %status
}
"""

_STREAM = """  %stream_arguments = alloca %stream_get
  store %stream_get { i64 32, ptr null, ptr null, ptr null }, ptr %stream_arguments
  %stream_context = getelementptr %stream_get, ptr %stream_arguments, i64 0, i32 2
  store ptr %context, ptr %stream_context
  %ask_stream = call ptr @function(ptr %frame, i32 4)
  %stream_error = call ptr %ask_stream(ptr %stream_arguments)
  %has_stream = icmp eq ptr %stream_error, null
  br i1 %has_stream, label %know_stream, label %no_stream
no_stream:
  ret ptr %stream_error
know_stream:
  %stream_at = getelementptr %stream_get, ptr %stream_arguments, i64 0, i32 3
  %stream = load ptr, ptr %stream_at
"""

_BEGIN = """$LAYOUT$STREAM  %device_at = alloca i32
  %current_device = inttoptr i64 $CURRENT_DEVICE to ptr
  %device_status = call i32 %current_device(ptr %device_at)
  %has_device = icmp eq i32 %device_status, 0
  %device = load i32, ptr %device_at
  %is_known = icmp ult i32 %device, $DEVICES
  %good_device = and i1 %has_device, %is_known
  br i1 %good_device, label %know_device, label %failed
failed:
  %failure = call ptr @error(ptr %frame, ptr @not_launched, i32 13)
  ret ptr %failure
know_device:
  %device_number = zext i32 %device to i64
"""

_ALONE = (
    _BEGIN
    + """  %blocks = add i64 1, 0
  %arguments = alloca i8, i64 $BYTES, align 8
$LAUNCH  %good = icmp eq i32 %launched, 0
  br i1 %good, label %end, label %failed
end:
  ret ptr null
"""
)

_ON_PARAMETERS = (
    _BEGIN
    + """  %blocks = load i64, ptr %layout
  %any_blocks = icmp ne i64 %blocks, 0
  br i1 %any_blocks, label %take_memory, label %end
take_memory:
  %array_count = sub i64 %operand_count, $FIXED
  %count = udiv i64 %array_count, $OPERANDS
  %arguments = call ptr @memory(i64 $BYTES)
  %has_arguments = icmp ne ptr %arguments, null
  br i1 %has_arguments, label %begin_rows, label %no_memory
begin_rows:
  %given = getelementptr i64, ptr %layout, i64 1
  %twice = mul i64 %count, 2
  %words_given = add i64 %twice, 3
  %bytes_given = mul i64 %words_given, 8
  call void @llvm.memcpy.p0.p0.i64(ptr %arguments, ptr %given, i64 %bytes_given, i1 false)
  %addresses = getelementptr i64, ptr %arguments, i64 %words_given
  br label %next_row
next_row:
  %r = phi i64 [ 0, %begin_rows ], [ %r_next, %row_done ]
  %any_row = icmp ult i64 %r, %count
  br i1 %any_row, label %row, label %filled
row:
  %operands_before = mul i64 %r, $OPERANDS
  %operand_row = add i64 %operands_before, $FIXED
  %results_before = mul i64 %r, $RESULTS
  %result_row = add i64 %results_before, $FIRST_RESULT
  br label %next_column
next_column:
  %c = phi i64 [ 0, %row ], [ %c_next, %enter ]
  %any_column = icmp ult i64 %c, $COLUMNS
  br i1 %any_column, label %column, label %row_done
column:
  %is_operand = icmp ult i64 %c, $OPERANDS
  br i1 %is_operand, label %operand, label %result
operand:
  %operand_index = add i64 %operand_row, %c
  %operand_buffer = call ptr @item(ptr %operands, i64 %operand_index)
  %operand_address = call ptr @data(ptr %operands, i64 %operand_index)
  %is_gradient = icmp eq i64 %c, 1
  %is_further = icmp ugt i64 %c, $RESULTS
  %is_read_only = or i1 %is_gradient, %is_further
  %is_written = xor i1 %is_read_only, true
  %is_overwritten = and i1 %is_written, $IN_PLACE
  br i1 %is_overwritten, label %compare, label %enter
compare:
  %after_gradient = icmp ugt i64 %c, 1
  %skipped = zext i1 %after_gradient to i64
  %replaced_column = sub i64 %c, %skipped
  %replaced_index = add i64 %result_row, %replaced_column
  %replaced_address = call ptr @data(ptr %results, i64 %replaced_index)
  %same = icmp eq ptr %operand_address, %replaced_address
  %elements = call i64 @elements(ptr %operand_buffer)
  %nothing = icmp eq i64 %elements, 0
  %stays = or i1 %same, %nothing
  br i1 %stays, label %enter, label %refuse
result:
  %result_column = sub i64 %c, $OPERANDS
  %result_index = add i64 %result_row, %result_column
  %result_address = call ptr @data(ptr %results, i64 %result_index)
  br label %enter
enter:
  %address = phi ptr [ %operand_address, %operand ], [ %operand_address, %compare ], [ %result_address, %result ]
  %column_from = mul i64 %c, %count
  %entry = add i64 %column_from, %r
  %place_at = getelementptr i64, ptr %addresses, i64 %entry
  store ptr %address, ptr %place_at
  %c_next = add i64 %c, 1
  br label %next_column
row_done:
  %r_next = add i64 %r, 1
  br label %next_row

filled:
$LAUNCH  %good = icmp eq i32 %launched, 0
  call void @free(ptr %arguments)
  br i1 %good, label %end, label %failed
end:
  ret ptr null
refuse:
  call void @free(ptr %arguments)
  %moved = call ptr @error(ptr %frame, ptr @moved, i32 13)
  ret ptr %moved
no_memory:
  %no_memory_error = call ptr @error(ptr %frame, ptr @exhausted, i32 8)
  ret ptr %no_memory_error
"""
)
