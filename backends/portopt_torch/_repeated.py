"""Repeated steps of a `TorchOptimizer`: what was found out in the last one is not found out again.

A model may have a thousand parameters, and Python takes longer to look at each of their gradients and states than kernels take
for a step. So two functions are compiled, like the look of a planned step (`portopt.kernels.host.look`): one reads the gradients
where torch keeps them, and compares containers with what they held in the last step; the other one writes the number of the step
into the states. Neither runs Python code between its first comparison and its last.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from portopt.kernels.host import compiler, threads
from portopt_torch._backend import reader_on
from portopt_torch._layout import elsewhere, find_gradient

_LOOK_SOURCE = '''"""Read the gradients of parameters, and compare lists and dicts with what they held."""


def gradient_of(parameter, context):
    """Return a new reference to the gradient of a parameter, or to None; 0 if an error was raised."""
    if context[2]:
        kept = pointer_to_int64(pointer_to_int64(parameter)[context[3]])[context[4]]
        found = context[6]
        if kept != 0:
            found = pointer_to_int64(kept)[context[5]]
        if found == context[6]:
            call_1(context[8], context[0])
            return context[0]
        item = pointer_to_int64(found)[context[7]]
        # The lowest bit says that torch keeps the object alive, and not the object torch's own.
        if item != 0 and item & 1 == 0:
            call_1(context[8], item)
            return item
    return object_of_call_2(context[9], parameter, context[1])


def hold_gradients(context, gradients):
    """Put the gradients of all that move into lists; return whether each has one."""
    found = pointer_to_int64(pointer_to_int64(gradients)[3])
    parameters = pointer_to_int64(context[11])
    counts = pointer_to_int64(context[12])
    k = 0
    for batch in range(context[13]):
        for i in range(counts[batch]):
            if context[2] and i + 12 < counts[batch]:
                # A gradient is found through three objects, each of which lies elsewhere.
                fetch_line(parameters[k + 12])
                inner = pointer_to_int64(parameters[k + 8])[context[3]]
                fetch_line(inner + 8 * context[4])
                kept = pointer_to_int64(pointer_to_int64(parameters[k + 4])[context[3]])[context[4]]
                if kept != 0:
                    fetch_line(kept + 8 * context[5])
            item = gradient_of(parameters[k], context)
            if item == 0:
                return False
            call_3(context[10], found[batch], i, item)
            if item == context[0]:
                return False
            k += 1
    return True


def is_as_it_was(context, gradients):
    """Return whether all is as it was; where there are lists, put the gradients of all that move into them."""
    # First, for an attribute may run code that changes the containers.
    if gradients != 0 and not hold_gradients(context, gradients):
        return False
    parameters = pointer_to_int64(context[11])
    for still in range(context[14]):
        item = gradient_of(parameters[context[24] + still], context)
        if item != 0:
            call_1(context[23], item)
        if item != context[0]:
            return False
    expected = pointer_to_int64(context[19])
    for number in range(context[15]):
        known = pointer_to_int64(context[16] + 32 * number)
        container = pointer_to_int64(known[0])
        if container[2] != known[1]:
            return False
        items = pointer_to_int64(container[3])
        for i in range(known[1]):
            if items[i] != expected[known[2] + i]:
                return False
    counted = pointer_to_int64(context[20])
    place = context[22]
    cursor = pointer_to_int64(place)
    for number in range(context[17]):
        known = pointer_to_int64(context[18] + 32 * number)
        # Small dicts lie here and there.
        if number + 48 < context[17]:
            fetch_line(known[192])
        # Python 3.13 changes the values of an object's attributes, to which the sixth word of its dict points, in versions
        # that stay the same.
        version = pointer_to_int64(known[0])[3]
        if context[25] and version == pointer_to_int64(known[3])[0] and pointer_to_int64(known[0])[5] == 0:
            continue
        # The fifth word of a dict is where its entries are.
        if number + 8 < context[17]:
            fetch_line(pointer_to_int64(known[32])[4])
            fetch_line(pointer_to_int64(known[32])[4] + 64)
        if pointer_to_int64(known[0])[2] != known[1]:
            return False
        cursor[0] = 0
        for i in range(known[1]):
            if call_4(context[21], known[0], place, place + 8, place + 16) == 0:
                return False
            value = expected[known[2] + 2 * i + 1]
            if value & 1:
                value = counted[value >> 1]
            if cursor[1] != expected[known[2] + 2 * i] or (value != 0 and cursor[2] != value):
                return False
        pointer_to_int64(known[3])[0] = version
    return True


def kernel(own, given):
    """Compare with what was before, given the lists of gradients, or None where they are not asked for."""
    context = pointer_to_int64(address_of(own))
    gradients = argument(given, 0)
    if gradients == context[0]:
        gradients = 0
    return truth(own, is_as_it_was(context, gradients))
'''
_COUNT_SOURCE = '''"""Give all dicts of a list the same values for the same keys."""


def kernel(own, given):
    """Set the values of keys that are there; the function keeps the address of `PyDict_SetItem`."""
    set_item = address_of(own)
    dicts = argument(given, 0)
    of = pointer_to_int64(pointer_to_int64(dicts)[3])
    names = pointer_to_int64(pointer_to_int64(argument(given, 1))[3])
    values = pointer_to_int64(pointer_to_int64(argument(given, 2))[3])
    count = pointer_to_int64(dicts)[2]
    versions = pointer_to_int64(integer(own, given, 3))
    for i in range(count):
        before = pointer_to_int64(of[i])[3]
        if i + 8 < count:
            fetch_line(of[i + 8])
            fetch_line(pointer_to_int64(of[i + 4])[4])
            fetch_line(pointer_to_int64(of[i + 4])[4] + 64)
        for k in range(pointer_to_int64(argument(given, 1))[2]):
            call_3(set_item, of[i], names[k], values[k])
        if before == versions[i]:
            versions[i] = pointer_to_int64(of[i])[3]
    return truth(own, True)
'''
_FEW = 4
"""So many dicts are changed as fast by Python."""
_MISSED = 3
"""So many steps are tried in vain."""
_ANY = 0
"""What is expected of a value that no step looks at."""


class RepeatedStep:
    """What must be as it was for a step to be done on the same batches as the last one.

    All containers and what they are expected to hold are kept alive, so that no other object can take the place of one.

    Args:
        groups: the optimizer's list of groups.
        state: the optimizer's dict of states.
        batches: those that move: parameters, their states with the versions that these had when they were compared last, and
            under which names these have what; a step changes the values of the `counted` names, to those that `counts` returns.
        still: the parameters that had no gradient.
        versioned: whether a dict whose version is as it was holds what it held; None to find out.
    """

    def __init__(
        self, groups: Any, state: Any, batches: Sequence[Any], still: Sequence[Any], *, versioned: bool | None = None
    ) -> None:
        if versioned is None:
            versioned = are_versioned()
        self.groups, self.state, self._batches = groups, state, batches
        parameters = [p for batch in batches for p in batch.parameters]
        lists, dicts = _Containers(), _Containers()
        lists.add(groups, groups)
        self._lists = [group["params"] for group in groups]
        for of_group in self._lists:
            lists.add(of_group, of_group)
        versions = array("q", bytes(8))
        dicts.add(state, [x for item in state.items() for x in item], version=_at(versions))
        counted = 0
        for batch in batches:
            places = {name: 2 * (counted + k) + 1 for k, name in enumerate(batch.counted)}
            counted += len(places)
            for k, entry in enumerate(batch.states):
                words = [
                    w for n, x in entry.items() for w in (id(n), places.get(n, id(x) if n in batch.slots else _ANY))
                ]
                dicts.add(entry, list(entry.items()), words, _at(batch.versions) + 8 * k)
        self._counted = array("q", bytes(8 * counted))
        self._scratch = array("q", bytes(24))
        moved = array("q", map(id, [*parameters, *still]))
        counts = array("q", [len(batch.parameters) for batch in batches])
        expected = lists.expected + dicts.expected
        tables = lists.table(0), dicts.table(len(lists.expected))
        layout, api = find_gradient(), ctypes.pythonapi
        functions = api.Py_IncRef, api.PyObject_GetAttr, api.PyList_SetItem, api.PyDict_Next, api.Py_DecRef
        hold, get, set_item, get_next, release = map(threads.address_of, functions)
        self._context = array("q", [
            id(None), id(_GRAD), int(layout is not None), *(layout or [0] * 5), hold, get, set_item,
            _at(moved), _at(counts), len(counts), len(still),
            len(lists.sizes), _at(tables[0]), len(dicts.sizes), _at(tables[1]), _at(expected),
            _at(self._counted), get_next, _at(self._scratch), release, len(parameters), int(versioned),
        ])  # fmt: skip
        self._counts = list(counts)
        self._keep_alive = versions, lists, dicts, parameters, still, moved, counts, expected, tables
        self._look = _compiled_look()(_at(self._context))
        self._missed = 0

    def gradients(self, groups: Any, state: Any) -> list[list[Any]] | None:
        """Return the gradients of each batch; None if anything is not as it was."""
        found = [[None] * n for n in self._counts]
        return found if self._is_as_it_was(groups, state, found) else None

    @property
    def needs_gradients(self) -> bool:
        """Whether no plan does the step on gradients that are no objects of Python's, as none did several times."""
        return self._missed >= _MISSED

    def note(self, done: bool) -> None:
        """Note whether plans did the step on gradients that are no objects of Python's."""
        self._missed = 0 if done else self._missed + 1

    def is_as_it_was(self, groups: Any, state: Any) -> bool:
        """Tell whether all is as it was, but for the gradients of those that move."""
        return self._is_as_it_was(groups, state, None)

    def _is_as_it_was(self, groups: Any, state: Any, found: list[list[Any]] | None) -> bool:
        if groups is not self.groups or state is not self.state:
            return False
        if not all(map(operator.is_, map(_PARAMETERS, groups), self._lists)):
            return False
        k, counted = 0, self._counted
        for batch in self._batches:
            for value in batch.counts():
                counted[k] = id(value)
                k += 1
        return self._look(found)


class _Containers:
    """Lists or dicts with what they are expected to hold."""

    def __init__(self) -> None:
        self.sizes: list[tuple[Any, int]] = []
        self.expected = array("q")
        self._places: list[tuple[int, int]] = []
        self._keep_alive: list[Any] = []

    def add(self, container: Any, held: Iterable[Any], words: Iterable[int] | None = None, version: int = 0) -> None:
        """Expect a container to hold these objects, or for which these words stand; its version is put at an address."""
        held = list(held)
        self.sizes.append((container, len(container)))
        self._places.append((len(self.expected), version))
        self.expected.extend(map(id, held) if words is None else words)
        self._keep_alive.append(held)

    def table(self, start: int) -> array[int]:
        """Return four words for each container: where it is, its size, where its words are, given where the first are, and where
        its version is."""
        both = zip(self.sizes, self._places, strict=True)
        return array("q", [w for (c, n), (k, version) in both for w in (id(c), n, start + k, version)])


def put(dicts: list[dict[str, Any]], keys: list[str], values: list[Any], versions: array[int]) -> None:
    """Give all dicts the same values for keys that they have; and those of their versions that were known are so afterwards."""
    if len(dicts) < _FEW or not is_possible():
        for entry in dicts:
            entry.update(zip(keys, values, strict=True))
    else:
        _put_compiled(dicts, keys, values, versions)


def _put_compiled(dicts: list[dict[str, Any]], keys: list[str], values: list[Any], versions: array[int]) -> None:
    _compiled_count()(dicts, keys, values, _at(versions))


@functools.cache
def are_versioned() -> bool:
    """Tell whether the fourth word of a dict is another one after each change, as in Python up to 3.13; tried on known ones."""

    def version(entry: dict[str, int]) -> int:
        return ctypes.c_int64.from_address(id(entry) + 24).value

    entry, others = {"step": 1, "m": 2}, {"step": 1, "m": 2}
    seen = {version(entry), version(others), version(entry.copy())}
    changes: list[Callable[[], object]] = [
        lambda: entry.__setitem__("step", 1000),
        lambda: entry.__setitem__("step", 1001),
        lambda: entry.update(m=3),
        lambda: entry.setdefault("other", 4),
        lambda: entry.__delitem__("other"),
        lambda: entry.__ior__({"m": 5}),
        entry.popitem,
        lambda: entry.pop("step"),
        lambda: entry.update(others),
        entry.clear,
        lambda: entry.update(step=1),
    ]
    for count, change in enumerate(changes, len(seen)):
        if len(seen) != count:
            return False
        change()
        seen.add(version(entry))
    return len(seen) == 3 + len(changes)


@functools.cache
def is_possible() -> bool:
    """Tell whether the compiled functions read this Python and this torch aright, tried on known parameters."""
    if not compiler.available() or reader_on("cpu") is None:
        return False
    return elsewhere(lambda: all(map(_works, {False, are_versioned()})))


def _works(versioned: bool) -> bool:
    first, used, known, without = (torch.nn.Parameter(torch.ones(n, device="cpu")) for n in (3, 2, 5, 4))
    first.grad, used.grad, known.grad = (torch.zeros(n, device="cpu") for n in (3, 2, 5))
    used.grad = None
    state: Any = defaultdict(dict)
    parameters = [first, known]
    for p in parameters:
        state[p] = {"step": 1, "m": p, "other": 1.0}
    batch = _Known(parameters, [state[p] for p in parameters])
    groups = [{"params": [first, used, known, without]}]
    step = RepeatedStep(groups, state, [batch], [used, without], versioned=versioned)
    found = step.gradients(groups, state)
    if found is None or list(map(id, found[0])) != list(map(id, (first.grad, known.grad))):
        return False
    state[known]["other"] = 2.0
    if step.gradients(groups, state) is None:
        return False
    _put_compiled(batch.states, ["step"], [1234567], batch.versions)
    batch.count = state[known]["step"]
    if batch.count != 1234567 or state[first] != {"step": 1234567, "m": first, "other": 1.0}:
        return False
    if step.gradients(groups, state) is None:
        return False

    def without_gradient() -> None:
        known.grad = None

    changes = [
        lambda: state[known].update(m=used),
        lambda: state[known].update(step=int("1234567")),
        lambda: state.update({used: {}}),
        lambda: groups[0]["params"].pop(),
        without_gradient,
    ]
    return all(_is_noticed(change, step, groups, state) for change in changes)


def _is_noticed(change: Any, step: RepeatedStep, groups: Any, state: Any) -> bool:
    before = [list(group["params"]) for group in groups], {p: dict(entry) for p, entry in state.items()}
    gradients = {p: p.grad for group in groups for p in group["params"]}
    change()
    noticed = step.gradients(groups, state) is None
    for group, parameters in zip(groups, before[0], strict=True):
        group["params"][:] = parameters
    for p in list(state):
        if p not in before[1]:
            del state[p]
        else:
            state[p].update(before[1][p])
    for p, g in gradients.items():
        p.grad = g
    return noticed and step.gradients(groups, state) is not None


class _Known:
    """A batch of known parameters."""

    counted = ("step",)
    slots = ("m",)

    def __init__(self, parameters: Sequence[Any], states: list[dict[str, Any]]) -> None:
        self.parameters, self.states = parameters, states
        self.versions = array("q", bytes(8 * len(states)))
        self.count = 1

    def counts(self) -> tuple[Any, ...]:
        return (self.count,)


_GRAD, _PARAMETERS = "grad", operator.itemgetter("params")


@functools.cache
def _compiled_look() -> Callable[[int], Callable[..., bool]]:
    return compiler.compile_method(_LOOK_SOURCE)


@functools.cache
def _compiled_count() -> Callable[..., bool]:
    return compiler.compile_method(_COUNT_SOURCE)(threads.address_of(ctypes.pythonapi.PyDict_SetItem))


def _at(buffer: array[int]) -> int:
    return buffer.buffer_info()[0]
