"""portopt: gradient optimizers written once, with the same bits on NumPy, CuPy, PyTorch and JAX."""

from typing import TYPE_CHECKING

from portopt import deferred as _deferred
from portopt import dialects as dialects
from portopt import scalars as scalars
from portopt import schedules as schedules
from portopt._version import __version__ as __version__
from portopt.backend import ArrayAPIBackend as ArrayAPIBackend
from portopt.backend import Backend as Backend
from portopt.backend import backends as backends
from portopt.backend import get_backend as get_backend
from portopt.backend import interpreted as interpreted
from portopt.checkpoints import CheckpointError as CheckpointError
from portopt.checkpoints import load as load
from portopt.checkpoints import save as save
from portopt.explanation import Explanation as Explanation
from portopt.explanation import explain as explain
from portopt.hyperparameters import epsilon as epsilon
from portopt.hyperparameters import epsilon_hyperparameter as epsilon_hyperparameter
from portopt.hyperparameters import hyperparameter as hyperparameter
from portopt.hyperparameters import option as option
from portopt.hyperparameters import seed_hyperparameter as seed_hyperparameter
from portopt.hyperparameters import set_epsilon as set_epsilon
from portopt.interchange.configuration import deserialize as deserialize
from portopt.interchange.configuration import get as get
from portopt.interchange.configuration import register as register
from portopt.interchange.configuration import serialize as serialize
from portopt.interchange.native import NativeOptimizer as NativeOptimizer
from portopt.interchange.native import TFOptimizer as TFOptimizer
from portopt.interchange.translation import from_native as from_native
from portopt.interchange.translation import to_native as to_native
from portopt.kernels.host.threads import get_num_threads as get_num_threads
from portopt.kernels.host.threads import set_num_threads as set_num_threads
from portopt.nested import rule as rule
from portopt.optimizer import Optimizer as Optimizer
from portopt.optimizer import OptimizerState as OptimizerState
from portopt.program import Program as Program
from portopt.program.builder import UnsupportedOperationError as UnsupportedOperationError
from portopt.schedules import Schedule as Schedule
from portopt.schedules import register_schedule as register_schedule
from portopt.slot import slot as slot

if TYPE_CHECKING:
    from portopt.rules.registry import *  # noqa: F403  # a new rule is to need one line, in the registry
else:
    # Whoever only takes arrays in and hands them on does not wait for some dozens of rules.
    __getattr__, __dir__ = _deferred.names_of("portopt.rules.registry", globals())
