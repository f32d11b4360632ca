"""The built-in rules, one a file. `RULES` is the one list of them: tests, conformance and documentation walk it."""

from __future__ import annotations

from portopt.optimizer import Optimizer
from portopt.rules.adadelta import Adadelta as Adadelta
from portopt.rules.adagrad import Adagrad as Adagrad
from portopt.rules.adam import Adam as Adam
from portopt.rules.adamax import Adamax as Adamax
from portopt.rules.nadam import Nadam as Nadam
from portopt.rules.rmsprop import RMSprop as RMSprop
from portopt.rules.sgd import SGD as SGD

RULES: tuple[type[Optimizer], ...] = (SGD, RMSprop, Adagrad, Adadelta, Adam, Adamax, Nadam)
