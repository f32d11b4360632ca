"""Making sure, in one compiled call between two steps, that trees and arrays are what they were.

A step on many small arrays is short against the Python work of looking at each: `array.ctypes.data` alone takes over a
microsecond. So a compiled function walks the containers of parameters, gradients and slots, compares the parameters and slots
with the known objects, and asks each array for its memory:

- lists and tuples are read where CPython keeps their items, dicts through its C API;
- NumPy arrays are read where NumPy's binary interface says (`PyArrayObject_fields`);
- arrays of other libraries are asked through the C functions of DLPack's exchange API
  (https://dmlc.github.io/dlpack/latest/c_api.html), and what that does not tell is read where the library keeps it (`Layout`).

The function runs no Python code while it looks, and so nothing else either, for it holds the global interpreter lock. What it
found is its return value. A step on few elements is done before it lets go of the lock. For all other steps it puts references to
the arrays into lists of the call, lets go, runs the kernels, and only then returns to Python, which may raise something.

`works` tries all that on known arrays first; where it does not give what is expected (another Python implementation, a build
without the global interpreter lock) nothing is watched, and each step makes the full check.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import sysconfig
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_function
from portopt.kernels.host.kernel import GROUP_WORDS, RECORD_WORDS, Work, compiled_part, group_words
from portopt.trees import STANDARD_TREES

_SOURCE = f'''"""Compare trees of arrays with what a plan expects of them, and run its kernels if all is as expected."""


{threads.SPLIT}

def walk(script, nodes, root, found, known, context, stack):
    """Put the leaves of a tree into `found`; return whether containers, keys and known leaves are as in the script."""
    depth = 0
    node = root
    for i in range(nodes):
        expected = 5 * i
        kind = script[expected]
        if kind == 0:
            leaf = script[expected + 3]
            if leaf >= 0:
                found[leaf] = node
                if known != 0 and pointer_to_int64(known)[leaf] != node:
                    return False
        else:
            if pointer_to_int64(node)[1] != script[expected + 1] or pointer_to_int64(node)[2] != script[expected + 2]:
                return False
            stack[4 * depth] = node
            stack[4 * depth + 1] = kind
            stack[4 * depth + 2] = 0
            stack[4 * depth + 3] = script[expected + 2]
            depth += 1
        while depth > 0 and stack[4 * depth - 1] == 0:
            depth -= 1
        if depth == 0:
            return i == nodes - 1
        if i == nodes - 1:
            return False
        top = 4 * (depth - 1)
        container = stack[top]
        position = stack[top + 2]
        stack[top + 3] -= 1
        if stack[top + 1] == 1:
            node = pointer_to_int64(pointer_to_int64(container)[3])[position]
            stack[top + 2] = position + 1
        elif stack[top + 1] == 2:
            node = pointer_to_int64(container)[context[27] + position]
            stack[top + 2] = position + 1
        else:
            place = context[19]
            entry = pointer_to_int64(place)
            entry[0] = position
            if call_4(context[15], container, place, place + 8, place + 16) == 0:
                return False
            stack[top + 2] = entry[0]
            key = entry[1]
            node = entry[2]
            known_key = script[expected + 5 + 4]
            if key != known_key:
                string = context[18]
                if pointer_to_int64(key)[1] != string or pointer_to_int64(known_key)[1] != string:
                    return False
                if call_2(context[16], key, known_key) != 0:
                    return False
    return False


def hold(leaves, found, count, context):
    """Put references to the objects in `found` into a list of this length."""
    for i in range(count):
        call_1(context[29], found[i])
        call_3(context[28], leaves, i, found[i])


def fits(entry, item, table, context):
    """Return whether one array is as expected; put its address into the table if it is a gradient."""
    if pointer_to_int64(item)[1] != entry[3]:
        return False
    expected = pointer_to_int64(entry[6])
    size = 1
    if context[14] == 0:
        fields = pointer_to_int64(item)
        address = fields[2]
        dimensions = fields[3] & 0xFFFFFFFF
        shape = pointer_to_int64(fields[4])
        flags = 0x101 if entry[2] else 0x501
        if fields[7] != entry[4] or (fields[8] & flags) != flags or dimensions != entry[5]:
            return False
        for axis in range(dimensions):
            if shape[axis] != expected[axis]:
                return False
            size *= shape[axis]
    else:
        inner = pointer_to_int64(pointer_to_int64(item)[context[37]])
        storage = pointer_to_int64(inner[context[41]])
        if (inner[context[38]] & context[39]) != context[40]:
            return False
        place = context[19] + 32
        fields = pointer_to_int64(place)
        if call_2(context[14], item, place) != 0:
            call_0(context[17])
            return False
        address = fields[0] + fields[5]
        dimensions = fields[2] & 0xFFFFFFFF
        if (fields[1] & 0xFFFFFFFF) != 1 or (fields[2] >> 32) != entry[4] or dimensions != entry[5]:
            return False
        shape = pointer_to_int64(fields[3])
        for axis in range(dimensions):
            if shape[axis] != expected[axis]:
                return False
            size *= shape[axis]
        if size > 1 and fields[4]:
            strides = pointer_to_int64(fields[4])
            dense = 1
            for back in range(dimensions):
                axis = dimensions - 1 - back
                if shape[axis] > 1:
                    if strides[axis] != dense:
                        return False
                    dense *= shape[axis]
        memory = storage[context[42]]
        if size > 0 and (address < memory or address + size * entry[7] > memory + storage[context[43]]):
            return False
    cell = pointer_to_int64(table + entry[1])
    if not entry[2]:
        return cell[0] == address
    if size > 0:
        starts = pointer_to_int64(context[11])
        ends = pointer_to_int64(context[12])
        first = 0
        last = context[13]
        while first < last:
            middle = (first + last) // 2
            if ends[middle] <= address:
                first = middle + 1
            else:
                last = middle
        if first < context[13] and starts[first] < address + size * entry[7]:
            return False
    cell[0] = address
    return True


def kernel(context, params, grads, slots, inputs, step, call):
    """Look, and run the kernels if all is as expected and there are `inputs`; raise an error if anything is not."""
    written = pointer_to_int64(context[3])
    gradients = pointer_to_int64(context[6])
    table = context[25]
    fields = pointer_to_int64(call)
    if call == 0 or fields[5] == 0:
        stack = pointer_to_int64(context[20])
        slots_found = pointer_to_int64(context[9])
        if not walk(pointer_to_int64(context[1]), context[2], params, written, context[22], context, stack):
            raise ValueError
        if not walk(pointer_to_int64(context[7]), context[8], slots, slots_found, context[44], context, stack):
            raise ValueError
        if not walk(pointer_to_int64(context[4]), context[5], grads, gradients, 0, context, stack):
            raise ValueError
    if call != 0:
        table = fields[2]
        if fields[5] == 0:
            hold(fields[0], written, context[35], context)
            hold(fields[1], gradients, context[36], context)
            fields[5] = 1
        written = pointer_to_int64(pointer_to_int64(fields[0])[3])
        gradients = pointer_to_int64(pointer_to_int64(fields[1])[3])
    for e in range(context[21]):
        entry = pointer_to_int64(context[10] + 64 * e)
        if not fits(entry, gradients[entry[0]] if entry[2] else written[entry[0]], table, context):
            raise ValueError
    if inputs == 0:
        return
    if call != 0 and fields[3] != 0:
        state = object_of_call_0(context[33])
        split(context[45], fields[3], {RECORD_WORDS}, fields[4], context[46], context[47])
        call_1(context[34], state)
    else:
        for group in range(context[23]):
            part = pointer_to_int64(context[24] + {8 * GROUP_WORDS} * group)
            call_kernel(
                part[0], context[19], context[19], table + part[1], part[2], part[3], 0, part[4], inputs, step,
                inputs + 8 * context[26],
            )
    if context[32] != 0:
        result = object_of_call_2(context[30], context[32], fields[0])
        if result != 0:
            call_1(context[31], result)
'''


class _Api(NamedTuple):
    dict_next: int
    compare: int
    clear_error: int
    set_item: int
    hold: int
    call: int
    release: int
    save_thread: int
    restore_thread: int


@functools.cache
def _api() -> _Api:
    api = ctypes.pythonapi
    functions = (
        api.PyDict_Next, api.PyUnicode_Compare, api.PyErr_Clear, api.PyList_SetItem, api.Py_IncRef, api.PyObject_CallOneArg,
        api.Py_DecRef, api.PyEval_SaveThread, api.PyEval_RestoreThread,
    )  # fmt: skip
    return _Api(*map(threads.address_of, functions))


@functools.cache
def _compiled() -> Any:
    return compile_function(_SOURCE, "watch")


_LEAF, _LIST, _TUPLE, _DICT = range(4)
_DEEPEST = 64


class _Script:
    """A tree's containers, keys and leaves in the order in which the compiled function meets them.

    Args:
        tree: dicts, lists and tuples of leaves.
        numbering: the same tree with the number of each leaf in its place, -1 for one that is not looked at.
    """

    def __init__(self, tree: Any, numbering: Any) -> None:
        self.nodes = array("q")
        self.keep_alive: list[object] = []
        self.known = self._add(tree, numbering, 0, 0)

    def __len__(self) -> int:
        return len(self.nodes) // 5

    def _add(self, tree: Any, numbering: Any, key: int, depth: int) -> bool:
        """Append a node; return whether all containers are of kinds that the compiled function knows."""
        kind: type[Any] = type(tree)
        if type(numbering) is int:
            self.nodes.extend((_LEAF, 0, 0, numbering, key))
            return True
        if depth == _DEEPEST or type(numbering) is not kind:
            return False
        self.keep_alive.append(kind)
        if kind in (dict, OrderedDict):
            self.nodes.extend((_DICT, id(kind), len(tree), 0, key))
            self.keep_alive.extend(tree)
            # What C sees of an ordered dict is the order of insertion.
            items = [(k, numbering[k], v) for k, v in dict.items(tree)]
            return all(self._add(v, n, id(k), depth + 1) for k, n, v in items)
        if kind is list:
            return self._add_items(_LIST, tree, numbering, key, depth)
        if issubclass(kind, tuple):
            return self._add_items(_TUPLE, tree, numbering, key, depth)
        return False

    def _add_items(self, kind: int, items: Sequence[Any], numbering: Sequence[Any], key: int, depth: int) -> bool:
        self.nodes.extend((kind, id(type(items)), len(items), 0, key))
        return all(self._add(v, n, 0, depth + 1) for v, n in zip(items, numbering, strict=True))


def _numbered(tree: Any, first: int = 0) -> tuple[Any, int]:
    """Return the tree with the number of each leaf in its place, in the order of `STANDARD_TREES`, and the next number."""
    leaves, definition = STANDARD_TREES.flatten(tree)
    return STANDARD_TREES.unflatten(definition, list(range(first, first + len(leaves)))), first + len(leaves)


class Layout(NamedTuple):
    """Where a library keeps what DLPack does not tell of an array; words are counted from the start of an object.

    Attributes:
        inner: word of the Python object with the address of the library's own object.
        kind: word of that with bits that say of what kind the array is.
        mask: which of these bits count.
        expected: what they must be.
        storage: word of the library's object with the address of a description of the memory.
        memory: word of that with the address of the memory.
        size: word with its size in bytes.
    """

    inner: int
    kind: int
    mask: int
    expected: int
    storage: int
    memory: int
    size: int


class ArrayReader(NamedTuple):
    """How the compiled function asks an array for its memory.

    Attributes:
        function: address of DLPack's `dltensor_from_py_object_no_sync` of the library; 0 for NumPy arrays.
        dtype: returns what stands for an array's dtype there.
        address: returns the address of an array's memory.
        layout: what else is read; None for NumPy arrays.
    """

    function: int
    dtype: Callable[[Any], int]
    address: Callable[[Any], int]
    layout: Layout | None = None


_DLPACK_TYPES = {"float16": (2, 16), "bfloat16": (4, 16), "float32": (2, 32), "float64": (2, 64)}


def dlpack_reader(
    kind: type, dtype_name: Callable[[Any], str], address: Callable[[Any], int], layout: Layout
) -> ArrayReader | None:
    """Return the reader of an array type with DLPack's exchange API in version 1; None if it has none."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return None
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    # The version's two numbers, the preceding table, three functions, and the one that is wanted.
    table = ctypes.cast(get_pointer(capsule, b"dlpack_exchange_api"), ctypes.POINTER(ctypes.c_uint64))
    if table[0] & 0xFFFFFFFF != 1 or not table[5]:
        return None

    def dtype(array: Any) -> int:
        code, bits = _DLPACK_TYPES[dtype_name(array)]
        return code | bits << 8 | 1 << 16

    return ArrayReader(table[5], dtype, address, layout)


NUMPY_READER = ArrayReader(0, lambda array: id(array.dtype), lambda array: int(array.ctypes.data))


class Call:
    """What one step needs to itself: references to all arrays, and a table of addresses.

    Attributes:
        written: parameters, then slots, once the call has been used to look.
        gradients: the gradients.
        table: the addresses, all groups' tables one after the other.
    """

    __slots__ = ("_fields", "_records", "address", "gradients", "table", "written")

    def __init__(self, written: int, gradients: int, table: array[int]) -> None:
        self.written: list[Any] = [None] * written
        self.gradients: list[Any] = [None] * gradients
        self.table = table
        # Both lists, the table, threads' records and their number, and whether the lists are filled.
        self._fields = array("q", (id(self.written), id(self.gradients), table.buffer_info()[0], 0, 0, 0))
        self.address = self._fields.buffer_info()[0]

    def share(self, total: int, values: Sequence[int]) -> None:
        """Let threads do the work, given what follows the head of their records."""
        self._records = threads.make_records(total, values)
        self._fields[3], self._fields[4] = self._records.buffer_info()[0], len(self._records) // RECORD_WORDS


class Watch:
    """Trees and arrays as they were in one step, so that a look can tell whether they still are.

    Arrays are not kept alive: whoever calls makes sure that the trees exist. Any number of threads may look at once.

    Args:
        reader: how arrays are read.
        trees: parameters, gradients and slots (a dict by name) as trees.
        scalar_slots: the names of slots that are not looked at.
        arrays: name to array, of each parameter, gradient and slots included.
        work: all parameters, by kernel.
        inputs: number of the kernels' inputs, after which the new scalars of the state are put.
        note_written: a function written in C that is called with the list of all written arrays after each step; then each step
            has a `Call`. None if nobody needs to know.
    """

    def __init__(
        self,
        reader: ArrayReader,
        trees: tuple[Any, Any, Mapping[str, Any]],
        scalar_slots: Sequence[str],
        arrays: Sequence[Mapping[str, Any]],
        work: Sequence[Work],
        inputs: int,
        note_written: Callable[[list[Any]], object] | None = None,
    ) -> None:
        params, grads, slots = trees
        count = len(arrays)
        slot_numbers: dict[str, Any] = {}
        slot_of: dict[str, int] = {}
        total = 0
        for name, tree in slots.items():
            if name in scalar_slots:
                slot_numbers[name] = -1
            else:
                slot_of[name] = total
                slot_numbers[name], total = _numbered(tree, total)
        scripts = [_Script(params, _numbered(params)[0]), _Script(grads, _numbered(grads)[0])]
        scripts.append(_Script(dict(slots), slot_numbers))
        self.is_possible = type(slots) is dict and all(script.known for script in scripts)
        written, gradients = array("q", bytes(8 * (count + total))), array("q", bytes(8 * count))
        known = array("q", [id(a["p"]) for a in arrays] + [0] * total)
        for name, first in slot_of.items():
            known[count + first : 2 * count + first] = array("q", [id(a[name]) for a in arrays])
        starts, ends = _merged_ranges(
            [(reader.address(a[n]), _size(a["p"]) * _itemsize(a[n])) for a in arrays for n in a if n != "g"]
        )
        shapes = [array("q", a["p"].shape or (0,)) for a in arrays]
        entries, table, offsets = array("q"), array("q"), []
        for kernel, members, addresses, _ in work:
            offsets.append(8 * len(table))
            for row, i in enumerate(members):
                for column, name in enumerate(kernel.columns):
                    a = arrays[i][name]
                    entries.extend(
                        (
                            i if name in ("p", "g") else count + slot_of[name] + i,
                            8 * len(table),
                            int(name == "g"),
                            id(type(a)),
                            reader.dtype(a),
                            len(a.shape),
                            shapes[i].buffer_info()[0],
                            _itemsize(a),
                        )
                    )
                    table.append(int(addresses[row, column]))
        parts = group_words(work, offsets)
        scratch = array("q", bytes(8 * 16))
        stack = array("q", bytes(8 * 4 * (_DEEPEST + 2)))
        api = _api()

        def at(buffer: array[int]) -> int:
            return buffer.buffer_info()[0]

        self._context = array("q", [
            0,
            at(scripts[0].nodes), len(scripts[0]), at(written),
            at(scripts[1].nodes), len(scripts[1]), at(gradients),
            at(scripts[2].nodes), len(scripts[2]), at(written) + 8 * count,
            at(entries), at(starts), at(ends), len(starts),
            reader.function, api.dict_next, api.compare, api.clear_error,
            id(str), at(scratch), at(stack), len(entries) // 8, at(known),
            len(work), at(parts), at(table), inputs,
            tuple.__basicsize__ // 8, api.set_item, api.hold, api.call, api.release,
            0 if note_written is None else id(note_written), api.save_thread, api.restore_thread,
            len(written), len(gradients), *(reader.layout or [0] * len(Layout._fields)),
            at(known) + 8 * count, 0, *threads.thread_functions(),
        ])  # fmt: skip
        self.offsets, self.parts = offsets, parts
        self._table, self._lengths = table, (len(written), len(gradients))
        kinds = {type(v) for a in arrays for v in a.values()}
        dtypes = [a[n].dtype for a in arrays for n in a]
        self._keep_alive = (
            scripts, written, gradients, known, starts, ends, shapes, entries, scratch, stack, work, kinds, dtypes, reader,
            note_written,
        )  # fmt: skip
        self._look = _compiled()
        self._address = at(self._context)

    def begin(self) -> Call:
        """Return what a call needs that lets go of the global interpreter lock, or is followed by another one."""
        return Call(*self._lengths, self._table[:])

    def share(self, call: Call, total: int, inputs: int, step: int, outputs: int) -> None:
        """Let threads do the step of a call, on so many elements."""
        self._context[_PART] = compiled_part()
        call.share(
            total, (self.parts.buffer_info()[0], len(self.offsets), call.table.buffer_info()[0], inputs, step, outputs)
        )

    def look(
        self, params: Any, grads: Any, slots: Any, inputs: int = 0, step: int = 0, call: Call | None = None
    ) -> bool:
        """Tell whether all is as it was and the gradients fit, so that no gradient lies in memory that the step writes.

        Args:
            params: parameters, as a tree.
            grads: gradients.
            slots: the slots of the state.
            inputs: address of the kernels' inputs, to do the step at once; 0 not to do it.
            step: number of the step, from 1.
            call: gets references to the arrays and their addresses. If it already has, the trees are not looked at any more.
        """
        at = self._address
        own = 0 if call is None else call.address
        return not self._look(at, at, at, id(params), id(grads), id(slots), inputs, step, own)


_PART = 45
"""Where the context has the address of the function that does one thread's part."""


def _size(a: Any) -> int:
    size = 1
    for n in a.shape:
        size *= n
    return size


def _itemsize(a: Any) -> int:
    return int(a.dtype.itemsize)


def _merged_ranges(ranges: Sequence[tuple[int, int]]) -> tuple[array[int], array[int]]:
    """Return starts and ends, increasing, of the memory covered by ranges given as start and size in bytes."""
    starts, ends = array("q"), array("q")
    for start, size in sorted(r for r in ranges if r[1]):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], start + size)
        else:
            starts.append(start)
            ends.append(start + size)
    return starts, ends


def works(reader: ArrayReader, make: Callable[[Any], Any], wrong: Callable[[Any], Sequence[Any]]) -> bool:
    """Tell whether trees and arrays are laid out in memory as the compiled function reads them; tried on known arrays.

    Args:
        reader: how arrays are read.
        make: returns an array of the library with the values of a float32 NumPy array, on memory of its own.
        wrong: given an array of shape (3, 4), returns objects that must not be taken for a gradient of it.
    """
    ordinary = platform.python_implementation() == "CPython" and sys.maxsize > 2**32 and sys.byteorder == "little"
    if not ordinary or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    first, second, third = (make(np.ones(shape, np.float32)) for shape in ((3, 4), (), (2, 1, 5)))
    params = {"b": [first, (second,)], "a": third}
    g1, g2, g3 = (make(np.zeros(shape, np.float32)) for shape in ((3, 4), (), (2, 1, 5)))
    arrays = [{"p": p, "g": g} for p, g in ((third, g3), (first, g1), (second, g2))]
    table = np.array([[reader.address(a["p"]), 0] for a in arrays], np.int64)
    sizes = np.array([_size(a["p"]) for a in arrays], np.int64)
    work = Work(_NoKernel(), range(3), table, sizes)  # type: ignore[arg-type]  # it is not run
    grads = {"b": [g1, (g2,)], "a": g3}
    watch = Watch(reader, (params, grads, {}), (), arrays, [work], 0)
    call = watch.begin()
    if not watch.is_possible or not watch.look(params, grads, {}) or not watch.look(params, grads, {}, call=call):
        return False
    if call.table.tolist()[1::2] != [reader.address(g) for g in (g3, g1, g2)]:
        return False
    if list(map(id, call.written)) != list(map(id, (third, first, second))):
        return False
    if list(map(id, call.gradients)) != list(map(id, (g3, g1, g2))) or not watch.look(None, None, None, call=call):
        return False
    equal_key = "".join(("", "a"))
    if not watch.look({"b": params["b"], equal_key: third}, dict(grads), {}):
        return False
    others = [
        {"b": [first, (second,)], "c": third},
        {"b": [first, second], "a": third},
        {"b": [first, (make(np.ones((), np.float32)),)], "a": third},
        [first, second, third],
        first,
    ]
    if any(watch.look(other, grads, {}) for other in others) or watch.look(params, grads, {"m": 0.0}):
        return False
    bad = (*wrong(first), first, 1.0, None)
    return not any(watch.look(params, {"b": [other, (g2,)], "a": g3}, {}) for other in bad)


class _NoKernel:
    columns = ("p", "g")
    address = 0
