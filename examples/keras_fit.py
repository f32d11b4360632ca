"""Train a Keras model with a portopt optimizer, save it, and go on where it stopped: the same bits as without the stop.

Needs `pip install "portopt[keras,demo]"` and one of jax, torch and tensorflow.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from sklearn.datasets import load_digits

import portopt
import portopt_keras

digits = load_digits()
x, y = (digits.data / 16).astype("float32"), digits.target


def train(model: keras.Model, epochs: int) -> float:
    """Train on the digits in a fixed order, and return the last epoch's accuracy."""
    history = model.fit(x, y, batch_size=64, epochs=epochs, shuffle=False, verbose=0)
    return float(history.history["accuracy"][-1])


keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10, "softmax")])
optimizer = portopt_keras.KerasOptimizer(portopt.Adam(learning_rate=0.01, clipnorm=1.0))
model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])

print(f"Keras on {keras.backend.backend()}, after 2 epochs: accuracy {train(model, 2):.3f}")
model.save("digits.keras")
print(f"after 2 more: accuracy {train(model, 2):.3f}")

resumed = keras.models.load_model("digits.keras")
train(resumed, 2)
same = all(np.array_equal(a, b) for a, b in zip(model.get_weights(), resumed.get_weights(), strict=True))
print("the resumed run has the same bits:", same)
assert same
