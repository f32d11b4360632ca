"""Keras' options, checked where Keras leaves one out without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from portopt.hyperparameters import Range

_RANGES = {
    "weight_decay": Range(at_least=0),
    "clipnorm": Range(above=0),
    "clipvalue": Range(above=0),
    "global_clipnorm": Range(above=0),
    "ema_momentum": Range(at_least=0, at_most=1),
    "loss_scale_factor": Range(above=0),
}
_LEAST = {"gradient_accumulation_steps": 2, "ema_overwrite_frequency": 1}


def check_options(owner: str, options: Mapping[str, Any]) -> None:
    """Raise an error if an option is outside its range, or would do nothing.

    Raises:
        ValueError: it is outside, or it needs another option.
        TypeError: it is no number, or no integer where one is needed.
    """
    for name, allowed in _RANGES.items():
        if options[name] is not None:
            allowed.check(owner, name, options[name])
    for name, least in _LEAST.items():
        value = options[name]
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{owner} {name} must be an integer of at least {least}, or None, but {value!r} was given")
        if value < least:
            raise ValueError(f"{owner} {name} must be an integer of at least {least}, or None, but {value!r} was given")
    if options["ema_overwrite_frequency"] is not None and not options["use_ema"]:
        raise ValueError(
            f"{owner} was given ema_overwrite_frequency={options['ema_overwrite_frequency']!r} without use_ema, so that there is "
            "no average: give use_ema=True, or leave ema_overwrite_frequency out"
        )
