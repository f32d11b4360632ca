"""Keras on the backend of this process, which is chosen when Keras is imported."""

from __future__ import annotations

import keras

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    from cases import tensorflow_devices  # noqa: F401  # for what it does
