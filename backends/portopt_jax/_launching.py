"""The functions that XLA calls to launch kernels in CUDA C on its stream; see `_handler.py` for how they are made.

What tells a kernel where its parameters are goes to the device in the arguments of the launch: a handler keeps nothing, waits for
nothing, and copies nothing from the host's memory.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from portopt.kernels.cuda.source import THREADS
from portopt_jax._handler import LAYOUT, compiled, entering


class Word(NamedTuple):
    """An argument of a kernel, a word: where an operand or a result lies, or a word of the call's layout.

    Attributes:
        kind: which of these.
        number: of the operand, the result, or the word of the layout.
        offset: bytes from there.
    """

    kind: Literal["operand", "result", "layout"]
    number: int
    offset: int = 0


class Kernel(NamedTuple):
    """What is launched.

    Attributes:
        functions: the kernel on each device by its number.
        arguments: of the kernel, after its table if it has one.
    """

    functions: Sequence[int]
    arguments: Sequence[Word]


def make_launching_handler(
    kernels: Sequence[Kernel],
    driver: tuple[int, int],
    *,
    fixed: int,
    fixed_results: int,
    operands: int,
    results: int,
    in_place: bool,
    words: int,
    before: Kernel | None = None,
    further: int = 0,
    workspace: int | None = None,
) -> Any:
    """Return a handler for XLA, as a ctypes function, of kernels that work on many parameters, one after the other.

    Operands are the kernels' other arguments, then the arrays of each parameter; results are what the kernels make of all, then
    those of each parameter. The call has one attribute: further words of the parameters, then for each kernel the number of
    blocks, and the table but for the addresses, as `portopt.kernels.cuda.tables.Chunks.few` returns it.

    Args:
        kernels: whose tables have the same columns.
        driver: the addresses of `cuCtxGetDevice` and `cuLaunchKernel`.
        fixed: how many operands there are before the parameters'.
        fixed_results: how many results there are before the parameters'.
        operands: how many arrays each parameter has among the operands.
        results: how many it has among the results.
        in_place: whether the kernels overwrite their operands; then XLA must give the results the memory of the operands.
        words: how many the tables have.
        before: a kernel that is launched before those, in one block.
        further: how many columns the tables have after those of the arrays; the words of the first one come first.
        workspace: which of these is of places in a result before the parameters', the last of them, by their bytes.
    """
    columns = operands if in_place else operands + results
    first, every = _alone(0, before) if before is not None else "", [*([] if before is None else [before]), *kernels]
    launches = [_table_launch(k, kernel, len(every) - len(kernels), 2 + words) for k, kernel in enumerate(kernels)]
    body = string.Template(_ON_PARAMETERS).safe_substitute(
        BEFORE=first, LAUNCHES="".join(launches), LAST=len(kernels), STREAM=_STREAM, LAYOUT=LAYOUT
    )
    function, rows = entering(operands, results, fixed=fixed, fixed_results=fixed_results, in_place=in_place)
    values = {
        **rows,
        "COLUMNS": columns,
        "FURTHER": further,
        "HAS_WORKSPACE": str(workspace is not None).lower(),
        "WORKSPACE": workspace or 0,
        "LAST_FIXED": max(fixed_results - 1, 0),
        "BYTES": 8 * (2 + words + max(len(kernel.arguments) for kernel in kernels)),
    }
    return _compiled(every, driver, body, values, function)


def make_call_handler(kernel: Kernel, driver: tuple[int, int]) -> Any:
    """Return a handler for XLA of a kernel without a table, as a ctypes function; see `make_launching_handler`.

    The first word of the call's attribute is the number of blocks.
    """
    blocks = "  %blocks = load i64, ptr %layout\n"
    before = blocks + _alone(0, kernel, "%blocks")
    body = string.Template(_ALONE).safe_substitute(BEFORE=before, STREAM=_STREAM, LAYOUT=LAYOUT)
    return _compiled([kernel], driver, body, {})


def _compiled(
    kernels: Sequence[Kernel], driver: tuple[int, int], body: str, values: dict[str, Any], function: str = ""
) -> Any:
    functions = [f"i64 {function}" for kernel in kernels for function in kernel.functions]
    listed = f"[{len(functions)} x i64] [{', '.join(functions)}]"
    constants = string.Template(_CONSTANTS).substitute(FUNCTIONS=listed, LAUNCH=driver[1], THREADS=THREADS)
    given = {"DEVICES": len(kernels[0].functions), "CURRENT_DEVICE": driver[0]}
    return compiled(None, body, values | given, constants + function)


def _alone(number: int, kernel: Kernel, blocks: str = "1") -> str:
    """Return the text that launches a kernel without a table, by its number."""
    words = _words(number, kernel.arguments, f"%alone_{number}", 0)
    size = 8 * len(kernel.arguments)
    return string.Template(_LAUNCH_ALONE).safe_substitute(K=number, BLOCKS=blocks, SIZE=size, WORDS=words)


def _table_launch(k: int, kernel: Kernel, earlier: int, first: int) -> str:
    """Return the text that launches the `k`-th of the kernels that have a table, of so many words.

    Args:
        k: which of them.
        kernel: the kernel.
        earlier: how many others there are.
        first: how many words the table has, its numbers included.
    """
    words = _words(earlier + k, kernel.arguments, "%arguments", first)
    size = 8 * (first + len(kernel.arguments))
    return string.Template(_LAUNCH).safe_substitute(K=k, NEXT=k + 1, NUMBER=earlier + k, WORDS=words, SIZE=size)


def _words(number: int, arguments: Sequence[Word], memory: str, first: int) -> str:
    """Return the text that puts the arguments of a kernel, by its number, into memory after the first words."""
    found = []
    for k, (kind, at, offset) in enumerate(arguments):
        name = f"{number}_{k}"
        if kind == "layout":
            found.append(f"  %at_{name} = getelementptr i64, ptr %layout, i64 {at}\n")
            found.append(f"  %word_{name} = load i64, ptr %at_{name}\n")
        else:
            found.append(f"  %begin_{name} = call ptr @data(ptr %{kind}s, i64 {at})\n")
            found.append(f"  %at_{name} = getelementptr i8, ptr %begin_{name}, i64 {offset}\n")
            found.append(f"  %word_{name} = ptrtoint ptr %at_{name} to i64\n")
        found.append(f"  %to_{name} = getelementptr i64, ptr {memory}, i64 {first + k}\n")
        found.append(f"  store i64 %word_{name}, ptr %to_{name}\n")
    return "".join(found)


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

_LAUNCH_ALONE = """  %alone_$K = alloca i8, i64 $SIZE, align 8
$WORDS  %function_at_$K = getelementptr i64, ptr @functions, i64 %device_number
  %function_$K = load i64, ptr %function_at_$K
  %launched_$K = call i32 @launch(i64 %function_$K, i64 $BLOCKS, ptr %alone_$K, i64 $SIZE, ptr %stream)
  %good_$K = icmp eq i32 %launched_$K, 0
  br i1 %good_$K, label %after_$K, label %failed
after_$K:
"""

_LAUNCH = """launch_$K:
  %launch_from_$K = mul i64 %words_of_launch, $K
  %blocks_at_$K = getelementptr i64, ptr %launches, i64 %launch_from_$K
  %blocks_$K = load i64, ptr %blocks_at_$K
  %any_blocks_$K = icmp ne i64 %blocks_$K, 0
  br i1 %any_blocks_$K, label %do_launch_$K, label %launch_$NEXT
do_launch_$K:
  %given_$K = getelementptr i64, ptr %blocks_at_$K, i64 1
  call void @llvm.memcpy.p0.p0.i64(ptr %arguments, ptr %given_$K, i64 %bytes_given, i1 false)
$WORDS  %functions_before_$K = mul i64 $NUMBER, $DEVICES
  %function_from_$K = add i64 %functions_before_$K, %device_number
  %function_of_table_at_$K = getelementptr i64, ptr @functions, i64 %function_from_$K
  %function_of_table_$K = load i64, ptr %function_of_table_at_$K
  %launched_table_$K = call i32 @launch(i64 %function_of_table_$K, i64 %blocks_$K, ptr %arguments, i64 $SIZE, ptr %stream)
  %good_table_$K = icmp eq i32 %launched_table_$K, 0
  br i1 %good_table_$K, label %launch_$NEXT, label %not_launched_table
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

_ALONE = _BEGIN + "$BEFORE  ret ptr null\n"

_ON_PARAMETERS = (
    _BEGIN
    + """$BEFORE  %array_count = sub i64 %operand_count, $FIXED
  %count = udiv i64 %array_count, $OPERANDS
  %further_words = mul i64 %count, $FURTHER
  %launches = getelementptr i64, ptr %layout, i64 %further_words
  %twice = mul i64 %count, 2
  %words_given = add i64 %twice, 3
  %words_of_launch = add i64 %words_given, 1
  %bytes_given = mul i64 %words_given, 8
  %arguments = call ptr @memory(i64 $BYTES)
  %has_arguments = icmp ne ptr %arguments, null
  br i1 %has_arguments, label %begin_rows, label %no_memory
begin_rows:
  %addresses = getelementptr i64, ptr %arguments, i64 %words_given
  br label %next_row
next_row:
  %r = phi i64 [ 0, %begin_rows ], [ %r_next, %row_done ]
  %any_row = icmp ult i64 %r, %count
  br i1 %any_row, label %row, label %filled
row:
  %entries_of_row = getelementptr i64, ptr %addresses, i64 %r
  %stays = call i1 @enter_row(ptr %operands, ptr %results, i64 %r, ptr %entries_of_row, i64 %count)
  br i1 %stays, label %row_done, label %refuse
row_done:
  %r_next = add i64 %r, 1
  br label %next_row

filled:
  %words_of_arrays = mul i64 %count, $COLUMNS
  %further = getelementptr i64, ptr %addresses, i64 %words_of_arrays
  %further_bytes = mul i64 %further_words, 8
  call void @llvm.memcpy.p0.p0.i64(ptr %further, ptr %layout, i64 %further_bytes, i1 false)
  br i1 $HAS_WORKSPACE, label %begin_places, label %launch_0
begin_places:
  %workspace = call ptr @data(ptr %results, i64 $LAST_FIXED)
  %places_from = mul i64 %count, $WORKSPACE
  %places = getelementptr i64, ptr %further, i64 %places_from
  br label %next_place
next_place:
  %w = phi i64 [ 0, %begin_places ], [ %w_next, %place ]
  %any_place = icmp ult i64 %w, %count
  br i1 %any_place, label %place, label %launch_0
place:
  %own_place = getelementptr i64, ptr %places, i64 %w
  %own_bytes = load i64, ptr %own_place
  %own_address = getelementptr i8, ptr %workspace, i64 %own_bytes
  store ptr %own_address, ptr %own_place
  %w_next = add i64 %w, 1
  br label %next_place
${LAUNCHES}launch_$LAST:
  call void @free(ptr %arguments)
  ret ptr null
not_launched_table:
  call void @free(ptr %arguments)
  br label %failed
refuse:
  call void @free(ptr %arguments)
  %moved = call ptr @error(ptr %frame, ptr @moved, i32 13)
  ret ptr %moved
no_memory:
  %no_memory_error = call ptr @error(ptr %frame, ptr @exhausted, i32 8)
  ret ptr %no_memory_error
"""
)
