"""Keras on the backend of this process, which is chosen when Keras is imported."""

from __future__ import annotations

import keras

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    import tensorflow as tf

    # A strategy needs two, and they have to be there before TensorFlow does anything.
    one, two = tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [one, two])
