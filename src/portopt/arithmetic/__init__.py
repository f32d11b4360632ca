"""What computes the float64 scalars of a step: on the host, or as values of a program that is being traced."""

from portopt.arithmetic.host import HOST as HOST
from portopt.arithmetic.protocol import Arithmetic as Arithmetic
from portopt.arithmetic.protocol import Number as Number
from portopt.arithmetic.protocol import UnknownValueError as UnknownValueError
