"""The compiled function that looks at trees and arrays between two steps.

A step on many small arrays is short against the Python work of looking at each: `array.ctypes.data` alone takes over a
microsecond. So a compiled function walks the containers of parameters, gradients and slots, compares the parameters and slots
with the objects that are known, if any are, and asks each array for its memory:

- lists and tuples are read where CPython keeps their items, dicts through its C API;
- NumPy arrays are read where NumPy's binary interface says (`PyArrayObject_fields`);
- arrays of other libraries are asked through the C functions of DLPack's exchange API
  (https://dmlc.github.io/dlpack/latest/c_api.html), and what that does not tell is read where the library keeps it (`Layout`).

The function runs no Python code while it looks, and so nothing else either, for it holds the global interpreter lock. What it
found is its return value. What the kernels' inputs need yet is computed when all is as it was (`step_inputs.py`). A step on few
elements is done before it lets go of the lock. For all other steps it puts references to the arrays into lists of the call, lets
go, runs the kernels, and only then returns to Python, which may raise something. Where the library counts how often an array was
written, the function counts too.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import NamedTuple

from portopt.kernels.host import threads
from portopt.kernels.host.compiler import compile_method
from portopt.kernels.host.kernel import CALL_SOURCE, GROUP_WORDS
from portopt.kernels.host.readers import NUMPY_FIELDS, OWN_FIELDS
from portopt.kernels.host.step_inputs import HEAD

ENTRY_WORDS = 12
"""Words that tell the compiled function of an array: where its object and its address are put, what it is for, in which list it
is, dtype, number of axes, shape, bytes of an element; and of the object that the plan was made with what `is_alike` compares, how
far from the start of the memory the array begins, the number of its elements, and where `ArrayReader.place` stands."""
ROW_WORDS = 4
"""Words of an array that is the same in each step, or a gradient of one: where its object is put, in bytes, and above that where
its address is; what is expected of it; and two addresses at which something was read in the last step, so that it can be fetched.
What is expected is the same of many arrays: what their own objects should say, then how far from the start of the memory the
array begins and where it ends, 0 if it has no elements; of arrays with fields dtype, device, bytes, number of axes and shape."""

_CALL = "".join(
    f"    {line}\n"
    for line in CALL_SOURCE.format(
        unused="context[19]", tables="table", first="0", last="part[4]", inputs="inputs", step="step", outputs="inputs",
        stage="-1", workspace="context[26]", part="0", parts="1",
    ).splitlines()
)  # fmt: skip

KNOWN, READ, WRITTEN, MADE, ASIDE, ABSENT = range(6)
"""What a look expects of an array: that it is where it was; that it lies in no memory that is written; that it can be written,
and shares no memory with others; the same of one that was made for the step; nothing but its dtype and shape; that it is None."""
MISFIT = 8 * 15
"""Where among a look's temporary results the gradient is, as its entry, that kept it from doing the step; -1 if none did."""

OUTCOME = 1
"""The word of a queue that says how a step went: `DONE`, `NOT_BEGUN` if anything is not as it was, or what the queue's function
says."""
DONE, NOT_BEGUN = 0, -1
WRITES = 8
"""The word of a queue that says whether it writes the arrays."""
_MANY = 1 << 30
"""An object with fewer references than this has a plain count of them, whatever the version of Python; others Python counts."""
WORDS_AT_ONCE = 8
"""How many words are compared at once; as many are compared at least."""
_AHEAD = 16
"""How many arrays ahead what is looked at is fetched."""
_PLACES, _EXPECTED, _NEAR, _FAR = range(ROW_WORDS)

_SOURCE = f'''"""Compare trees of arrays with what a plan expects of them, and run its kernels if all is as expected."""


{threads.SHARE}

def are_others(items, count, found, first, known):
    """Put leaves that follow each other into `found`; return whether any is not the known one."""
    difference = 0
    if known == 0:
        for k in range(count):
            found[first + k] = pointer_to_int64(items)[k]
    else:
        for k in range(count):
            item = pointer_to_int64(items)[k]
            found[first + k] = item
            difference |= item ^ pointer_to_int64(known)[first + k]
    return difference != 0


def walk(script, nodes, root, found, known, context, stack):
    """Put the leaves of a tree into `found`; return whether containers, keys and known leaves are as in the script."""
    depth = 0
    node = root
    i = 0
    while i < nodes:
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
        i += 1
        top = 4 * (depth - 1)
        container = stack[top]
        position = stack[top + 2]
        stack[top + 3] -= 1
        if stack[top + 1] == 1 or stack[top + 1] == 2:
            items = container + 8 * context[27]
            if stack[top + 1] == 1:
                items = pointer_to_int64(container)[3]
            # Leaves that are not the last of their container are done with here.
            while stack[top + 3] > 0 and i < nodes - 1 and script[5 * i] == 0:
                run = script[5 * i + 1]
                leaf = script[5 * i + 3]
                if leaf >= 0 and are_others(items + 8 * position, run, found, leaf, known):
                    return False
                position += run
                i += 1
                stack[top + 3] -= run
            node = pointer_to_int64(items)[position]
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
            known_key = script[5 * i + 4]
            if key != known_key:
                key_type = pointer_to_int64(key)[1]
                if key_type != pointer_to_int64(known_key)[1]:
                    return False
                if key_type == context[18]:
                    if call_2(context[16], key, known_key) != 0:
                        return False
                elif key_type != context[52] or call_3(context[53], key, known_key, 2) != 1:
                    return False
    return False


def hold(leaves, found, count, context):
    """Put references to the objects in `found` into a list of this length."""
    for i in range(count):
        call_1(context[29], found[i])
        call_3(context[28], leaves, i, found[i])


def put_back(leaves, found, count):
    """Put the objects of a list of this length into `found`."""
    for i in range(count):
        found[i] = pointer_to_int64(pointer_to_int64(leaves)[3])[i]


def find_own_gradients(written, gradients, context):
    """Find the gradients that the library keeps of parameters, one of each; return whether each has one.

    They need no objects of Python's: what stands for one has its type, and where the library's own object is.
    """
    count = context[36]
    at_inner = context[37]
    kind = context[47]
    other_kind = context[48]
    at_kept = context[59]
    at_gradient = context[60]
    absent = context[61]
    standing = context[62]
    for k in range(count):
        fetch_line(written[min(k + {3 * _AHEAD}, count - 1)])
        fields = pointer_to_int64(written[min(k + {2 * _AHEAD}, count - 1)])
        if fields[1] == kind or fields[1] == other_kind:
            fetch_line(fields[at_inner] + 8 * at_kept)
        fields = pointer_to_int64(written[min(k + {_AHEAD}, count - 1)])
        if fields[1] == kind or fields[1] == other_kind:
            fetch_line(pointer_to_int64(fields[at_inner])[at_kept] + 8 * at_gradient)
        fields = pointer_to_int64(written[k])
        if fields[1] != kind and fields[1] != other_kind:
            return False
        kept = pointer_to_int64(fields[at_inner])[at_kept]
        if kept == 0:
            return False
        found = pointer_to_int64(kept)[at_gradient]
        if found == absent:
            return False
        place = standing + 8 * (at_inner + 1) * k
        pointer_to_int64(place)[at_inner] = found
        gradients[k] = place
    return True


def keep(item, context):
    """Keep an object alive."""
    references = pointer_to_int64(item)
    if references[0] > 0 and references[0] < {_MANY}:
        references[0] += 1
    else:
        call_1(context[29], item)


def let_go(count, context):
    """Keep the first objects alive no longer, but those that nobody else does until Python can end them."""
    places = pointer_to_int64(context[65])
    for k in range(count):
        if places[k] < 0:
            continue
        item = pointer_to_int64(context[3] + places[k])[0]
        references = pointer_to_int64(item)
        if references[0] > 1 and references[0] <= {_MANY}:
            references[0] -= 1
        elif references[0] != 1:
            call_1(context[31], item)
        elif call_2(context[57], context[56], item) == 0:
            call_1(context[31], item)
        else:
            call_0(context[17])


def are_equal(words, others, bits, count):
    """Return whether so many words, no fewer than `WORDS_AT_ONCE`, are equal in the bits that are set in others."""
    last = 8 * (count - {WORDS_AT_ONCE})
    if differ(words, others, bits, last):
        return False
    at = {8 * WORDS_AT_ONCE}
    while at < last:
        if differ(words + at, others + at, bits + at, 0):
            return False
        at += {8 * WORDS_AT_ONCE}
    return True


def gap_of(address, context):
    """Return which of the ranges of what is written is the first that ends behind an address."""
    ends = pointer_to_int64(context[12])
    first = 0
    last = context[13]
    while first < last:
        middle = (first + last) // 2
        if ends[middle] <= address:
            first = middle + 1
        else:
            last = middle
    return first


def moved_to(place, address, size, context):
    """Return whether a gradient that has moved lies in no memory that is written; it mostly lies between the same ranges."""
    known = pointer_to_int64(context[66] + place - 8 * context[67])
    gap = known[0]
    count = context[13]
    ends = pointer_to_int64(context[12])
    if (gap > 0 and ends[gap - 1] > address) or (gap < count and ends[gap] <= address):
        gap = gap_of(address, context)
        known[0] = gap
    return gap == count or pointer_to_int64(context[11])[gap] >= address + size


def as_before(rows, first, last, found, table, keeps, context):
    """Return the first of some arrays of which a library's own object does not say that all is as it was, but for the memory of
    a gradient, whose address is put into the table; those before it are kept alive if they should be.

    It returns the end if there is none. There are no calls.
    """
    at_inner = context[37]
    at_storage = context[41]
    at_memory = context[42]
    at_size = context[43]
    kind = context[47]
    other_kind = context[48]
    at_words = context[50]
    words = context[51]
    bits = context[49]
    at_counter = context[54]
    own = context[63]
    counters = context[68]
    gradients = 8 * context[67]
    start_of = 8 * at_storage
    end_of = 8 * (at_words + words) - 8
    for e in range(first, last):
        later = pointer_to_int64(rows + {8 * ROW_WORDS} * min(e + {_AHEAD}, last - 1))
        place = later[{_PLACES}] & 0xFFFFFFFF
        item = pointer_to_int64(found + place)[0]
        near = later[{_NEAR}]
        far = later[{_FAR}]
        if own != 0 and place >= gradients:
            near = pointer_to_int64(item)[at_inner]
            far = pointer_to_int64(near)[at_storage]
        else:
            fetch_line(item)
        fetch_line(near + start_of)
        fetch_line(near + start_of + 64)
        fetch_line(near + start_of + 128)
        fetch_line(near + end_of)
        fetch_line(far + 8 * at_memory)
        row = pointer_to_int64(rows + {8 * ROW_WORDS} * e)
        place = row[{_PLACES}] & 0xFFFFFFFF
        fields = pointer_to_int64(pointer_to_int64(found + place)[0])
        expected = row[{_EXPECTED}]
        if expected == 0 or (fields[1] != kind and fields[1] != other_kind):
            return e
        near = fields[at_inner]
        inner = pointer_to_int64(near)
        far = inner[at_storage]
        if near != row[{_NEAR}] or far != row[{_FAR}]:
            row[{_NEAR}] = near
            row[{_FAR}] = far
        if not are_equal(near + 8 * at_words, expected, bits, words):
            return e
        storage = pointer_to_int64(far)
        start = pointer_to_int64(expected)[words]
        end = pointer_to_int64(expected)[words + 1]
        address = storage[at_memory] + start
        if end > storage[at_size]:
            return e
        cell = pointer_to_int64(table + (row[{_PLACES}] >> 32))
        if place < gradients:
            if cell[0] != address:
                return e
            if at_counter != 0:
                if inner[at_counter] == 0:
                    return e
                pointer_to_int64(counters + place)[0] = inner[at_counter]
        elif cell[0] != address:
            if end > 0 and not moved_to(place, address, end - start, context):
                return e
            cell[0] = address
        if keeps:
            if fields[0] <= 0 or fields[0] >= {_MANY}:
                return e
            fields[0] += 1
    return last


def own_as_before(rows, first, last, found, table, keeps, context):
    """Do what `as_before` does for arrays with fields as a `FieldLayout` says."""
    at_shape = context[37]
    at_contiguous = context[38]
    at_dtype = context[39]
    at_data = context[40]
    at_address = context[41]
    at_memory = context[42]
    at_device = context[43]
    kind = context[47]
    gradients = 8 * context[67]
    for e in range(first, last):
        later = pointer_to_int64(rows + {8 * ROW_WORDS} * min(e + {2 * _AHEAD}, last - 1))
        item = pointer_to_int64(found + (later[{_PLACES}] & 0xFFFFFFFF))[0]
        fetch_line(item)
        fetch_line(item + 64)
        fetch_line(later[{_NEAR}])
        fetch_line(later[{_FAR}])
        later = pointer_to_int64(rows + {8 * ROW_WORDS} * min(e + {_AHEAD}, last - 1))
        fields = pointer_to_int64(pointer_to_int64(found + (later[{_PLACES}] & 0xFFFFFFFF))[0])
        if fields[1] == kind:
            fetch_line(pointer_to_int64(fields[at_data])[at_memory] + 8 * at_device)
        row = pointer_to_int64(rows + {8 * ROW_WORDS} * e)
        place = row[{_PLACES}] & 0xFFFFFFFF
        fields = pointer_to_int64(pointer_to_int64(found + place)[0])
        if fields[1] != kind:
            return e
        expected = pointer_to_int64(row[{_EXPECTED}])
        if fields[at_data] != row[{_NEAR}] or fields[at_shape] != row[{_FAR}]:
            row[{_NEAR}] = fields[at_data]
            row[{_FAR}] = fields[at_shape]
        data = pointer_to_int64(fields[at_data])
        memory = pointer_to_int64(data[at_memory])
        if fields[at_dtype] != expected[0] or (memory[at_device] & 0xFFFFFFFF) != expected[1]:
            return e
        axes = expected[3]
        if fields[at_shape + 1] - fields[at_shape] != 8 * axes or (fields[at_contiguous] & 0xFFFFFFFF) == 0:
            return e
        shape = pointer_to_int64(fields[at_shape])
        for axis in range(axes):
            if shape[axis] != expected[4 + axis]:
                return e
        address = data[at_address]
        cell = pointer_to_int64(table + (row[{_PLACES}] >> 32))
        if cell[0] != address:
            if place < gradients:
                return e
            if expected[2] > 0 and not moved_to(place, address, expected[2], context):
                return e
            cell[0] = address
        if keeps:
            if fields[0] <= 0 or fields[0] >= {_MANY}:
                return e
            fields[0] += 1
    return last


def fits(entry, item, table, context):
    """Return whether one array is as expected; put its address into the table if that is not known."""
    kind = entry[2]
    if kind == {ABSENT}:
        return item == context[9]
    if pointer_to_int64(item)[1] != context[47] and pointer_to_int64(item)[1] != context[48]:
        return False
    expected = pointer_to_int64(entry[6])
    size = 1
    if context[14] == {NUMPY_FIELDS}:
        fields = pointer_to_int64(item)
        address = fields[2]
        dimensions = fields[3] & 0xFFFFFFFF
        shape = pointer_to_int64(fields[4])
        flags = 0x101 if kind == {READ} or kind == {ASIDE} else 0x501
        if fields[7] != entry[4] or (fields[8] & flags) != flags or dimensions != entry[5]:
            return False
        for axis in range(dimensions):
            if shape[axis] != expected[axis]:
                return False
            size *= shape[axis]
    elif context[14] == {OWN_FIELDS}:
        fields = pointer_to_int64(item)
        data = pointer_to_int64(fields[context[40]])
        address = data[context[41]]
        dimensions = (fields[context[37] + 1] - fields[context[37]]) >> 3
        if fields[context[39]] != entry[4] or dimensions != entry[5] or (fields[context[38]] & 0xFFFFFFFF) == 0:
            return False
        if (pointer_to_int64(data[context[42]])[context[43]] & 0xFFFFFFFF) != pointer_to_int64(entry[11])[0]:
            return False
        shape = pointer_to_int64(fields[context[37]])
        for axis in range(dimensions):
            if shape[axis] != expected[axis]:
                return False
            size *= shape[axis]
    else:
        inner = pointer_to_int64(pointer_to_int64(item)[context[37]])
        storage = pointer_to_int64(inner[context[41]])
        words = pointer_to_int64(item)[context[37]] + 8 * context[50]
        if entry[8] != 0 and are_equal(words, entry[8], context[49], context[51]):
            address = storage[context[42]] + entry[9]
            size = entry[10]
        else:
            # What stands for a gradient is no object that the library may be asked about.
            if (inner[context[38]] & context[39]) != pointer_to_int64(entry[11])[1] or (context[63] and entry[3]):
                return False
            place = context[19] + 32
            fields = pointer_to_int64(place)
            if call_2(context[14], item, place) != 0:
                call_0(context[17])
                return False
            address = fields[0] + fields[5]
            dimensions = fields[2] & 0xFFFFFFFF
            if fields[1] != pointer_to_int64(entry[11])[0] or (fields[2] >> 32) != entry[4] or dimensions != entry[5]:
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
        if context[54] != 0 and kind != {READ} and kind != {ASIDE}:
            if inner[context[54]] == 0:
                return False
            pointer_to_int64(context[68])[entry[0]] = inner[context[54]]
        memory = storage[context[42]]
        if size > 0 and (address < memory or address + size * entry[7] > memory + storage[context[43]]):
            return False
    cell = pointer_to_int64(table + entry[1])
    if kind == {KNOWN}:
        return cell[0] == address
    starts = pointer_to_int64(context[11])
    ends = pointer_to_int64(context[12])
    if kind == {WRITTEN} and size > 0:
        starts[context[13]] = address
        ends[context[13]] = address + size * entry[7]
        context[13] += 1
    # Where one of this shape lay before there is nothing that is written, unless that changes.
    if kind == {READ} and size > 0 and (cell[0] != address or context[45]):
        gap = gap_of(address, context)
        if gap < context[13] and starts[gap] < address + size * entry[7]:
            return False
    cell[0] = address
    return True


def find_counters(written, context):
    """Find what counts the writes of each array, which another look may have found of others meanwhile."""
    counters = pointer_to_int64(context[68])
    for k in range(context[35]):
        counters[k] = pointer_to_int64(pointer_to_int64(written[k])[context[37]])[context[54]]


def count_writes(context, number):
    """Add a number to what the library counts of the writes of each array."""
    count = context[35]
    at_number = 8 * context[55]
    counters = pointer_to_int64(context[68])
    for k in range(count):
        fetch_line(counters[min(k + {2 * _AHEAD}, count - 1)] + at_number)
        # Whoever counts at the same time writes the same array.
        pointer_to_uint32(counters[k] + at_number)[0] += number


def are_apart(context):
    """Sort the ranges of what is written; return whether none of them overlap."""
    starts = pointer_to_int64(context[11])
    ends = pointer_to_int64(context[12])
    count = context[13]
    gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            start = starts[i]
            end = ends[i]
            k = i
            while k >= gap and starts[k - gap] > start:
                starts[k] = starts[k - gap]
                ends[k] = ends[k - gap]
                k -= gap
            starts[k] = start
            ends[k] = end
        gap //= 2
    for i in range(1, count):
        if starts[i] < ends[i - 1]:
            return False
    return True


def look(context, params, grads, slots, inputs, step, call, new, queue):
    """Look, and run the kernels if all is as expected and there are `inputs`; return whether it is.

    Where there is a `queue`, its function does the step, and says there how it went.
    """
    written = pointer_to_int64(context[3])
    gradients = pointer_to_int64(context[6])
    table = context[25]
    fields = pointer_to_int64(call)
    misfit = pointer_to_int64(context[19] + {MISFIT})
    misfit[0] = -1
    context[63] = 0
    if queue != 0:
        pointer_to_int64(queue)[{OUTCOME}] = {NOT_BEGUN}
    if call == 0 or fields[4] == 0:
        stack = pointer_to_int64(context[20])
        if not walk(pointer_to_int64(context[1]), context[2], params, written, context[22], context, stack):
            return False
        if not walk(pointer_to_int64(context[7]), context[8], slots, written, context[22], context, stack):
            return False
        if grads == context[58]:
            if call != 0 or context[62] == 0 or not find_own_gradients(written, gradients, context):
                return False
            context[63] = 1
        elif not walk(pointer_to_int64(context[4]), context[5], grads, gradients, 0, context, stack):
            return False
        for e in range(context[44]):
            entry = pointer_to_int64(context[10] + {8 * ENTRY_WORDS} * e)
            if not fits(entry, written[entry[0]], table, context):
                return False
    if call != 0:
        table = fields[2]
        if fields[4] == 0:
            hold(fields[0], written, context[35], context)
            hold(fields[1], gradients, context[36], context)
            fields[4] = 1
        else:
            # Another call may have looked meanwhile.
            put_back(fields[0], written, context[35])
            put_back(fields[1], gradients, context[36])
    fresh = gradients
    if new != 0:
        fresh = pointer_to_int64(pointer_to_int64(new)[3])
    if context[45]:
        context[13] = 0
    # Whoever gives a library's own gradients keeps the rest alive.
    keeps = queue != 0 and inputs != 0 and call == 0 and context[63] == 0
    entries = context[21]
    aside = context[44]
    e = aside
    while e < entries:
        if context[64] != 0:
            if context[51] != 0:
                e = as_before(context[64], e, entries, context[3], table, keeps, context)
            elif context[14] == {OWN_FIELDS}:
                e = own_as_before(context[64], e, entries, context[3], table, keeps, context)
            if e == entries:
                break
        entry = pointer_to_int64(context[10] + {8 * ENTRY_WORDS} * e)
        is_made = entry[2] == {MADE}
        does_fit = e != context[46] or context[45] == 0 or are_apart(context)
        if does_fit and is_made:
            does_fit = new == 0 or fits(entry, fresh[entry[0]], table, context)
        elif does_fit:
            does_fit = fits(entry, written[entry[0]], table, context)
            if entry[3] and not does_fit:
                misfit[0] = e
        if not does_fit:
            if keeps:
                let_go(e - aside, context)
            return False
        if keeps and not is_made:
            keep(written[entry[0]], context)
        e += 1
    if inputs == 0:
        return True
    given = pointer_to_int64(inputs - {HEAD})[0]
    if given != 0:
        with_totals = 0 if call != 0 and fields[3] != 0 else 1
        if call_7(pointer_to_int64(given)[0], context[19], context[19], given, table, inputs, step, with_totals) != 0:
            if keeps:
                let_go(entries - aside, context)
            return False
    if queue != 0:
        # While others run, what counts the writes of an array may become another one.
        counts = context[54] != 0 and pointer_to_int64(queue)[{WRITES}] != 0
        if counts:
            count_writes(context, 1)
        state = object_of_call_0(context[33])
        place = context[19]
        call_6(pointer_to_int64(queue)[0], place, place, queue, table, inputs, step)
        call_1(context[34], state)
        is_done = pointer_to_int64(queue)[{OUTCOME}] == {DONE}
        if counts and not is_done:
            find_counters(written, context)
            count_writes(context, -1)
        if keeps:
            let_go(entries - aside, context)
        return is_done
    if call != 0 and fields[3] != 0:
        state = object_of_call_0(context[33])
        share(fields[3])
        call_1(context[34], state)
        if context[54] != 0:
            find_counters(pointer_to_int64(pointer_to_int64(fields[0])[3]), context)
    else:
        for group in range(context[23]):
            part = pointer_to_int64(context[24] + {8 * GROUP_WORDS} * group)
{_CALL}    if context[54] != 0:
        count_writes(context, 1)
    elif context[32] != 0:
        result = object_of_call_2(context[30], context[32], fields[0])
        if result != 0:
            call_1(context[31], result)
    return True


def kernel(own, given):
    """Look at trees, given them; then the address of the kernels' inputs, the step's number, and the addresses of its call, of
    the list of new arrays and of its queue, each 0 if there is none."""
    context = pointer_to_int64(address_of(own))
    params = argument(given, 0)
    grads = argument(given, 1)
    slots = argument(given, 2)
    inputs = integer(own, given, 3)
    step = integer(own, given, 4)
    call = integer(own, given, 5)
    new = integer(own, given, 6)
    queue = integer(own, given, 7)
    return truth(own, look(context, params, grads, slots, inputs, step, call, new, queue))
'''


class PythonFunctions(NamedTuple):
    """Their addresses."""

    dict_next: int
    compare: int
    compare_objects: int
    clear_error: int
    set_item: int
    hold: int
    call: int
    release: int
    append: int
    save_thread: int
    restore_thread: int


@functools.cache
def python_functions() -> PythonFunctions:
    """Return the functions of Python's C API that the look calls."""
    api = ctypes.pythonapi
    functions = (
        api.PyDict_Next, api.PyUnicode_Compare, api.PyObject_RichCompareBool, api.PyErr_Clear, api.PyList_SetItem, api.Py_IncRef,
        api.PyObject_CallOneArg, api.Py_DecRef, api.PyList_Append, api.PyEval_SaveThread, api.PyEval_RestoreThread,
    )  # fmt: skip
    return PythonFunctions(*map(threads.address_of, functions))


@functools.cache
def compiled_look() -> Callable[[int], Callable[..., bool]]:
    """Return what makes the compiled function, given the address of a context."""
    return compile_method(_SOURCE)
