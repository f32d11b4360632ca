"""The function that XLA calls for the norm of all gradients together; see `_handler.py`.

What depends on the shapes comes as an attribute of the call, see `layout`. Where there is much to do, threads share the passes
over memory; the stages before and after are done by the calling thread alone.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from portopt.kernels.host.norm_stages import ADD, ALL, DECIDE, FINISH, GUESS, kernels_of, norm_stages, words_of
from portopt.kernels.host.threads import address_of
from portopt_jax._handler import LAYOUT, compiled, entering


def layout(sizes: Sequence[Sequence[int]]) -> Any:
    """Return what the handler must know of gradients, given the sizes of those of each dtype, int64.

    Their elements together; number and elements of those of each dtype; and the elements of each.
    """
    groups = [word for of_dtype in sizes for word in (len(of_dtype), sum(of_dtype))]
    each = [size for of_dtype in sizes for size in of_dtype]
    return np.array([sum(each), *groups, *each], np.int64)


def make_norm_handler(dtypes: Sequence[str]) -> Any:
    """Return a handler for XLA as a ctypes function.

    Operands are the gradients, those of a dtype beside each other; the result is their norm, float64. It has one attribute, as
    `layout` returns it.

    Args:
        dtypes: of the gradients, each once, in the order of the operands.
    """
    known = kernels_of(dtypes)
    whole, part = words_of(len(dtypes))
    words = ", ".join(f"i64 {word}" for word in known)
    constant = f"[{len(known)} x i64] [{words}]"
    values = {"KERNEL": address_of(norm_stages()), "GROUPS_END": 1 + 2 * len(dtypes), "WHOLE": whole, "PART": part}
    function, rows = entering(1, 0, fixed=0, fixed_results=1, in_place=False)
    return compiled(_CALL, _BODY, values | rows, f"@kernels = private constant {constant}\n{function}")


def _pass(stage: int, parts: str, chunk: str = "total") -> str:
    return string.Template(
        "call void @pass(ptr %frame, ptr %context, ptr %table, ptr %sizes, i64 %operand_count, i64 %total, i64 %$CHUNK,\n"
        "    ptr %groups, i64 0, ptr %norm, i64 $STAGE, ptr %workspace, i64 0, i64 $PARTS)\n"
    ).substitute(STAGE=stage, CHUNK=chunk, PARTS=parts)


_CALL = """  %stage_at = getelementptr %shared, ptr %job, i64 0, i32 14
  %workspace_at = getelementptr %shared, ptr %job, i64 0, i32 15
  %parts_at = getelementptr %shared, ptr %job, i64 0, i32 17
  %stage = load i64, ptr %stage_at
  %workspace = load ptr, ptr %workspace_at
  %parts = load i64, ptr %parts_at
  %status = call i32 %kernel(ptr %unused, ptr %unused_too, ptr %table, ptr %sizes, ptr @kernels, ptr %inputs,
    i64 %start, i64 %stop, ptr %outputs, i64 %stage, ptr %workspace, i64 %i, i64 %parts)
"""

_BODY = f"""{LAYOUT}  %bytes = mul i64 %operand_count, 8
  %table = call ptr @memory(i64 %bytes)
  %has_table = icmp ne ptr %table, null
  br i1 %has_table, label %next_operand, label %no_memory
next_operand:
  %k = phi i64 [ 0, %call ], [ %k_next, %operand ]
  %any_operand = icmp ult i64 %k, %operand_count
  br i1 %any_operand, label %operand, label %filled
operand:
  %entry = getelementptr ptr, ptr %table, i64 %k
  %entered = call i1 @enter_row(ptr %operands, ptr %results, i64 %k, ptr %entry, i64 1)
  %k_next = add i64 %k, 1
  br label %next_operand
filled:
  %norm = call ptr @data(ptr %results, i64 0)
  %total = load i64, ptr %layout
  %groups = getelementptr i64, ptr %layout, i64 1
  %sizes = getelementptr i64, ptr %layout, i64 $GROUPS_END
  %chunk = call i64 @chunk(ptr %frame, ptr %context, i64 %total)
  %chunks = call i64 @chunks(i64 %total, i64 %chunk)
  %words_of_parts = mul i64 %chunks, $PART
  %words = add i64 %words_of_parts, $WHOLE
  %workspace_bytes = mul i64 %words, 8
  %workspace = call ptr @memory(i64 %workspace_bytes)
  %has_workspace = icmp ne ptr %workspace, null
  br i1 %has_workspace, label %begin_passes, label %no_memory
begin_passes:
  %alone = icmp eq i64 %chunks, 1
  br i1 %alone, label %at_once, label %in_stages
at_once:
  {_pass(ALL, parts="1", chunk="chunk")}  br label %end
in_stages:
  {_pass(GUESS, parts="%chunks")}  {_pass(ADD, chunk="chunk", parts="%chunks")}  {_pass(DECIDE, parts="%chunks")}\
  %again_at = getelementptr i64, ptr %workspace, i64 1
  %again = load i64, ptr %again_at
  %is_again = icmp ne i64 %again, 0
  br i1 %is_again, label %add_again, label %finish
add_again:
  {_pass(ADD, chunk="chunk", parts="%chunks")}  br label %finish
finish:
  {_pass(FINISH, parts="%chunks")}  br label %end
end:
  call void @free(ptr %workspace)
  call void @free(ptr %table)
  ret ptr null
no_memory:
  call void @free(ptr %table)
  %no_memory_error = call ptr @error(ptr %frame, ptr @exhausted, i32 8)
  ret ptr %no_memory_error
"""
