"""A process that calls functions of the modules in `cases`, as `support.elsewhere` asks it to by its standard input."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def _questions() -> Iterator[tuple[str, str, tuple[Any, ...], Callable[[Any], None]]]:
    """Yield what the process is asked, and the function that answers; what the cases print is kept away from both."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def answer(value: Any) -> None:
        pickle.dump(value, answers)
        answers.flush()

    with contextlib.suppress(EOFError):
        while True:
            yield *pickle.load(questions), answer


def _loaded(name: str) -> ModuleType:
    """Import a module. Libraries stay to the end; each collection of garbage would walk through them."""
    if name not in sys.modules:
        importlib.import_module(name)
        gc.collect()
        gc.freeze()
    return sys.modules[name]


def _serve() -> None:
    for module, function, arguments, answer in _questions():
        failure, result = None, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # Variables of Keras do not know NumPy 2's argument yet.
                warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword")
                result = getattr(_loaded(f"cases.{module}"), function)(*arguments)
        except BaseException:
            failure = traceback.format_exc()
        sys.stdout.flush()
        answer((failure, result))


if __name__ == "__main__":
    _serve()
