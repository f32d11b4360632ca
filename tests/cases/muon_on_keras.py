"""Muon of Keras 3 on its settings, in float64; for JAX with x64, as `keras3_run`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras.src.optimizers import muon
from support.bits import Array
from support.muon_settings import KERAS3, RATE, gradients, parameters


def results() -> list[list[Array]]:
    """Return the parameters after all steps with each of the settings."""
    keras.backend.set_floatx("float64")
    norm = muon.ops.norm

    def norm_in_float64(x: Any, **options: Any) -> Any:
        exact = jnp.linalg.norm(keras.ops.convert_to_tensor(x), **options)
        assert np.allclose(norm(x, **options), exact, rtol=1e-6)
        return exact

    with pytest.MonkeyPatch.context() as patch:
        # Keras takes the norm of float64 arrays in float32, which is all that tells its Muon from the formula.
        patch.setattr(muon.ops, "norm", norm_in_float64)
        return [_after_steps(theirs) for _, theirs in KERAS3]


def _after_steps(arguments: dict[str, Any]) -> list[Array]:
    variables = [keras.Variable(p, dtype="float64") for p in parameters()]
    optimizer = keras.optimizers.Muon(RATE, **arguments)
    for gradient in gradients():
        optimizer.apply_gradients([(jnp.asarray(g), v) for g, v in zip(gradient, variables, strict=True)])
    return [np.asarray(v) for v in variables]
