"""The built-in rules, one a file; `registry` lists them."""

from typing import TYPE_CHECKING

from portopt import deferred

if TYPE_CHECKING:
    from portopt.rules.registry import *  # noqa: F403  # a new rule is to need one line, in the registry
else:
    __getattr__, __dir__ = deferred.names_of("portopt.rules.registry", globals())
