"""Which parameters share a kernel, and in which order it gets their arrays: decided here for all targets."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from portopt.kernels.key import Flush, KernelKey
from portopt.program import Program


class Group(NamedTuple):
    """Parameters that one kernel updates.

    Attributes:
        key: of the kernel.
        device: of their arrays, as it was given; None if none was.
        members: their numbers.
    """

    key: KernelKey
    device: Any
    members: list[int]


@functools.lru_cache(maxsize=512)
def array_order(program: Program) -> tuple[str, ...]:
    """Return the names of a parameter's arrays in the order of kernels: parameter, gradient, slots as the program has them.

    Further inputs come last.
    """
    own = ("p", "g", *(name for name in program.array_outputs if name != "p"))
    return (*own, *program.further_inputs)


def kernel_key(program: Program, dtypes: Mapping[str, str], *, in_place: bool, flush: Flush) -> KernelKey:
    """Return the key of the kernel for a parameter whose arrays have these dtypes by name."""
    return KernelKey(tuple((name, dtypes[name]) for name in array_order(program)), in_place, flush)


def grouped(
    program: Program,
    dtypes: Iterable[Mapping[str, str]],
    *,
    in_place: bool,
    flush: Flush,
    devices: Iterable[Any] | None = None,
) -> list[Group]:
    """Return the parameters by kernel, in the order of each group's first one.

    Args:
        program: what the kernels do.
        dtypes: the dtypes of each parameter's arrays by name.
        in_place: whether results overwrite what they replace.
        flush: how subnormals become zero.
        devices: of each parameter; groups are of one device then.
    """
    order = array_order(program)
    places = itertools.repeat(None) if devices is None else devices
    kinds = zip(places, map(operator.itemgetter(*order), dtypes), strict=False)
    return [
        Group(KernelKey(tuple(zip(order, kind, strict=True)), in_place, flush), device, members)
        for (device, kind), members in positions(kinds).items()
    ]


def positions(keys: Iterable[Any]) -> dict[Any, list[int]]:
    """Return the positions of each key, in the order of the first ones."""
    found: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return found
