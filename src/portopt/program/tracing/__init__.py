"""From a rule to a `Program`: the rule's own code runs once on symbols that record what is asked of them."""

from portopt.program.tracing.namespace import SUPPORTED as SUPPORTED
from portopt.program.tracing.tracer import trace as trace
