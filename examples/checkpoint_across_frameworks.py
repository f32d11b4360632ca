"""Begin a run on torch, go on with it on JAX and end it on NumPy: the bits are those of a run on torch alone.

Needs torch, JAX and `pip install "portopt[checkpoints]"`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import portopt

rng = np.random.default_rng(0)
START = {"kernel": rng.standard_normal((8, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
GRADIENTS = [{name: rng.standard_normal(w.shape).astype(np.float32) for name, w in START.items()} for _ in range(100)]


def train(opt: portopt.Optimizer, params: Any, state: Any, to_array: Any, steps: range) -> tuple[Any, Any]:
    for i in steps:
        grads = {name: to_array(g) for name, g in GRADIENTS[i].items()}
        params, state = opt.apply(params, grads, state)
    return params, state


def main() -> None:
    opt: portopt.Optimizer = portopt.Adam(portopt.schedules.CosineDecay(0.01, steps=100), clipnorm=1.0)
    params = {name: torch.from_numpy(w.copy()) for name, w in START.items()}
    uninterrupted, _ = train(opt, params, opt.init(params), torch.from_numpy, range(100))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        params, state = train(opt, params, opt.init(params), torch.from_numpy, range(50))
        portopt.save(path, opt, params, state)

        opt, params, state = portopt.load(path, backend="jax")
        params, state = train(opt, params, state, jnp.asarray, range(50, 75))
        portopt.save(path, opt, params, state)

        opt, params, state = portopt.load(path, backend="numpy")
        params, state = train(opt, params, state, np.asarray, range(75, 100))

    for name, w in params.items():
        same = w.tobytes() == uninterrupted[name].numpy().tobytes()
        print(f"{name}: {'the same bits' if same else 'OTHER BITS'} after {state.step} steps on torch, JAX and NumPy")
        assert same


if __name__ == "__main__":
    main()
