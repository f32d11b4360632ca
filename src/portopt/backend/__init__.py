"""What a backend is, and how the backend of an array is found.

A backend makes portopt run on one array library. It is any object with the attributes of `Backend`; packages announce
theirs through the entry-point group `portopt.backends`, ours and others' alike. `ArrayAPIBackend` implements all of it for
a library that follows the array API standard, so a backend usually overrides only what its library does differently.
"""

from portopt.backend import registry, unannounced
from portopt.backend.array_api import ArrayAPIBackend as ArrayAPIBackend
from portopt.backend.array_api import beside_numbers as beside_numbers
from portopt.backend.graphs import DeviceNumber as DeviceNumber
from portopt.backend.graphs import DeviceScalars as DeviceScalars
from portopt.backend.graphs import Graphs as Graphs
from portopt.backend.modes import IN_PLACE as IN_PLACE
from portopt.backend.modes import INTERPRETED as INTERPRETED
from portopt.backend.modes import PURE as PURE
from portopt.backend.modes import apply_in_place as apply_in_place
from portopt.backend.modes import apply_interpreted as apply_interpreted
from portopt.backend.modes import interpreted as interpreted
from portopt.backend.modes import is_interpreted as is_interpreted
from portopt.backend.protocol import ArrayInfo as ArrayInfo
from portopt.backend.protocol import Arrays as Arrays
from portopt.backend.protocol import Backend as Backend
from portopt.backend.protocol import Leaf as Leaf
from portopt.backend.protocol import MemoryRange as MemoryRange
from portopt.backend.protocol import Mode as Mode
from portopt.backend.protocol import PlannedStep as PlannedStep
from portopt.backend.protocol import Step as Step
from portopt.backend.protocol import Work as Work
from portopt.backend.protocol import described as described
from portopt.backend.registry import ENTRY_POINT_GROUP as ENTRY_POINT_GROUP
from portopt.backend.registry import UnknownBackendError as UnknownBackendError
from portopt.backend.registry import backends as backends
from portopt.backend.registry import find_backend as find_backend
from portopt.backend.registry import get_backend as get_backend
from portopt.backend.registry import is_preferred as is_preferred
from portopt.backend.registry import is_set_aside as is_set_aside
from portopt.backend.registry import known_backend as known_backend
from portopt.backend.registry import prefer as prefer
from portopt.backend.registry import recognize as recognize
from portopt.backend.unannounced import accept as accept

registry.ask_last(unannounced)
