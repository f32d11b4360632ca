"""A program that reduces, or draws, as Triton kernels: one for each of its passes, with what is in `reduction_support.py`.

All kernels of a module take the same arguments. A row of their table has the addresses of a parameter's arrays, its lengths,
the address of the memory for what kernels leave to later ones, and the parameter's number in its tree. Lines are reduced in
blocks of two axes: along the first one a line, along the second one neighbouring results.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path

from portopt.kernels import passes
from portopt.kernels.key import NEW, KernelKey
from portopt.kernels.pass_writer import Definition, PassWriter, length, own, parts, size, stored, together
from portopt.kernels.passes import Pass, words_of
from portopt.kernels.triton.source import (
    CHUNK,
    IMPORTS,
    LANGUAGE,
    TABLE_HEAD,
    address,
    functions_source,
    kernel_source,
    loaded_scalar,
    scalars_of_norm_source,
)
from portopt.program import SUMS, Kind, Op, Program, bins

chunk_of = functools.partial(passes.chunk_of, elements=CHUNK)

_WORDS = ("exponent", "first", "second", "third", "special")
"""What is kept of a sum."""
_INFINITE = {"float32": 0x7F800000, "float64": 0x7FF0000000000000}
"""The word of infinity; one less than its negative is that of minus infinity."""
_NORMAL = f"""\
@triton.jit
def normal_of(key, step, stream, number, element):
    upper, lower = drawn_bits(key, step, stream, number, element)
    minus_two = tl.full((), -2.0, tl.float64)
    radius = square_root_float64(product_float64(log_of_float64((upper + 1).to(tl.float64) * BIT), minus_two))
    turn = tl.full((), {2 * math.pi!r}, tl.float64)
    return product_float64(radius, cos_of_float64(product_float64(lower.to(tl.float64) * BIT, turn)))
"""
_LANGUAGE = dataclasses.replace(
    LANGUAGE,
    reserved=LANGUAGE.reserved
    | frozenset(re.findall(r"\w+", Path(__file__).with_name("reduction_support.py").read_text(encoding="utf-8")))
    | {"unrounded", "j", "k", "number"},
    repeated="tl.broadcast_to({0}, zero_of.shape)",
)


def staged_source(program: Program, key: KernelKey) -> str:
    """Return the source of the kernels that run a program, of which `can_pass` is true, on arrays of the dtypes of `key`."""
    return _Source(_LANGUAGE, program, key).text()


class _Source(PassWriter):
    zero = "zero_of"

    def text(self) -> str:
        writer = self.writer
        lines = [
            f'"""{self.program.name} on {writer.dtypes["p"]}, computed in {writer.real}.',
            "",
            f'Arrays of a parameter: {", ".join(writer.columns)}.\n"""',
            "",
            f"{IMPORTS.rstrip()}\nfrom portopt.kernels.triton.reduction_support import *\n\n",
            *functions_source(writer),
        ]
        if any(op.name == "draw_normal" for op in self.program.ops):
            lines += [*_NORMAL.splitlines(), "", ""]
        if self.program.uses_gradient_norm:
            lines += [*scalars_of_norm_source(writer, self.split), "", ""]
        for step in self.passes.passes:
            lines += [*self._kernel(step), "", ""]
        return "\n".join(lines).rstrip("\n") + "\n"

    # Elements ------------------------------------------------------------------------------------------------------

    def integer(self, name: str, value: str) -> str:
        return f"{name} = {value}"

    def quotient(self, a: str, b: str) -> str:
        return f"{a} // {b}"

    def element(self, array: str, place: str) -> str:
        return f"tl.load({array} + {place}, mask=inside)"

    def kept_scalar(self, place: int, kind: Kind) -> str:
        return loaded_scalar(f"values_of + {place}", kind)

    def drawn(self, i: int, place: str) -> str:
        op, writer = self.program.ops[i], self.writer
        key, step, stream = op.args
        operands = (
            f"{writer.operand(key)}.to(tl.int64), {writer.operand(step, Kind.INTEGER)}, "
            f"{writer.operand(stream, Kind.INTEGER)}, number_of, {place}"
        )
        if op.name == "draw_uniform":
            most = 2**53 - (1 if self.real == "float64" else 2**29)
            return f"round_to_{self.real}(uniform_of({operands}, {most}))"
        return f"round_to_{self.real}(normal_of({operands}))"

    # What kernels know of a parameter ------------------------------------------------------------------------------

    def _definitions(self, chunk: int) -> list[Definition]:
        writer, columns = self.writer, self.writer.columns
        width = len(columns) + len(self.stages.space) + 2
        row = f"table + row * {TABLE_HEAD + width}"
        found = [
            ("chunk", "chunk = tl.program_id(0)"),
            ("row", "row = tl.load(rows + chunk)"),
            ("chunk_of", f"chunk_of = chunk - tl.load({row})"),
            ("start", f"start = chunk_of * {chunk}"),
            ("end", f"end = tl.load({row} + 1)"),
            *(
                (writer.array(c), f"{writer.array(c)} = {address(k, width, writer.dtype(c))}")
                for k, c in enumerate(columns)
            ),
        ]
        at = TABLE_HEAD + len(columns)
        found += [(length(k), f"{length(k)} = tl.load({row} + {at + k})") for k in self.stages.space]
        at += len(self.stages.space)
        found.append(("memory_of", f"memory_of = tl.load({row} + {at})"))
        found.append(("number_of", f"number_of = tl.load({row} + {at + 1})"))
        found.append(("values_of", "values_of = memory_of.to(tl.pointer_type(tl.float64))"))
        for space in self.spaces():
            found.append((size(space), f"{size(space)} = {' * '.join(map(length, space)) or '1'}"))
        found.append(("chunks_of", f"chunks_of = ({size(self.stages.space)} + {CHUNK - 1}) // {CHUNK}"))
        place = [f"memory_of + 8 * ({len(self.places)}"]
        for i in self.passes.partial:
            found.append((parts(i), f"{parts(i)} = ({' + '.join(place)})).to(tl.pointer_type(tl.int64))"))
            place.append(f"{words_of(self.program.ops[i].name)} * chunks_of")
        for i in self.passes.stored:
            pointer = f"tl.pointer_type({LANGUAGE.storage[self.real]})"
            found.append((stored(i), f"{stored(i)} = ({' + '.join(place)})).to({pointer})"))
            place.append(size(self.stages.spaces[i] or ()))
        split, ops = self.split, self.program.ops
        for buffer, rounded in (("scalars", split.rounded_on_host), ("from_norm", split.rounded_on_device)):
            found += [
                (self.names[i], f"{self.names[i]} = tl.load({buffer} + {position})")
                for position, (i, _) in enumerate(rounded)
            ]
        found += [
            (self.names[i], f"{self.names[i]} = {loaded_scalar(f'unrounded + {position}', ops[i].kind)}")
            for position, i in enumerate(split.unrounded)
        ]
        return found

    # Kernels -------------------------------------------------------------------------------------------------------

    def _kernel(self, step: Pass) -> list[str]:
        body = {
            "elements": self._elements,
            "chunks": self._chunks,
            "lines": self._lines,
            "scalars": self._scalars,
        }[step.kind](step)
        whole = self.stages.source(step.reductions[0]) if step.kind == "lines" else self.stages.space
        lines = [*self.used(body, self._definitions(chunk_of(step, whole))), *body]
        from_norm = "from_norm, " if self.split.rounded_on_device else ""
        return kernel_source(
            f"def {step.name}(table, rows, scalars, unrounded, {from_norm}CHUNK: tl.constexpr):", lines
        )

    def _each(self, step: Pass) -> list[str]:
        """Return the statements that compute the elements of a chunk."""
        computed = self.computed(step, step.space, "i")
        own_places = [("i", "i = start + tl.arange(0, CHUNK)"), ("inside", "inside = i < end")]
        return [
            *(statement for _, statement in own_places),
            "zero_of = i * 0",
            *self.used(computed, self.along_lengths(step.space, "i")),
            *computed,
        ]

    def _elements(self, step: Pass) -> list[str]:
        stores = [f"tl.store({stored(i)} + i, {self._as_real(i)}, mask=inside)" for i in step.stored]
        for name in step.outputs:
            column = name if self.key.in_place else NEW + name
            i = self.program.array_outputs[name]
            value = LANGUAGE.converted(self.real, self.writer.dtypes[name], self.names[i])
            if self.program.ops[i].name == "round":
                value = f"tl.broadcast_to({value}, zero_of.shape)"
            stores.append(f"tl.store({self.writer.array(column)} + i, {value}, mask=inside)")
        return [*self.rounded(step), *self._each(step), *stores]

    def _as_real(self, i: int, value: str | None = None) -> str:
        value = self.names[i] if value is None else value
        if self.program.ops[i].kind is not Kind.MASK:
            return value
        return f"tl.where({value}, 1.0, 0.0).to({LANGUAGE.storage[self.real]})"

    def _chunks(self, step: Pass) -> list[str]:
        lines = [*self.rounded(step), *self._each(step), "only_of = tl.arange(0, 1)"]
        for i in step.reductions:
            names = _names(self.program.ops[i], own(i))
            lines.append(f"{', '.join(names)} = {self._reduced(i)}")
            at = f"{parts(i)} + {len(names)} * chunk_of"
            lines += [f"tl.store({at} + {k} + only_of, {name})" for k, name in enumerate(names)]
        return lines

    def _lines(self, step: Pass) -> list[str]:
        whole = self.stages.source(step.reductions[0])
        beside = tuple(k for k in whole if k not in step.space)
        across = chunk_of(step, whole)
        depth = CHUNK // across
        computed = self.computed(step, whole, None)
        places = [*self.along_lengths(step.space, "result_of"), *self.along_lengths(beside, "j")]
        body = [*self.used(computed, places), *computed]
        lines = [
            *self.rounded(step),
            f"count_of = {' * '.join(map(length, beside)) or '1'}",
            f"line_of = start + tl.arange(0, {across})[None, :]",
            f"zero_of = tl.zeros(({depth}, {across}), tl.int64)",
            "result_of = line_of + zero_of",
            f"row_of = tl.arange(0, {depth})[:, None] + zero_of",
            "is_result_of = result_of < end",
        ]
        for i in step.reductions:
            names = _names(self.program.ops[i], together(i))
            for name, begin in zip(names, self._initial(i), strict=True):
                lines.append(f"{name} = tl.full((1, {across}), {begin}, tl.int64)")
        body = ["j = first_of + row_of", "inside = is_result_of & (j < count_of)", *body]
        for i in step.reductions:
            op = self.program.ops[i]
            mine, all_of = _names(op, own(i)), _names(op, together(i))
            body.append(f"{', '.join(mine)} = {self._reduced(i)}")
            match op.name:
                case "max" | "min":
                    body.append(f"{all_of[0]} = tl.{op.name}imum({all_of[0]}, {mine[0]})")
                case name if name in SUMS:
                    body.append(f"{', '.join(all_of)} = joined({', '.join([*all_of, *mine])})")
                case _:
                    body.append(f"{all_of[0]} += {mine[0]}")
        lines += [
            "first_of = count_of * 0",
            "while first_of < count_of:",
            *(f"    {line}" for line in body),
            f"    first_of += {depth}",
            "is_inside_of = line_of < end",
        ]
        for i in step.reductions:
            op, value = self.program.ops[i], self._result(i, "count_of")
            if op.kind.is_scalar:
                target, value = f"values_of + {self.places[i]} + line_of", self._as_double(op.kind, value)
            else:
                target = f"{stored(i)} + line_of"
                value = self._as_real(i, value) if op.kind is Kind.MASK else f"round_to_{self.real}({value})"
            lines.append(f"tl.store({target}, {value}, mask=is_inside_of)")
        return lines

    def _scalars(self, step: Pass) -> list[str]:
        ops, lines = self.program.ops, []
        known: set[int] = set()
        for i in step.reductions:
            op = ops[i]
            names = _names(op, together(i))
            begin = f"{self._initial(i)[0]}, "
            match op.name:
                case "max" | "min":
                    function = {"max": "largest", "min": "smallest"}[op.name]
                case name if name in SUMS:
                    function = "sum"
                case _:
                    function, begin = "count", ""
            lines.append(f"{', '.join(names)} = {function}_of_parts({parts(i)}, chunks_of, {begin}CHUNK)")
            value = self._result(i, size(self.stages.space))
            if op.kind.is_scalar:
                lines.append(self.writer.assigned(i, value))
                lines.append(self._kept(i))
                known.add(i)
            else:
                value = self._as_real(i, value) if op.kind is Kind.MASK else f"round_to_{self.real}({value})"
                lines.append(f"tl.store({stored(i)}, {value})")
        for i in step.scalars:
            op = ops[i]
            if op.name == "widen":
                element = self.writer.array_expression(op.args[0], "tl.load({0})")
                lines.append(self.writer.assigned(i, f"{element}.to(tl.float64)"))
            else:
                lines += self.read([j for j in op.args if j in self.places], known)
                lines.append(self.writer.scalar(i))
            lines.append(self._kept(i))
            known.add(i)
        return lines

    def _kept(self, i: int) -> str:
        value = self._as_double(self.program.ops[i].kind, self.names[i])
        return f"tl.store(values_of + {self.places[i]}, {value})"

    def _as_double(self, kind: Kind, value: str) -> str:
        if kind is Kind.TRUTH:
            return f"tl.where({value}, 1.0, 0.0).to(tl.float64)"
        return f"({value}).to(tl.float64)" if kind is Kind.INTEGER else value

    # Reductions ------------------------------------------------------------------------------------------------------

    def _initial(self, i: int) -> tuple[int, ...]:
        """Return the words of what is reduced of nothing."""
        match self.program.ops[i].name:
            case "max":
                return (-_INFINITE[self.real] - 1,)
            case "min":
                return (_INFINITE[self.real],)
            case name if name in SUMS:
                # Squares of float32 numbers are not that small.
                return (bins.LOWEST_OF_SQUARES if (name, self.real) == ("norm", "float64") else bins.LOWEST, 0, 0, 0, 0)
            case _:
                return (0,)

    def _reduced(self, i: int) -> str:
        """Return the words of what is reduced of a block."""
        op = self.program.ops[i]
        x = self.names[op.args[0]]
        match op.name:
            case "norm":
                return f"squares_of_block_{self.real}({x}, inside)"
            case "sum" | "mean":
                return f"sum_of_block({x}, inside)"
            case "max" | "min":
                function = {"max": "largest", "min": "smallest"}[op.name]
                return f"{function}_of_block(word_of_{self.real}({x}), {x} == {x}, inside, {self._initial(i)[0]})"
            case _:
                holds = x if self.program.ops[op.args[0]].kind is Kind.MASK else f"({x} != 0)"
                return f"count_of_block({holds}, inside)"

    def _result(self, i: int, count: str) -> str:
        """Return a result in float64, an integer or a truth, given how many elements it is of."""
        op = self.program.ops[i]
        names = ", ".join(_names(op, together(i)))
        match op.name:
            case "sum":
                return f"finished_sum({names}, 0)"
            case "mean":
                return f"quotient_float64(finished_sum({names}, 0), ({count}).to(tl.float64))"
            case "norm":
                return f"finished_root({names})"
            case "max" | "min":
                return f"number_of_{self.real}({names})"
            case "any":
                return f"({names} > 0)"
            case "all":
                return f"({names} == {count})"
            case _:
                return names if op.kind.is_scalar else f"{names}.to(tl.float64)"


def _names(op: Op, name: str) -> list[str]:
    """Return the names of what is kept of a reduction."""
    return [f"{name.removesuffix('_of')}_{word}_of" for word in _WORDS] if op.name in SUMS else [name]
