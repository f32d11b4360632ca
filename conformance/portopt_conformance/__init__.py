"""The conformance suite of portopt: whether a backend gives the bits that the arithmetic contract promises.

`python -m portopt_conformance --backend NAME` runs it; `cases` gives its cases one by one,
and `cases_of` those of single rules.
"""

from portopt_conformance.case import Case as Case
from portopt_conformance.case import Outcome as Outcome
from portopt_conformance.platform import UnusableDeviceError as UnusableDeviceError
from portopt_conformance.suite import LAYERS as LAYERS
from portopt_conformance.suite import cases as cases
from portopt_conformance.suite import cases_of as cases_of
