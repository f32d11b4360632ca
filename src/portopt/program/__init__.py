"""Programs: a traced rule as a flat, printable list of named operations on scalars and arrays."""

from portopt.program.ir import ARRAY_OPERATIONS as ARRAY_OPERATIONS
from portopt.program.ir import DRAWS as DRAWS
from portopt.program.ir import FUNCTIONS as FUNCTIONS
from portopt.program.ir import GIVEN as GIVEN
from portopt.program.ir import PRODUCTS as PRODUCTS
from portopt.program.ir import REDUCTIONS as REDUCTIONS
from portopt.program.ir import SUMS as SUMS
from portopt.program.ir import TOTALS as TOTALS
from portopt.program.ir import Dim as Dim
from portopt.program.ir import Kind as Kind
from portopt.program.ir import Label as Label
from portopt.program.ir import Op as Op
from portopt.program.ir import Program as Program
