"""Experiments: computations that must give the same bits on every platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from portopt_conformance.platform import Platform
from portopt_conformance.words import Words


def no_inputs() -> Mapping[str, Words]:
    return {}


@dataclass(frozen=True)
class Experiment:
    """A computation from fixed inputs.

    Attributes:
        key: its name in the committed vectors. Experiments with one key must have the same results.
        run: returns the results by name, as NumPy arrays of floats.
        inputs: returns arrays to show beside a wrong element of a result of the same size.
        literal: whether the vectors hold the results' bits, rather than checksums of blocks of them.
    """

    key: str
    run: Callable[[Platform], dict[str, Words]]
    inputs: Callable[[], Mapping[str, Words]] = no_inputs
    literal: bool = False
