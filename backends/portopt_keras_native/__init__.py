"""The optimizers of Keras 3 inside portopt. A package of its own, since importing `portopt_keras` imports keras."""

from portopt_keras_native._framework import native as native
