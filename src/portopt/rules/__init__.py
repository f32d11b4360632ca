"""The built-in rules, one a file; `registry` lists them."""

from portopt.rules.registry import *  # noqa: F403  # a new rule is to need one line, in the registry
