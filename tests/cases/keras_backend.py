"""Keras on the backend of this process, which is chosen when Keras is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from support.case_names import KERAS_BACKENDS
from support.turns import in_turn

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    from cases import tensorflow_devices  # noqa: F401  # for what it does


def of_this_backend(*items: Any, always: Iterable[Any] = ()) -> list[Any]:
    """Return those of a case's rules or options whose turn it is on this backend of Keras, and what it always has.

    What a rule does is the same on each, and what a backend does the same for each rule: the adapter knows neither.
    """
    return [*always, *in_turn(items, KERAS_BACKENDS.index(BACKEND), len(KERAS_BACKENDS))]
