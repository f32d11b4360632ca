"""The rules that are measured, each with its counterparts in other libraries, at the same hyperparameters.

The counterparts' formulas differ from portopt's in where epsilon stands and in the order of operations, not in what they read
and write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from portopt.optimizer import Optimizer
from portopt.rules import RULES, SGD, Adadelta, Adagrad, Adam, Adamax, Nadam, RMSprop

OPTIONS: Mapping[type[Optimizer], dict[str, Any]] = {SGD: {"momentum": 0.9}}
"""Arguments that are not the defaults: plain gradient descent keeps no slots, and nobody waits for it."""

TORCH: Mapping[type[Optimizer], Callable[[Any], tuple[str, dict[str, Any]]]] = {
    SGD: lambda o: ("SGD", {"momentum": o.momentum}),
    RMSprop: lambda o: ("RMSprop", {"alpha": o.rho, "eps": o.epsilon}),
    Adagrad: lambda o: ("Adagrad", {"eps": o.epsilon}),
    Adadelta: lambda o: ("Adadelta", {"rho": o.rho, "eps": o.epsilon}),
    Adam: lambda o: ("Adam", {"betas": (o.beta_1, o.beta_2), "eps": o.epsilon}),
    Adamax: lambda o: ("Adamax", {"betas": (o.beta_1, o.beta_2), "eps": o.epsilon}),
    Nadam: lambda o: (
        "NAdam",
        {"betas": (o.beta_1, o.beta_2), "eps": o.epsilon, "momentum_decay": o.schedule_decay},
    ),
}
"""Name and arguments, beside the learning rate, of the class in `torch.optim`."""

OPTAX: Mapping[type[Optimizer], Callable[[Any], tuple[str, dict[str, Any]]]] = {
    SGD: lambda o: ("sgd", {"momentum": o.momentum}),
    RMSprop: lambda o: ("rmsprop", {"decay": o.rho, "eps": o.epsilon}),
    Adagrad: lambda o: ("adagrad", {"eps": o.epsilon}),
    Adadelta: lambda o: ("adadelta", {"rho": o.rho, "eps": o.epsilon}),
    Adam: lambda o: ("adam", {"b1": o.beta_1, "b2": o.beta_2, "eps": o.epsilon}),
    Adamax: lambda o: ("adamax", {"b1": o.beta_1, "b2": o.beta_2, "eps": o.epsilon}),
    Nadam: lambda o: ("nadam", {"b1": o.beta_1, "b2": o.beta_2, "eps": o.epsilon}),
}
"""Name and arguments, beside the learning rate, of the function in optax."""

RULES_BY_NAME: Mapping[str, type[Optimizer]] = {rule.__name__.lower(): rule for rule in RULES}


def make_optimizer(rule: type[Optimizer]) -> Optimizer:
    """Return the optimizer that is measured for a rule."""
    return rule(**OPTIONS.get(rule, {}))


def arrays_moved(optimizer: Optimizer) -> int:
    """Return how many arrays, each as large as the parameters, a step has to read and write at least."""
    program = optimizer.program()
    return len(program.array_inputs) + len(program.array_outputs)
