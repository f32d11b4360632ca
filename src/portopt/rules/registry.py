"""The registry of rules: one line a rule. Everything walks `RULES`, which is what this module imported, in this order."""

from portopt.optimizer import Optimizer as _Optimizer

# isort: off
from portopt.rules.sgd import SGD as SGD
from portopt.rules.rmsprop import RMSprop as RMSprop
from portopt.rules.adagrad import Adagrad as Adagrad
from portopt.rules.adadelta import Adadelta as Adadelta
from portopt.rules.adam import Adam as Adam
from portopt.rules.adamax import Adamax as Adamax
from portopt.rules.nadam import Nadam as Nadam
from portopt.rules.signum import Signum as Signum
from portopt.rules.adamw import AdamW as AdamW
from portopt.rules.lamb import LAMB as LAMB
from portopt.rules.lars import LARS as LARS
from portopt.rules.novograd import NovoGrad as NovoGrad
from portopt.rules.fromage import Fromage as Fromage
from portopt.rules.stableadamw import StableAdamW as StableAdamW
from portopt.rules.adammini import AdamMini as AdamMini
from portopt.rules.noisy_sgd import NoisySGD as NoisySGD
from portopt.rules.lookahead import Lookahead as Lookahead
from portopt.rules.schedule_free import ScheduleFree as ScheduleFree
from portopt.rules.sophia_g import SophiaG as SophiaG
from portopt.rules.adafactor import Adafactor as Adafactor
from portopt.rules.sm3 import SM3 as SM3
from portopt.rules.prodigy import Prodigy as Prodigy
from portopt.rules.dadaptadam import DAdaptAdam as DAdaptAdam
from portopt.rules.dog import DoG as DoG
from portopt.rules.muon import Muon as Muon
from portopt.rules.normuon import NorMuon as NorMuon
from portopt.rules.shampoo import Shampoo as Shampoo
# isort: on

RULES: tuple[type[_Optimizer], ...] = tuple(
    value
    for name, value in list(vars().items())
    if not name.startswith("_") and isinstance(value, type) and issubclass(value, _Optimizer)
)
