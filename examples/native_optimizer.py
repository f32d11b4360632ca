"""Optimizers of torch and optax under portopt's `apply`, and a run that begins in torch.optim and goes on in portopt, on JAX."""

import jax.numpy as jnp
import numpy as np
import optax
import torch

import portopt

rng = np.random.default_rng(0)
inputs = rng.standard_normal((256, 8)).astype(np.float32)
targets = inputs @ rng.standard_normal(8).astype(np.float32)


def gradient(weights: np.ndarray) -> np.ndarray:
    """Return the gradient of the mean squared error of a linear model."""
    return (inputs.T @ (inputs @ weights - targets) * np.float32(2 / len(targets))).astype(np.float32)


def error(weights: np.ndarray) -> float:
    return float(np.mean((inputs @ weights - targets) ** 2))


# One loop, three optimizers, NumPy arrays.
for opt in (
    portopt.Adam(0.05),
    portopt.NativeOptimizer(torch.optim.Adam, lr=0.05),
    portopt.NativeOptimizer(optax.adam, learning_rate=0.05),
):
    weights = np.zeros(8, np.float32)
    state = opt.init(weights)
    for _ in range(100):
        weights, state = opt.apply(weights, gradient(weights), state)
    print(f"{error(weights):.6f}  {opt!r}")

# Begun in torch.optim ...
parameter = torch.nn.Parameter(torch.zeros(8))
native = torch.optim.Adam([parameter], lr=0.05)
for _ in range(50):
    parameter.grad = torch.from_numpy(gradient(parameter.detach().numpy()))
    native.step()
opt, state = portopt.from_native(native, params=parameter)

# ... and gone on, with torch's formula, on JAX.
weights = jnp.asarray(parameter.detach().numpy())
slots = {name: jnp.asarray(slot.numpy()) for name, slot in state.slots.items()}
state = portopt.OptimizerState(state.step, slots)
for _ in range(50):
    weights, state = opt.apply(weights, jnp.asarray(gradient(np.asarray(weights))), state)
print(f"{error(np.asarray(weights)):.6f}  {opt.dialect} dialect, {state.step} steps, the last 50 on JAX")
