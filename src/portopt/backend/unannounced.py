"""Array libraries that no backend is announced for: whose an array is, and what becomes of it.

An array says what its namespace is, through `__array_namespace__` or through array-api-compat. There is no list of such
libraries and nobody has tested them, so the first use of each dtype, and of each rule, begins with a look at the results
(`portopt.backend.operation_checks`).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from portopt.arithmetic.dtypes import COMPUTE_DTYPE
from portopt.backend import operation_checks
from portopt.backend.array_api import ArrayAPIBackend, beside_numbers
from portopt.backend.modes import PURE
from portopt.backend.protocol import ArrayInfo, Backend, Work, described
from portopt.backend.registry import find_backend, get_backend, is_preferred
from portopt.program import DRAWS, PRODUCTS, REDUCTIONS, Program


class UnannouncedBackend(ArrayAPIBackend):
    """The backend of an array API namespace that was met, not announced.

    Args:
        name: of the namespace.
        namespace: what arrays of the library give as their namespace.

    Attributes:
        is_accepted: whether the user takes its operations as they are.
    """

    def __init__(self, name: str, namespace: Any) -> None:
        root = name.partition(".")[0]
        super().__init__(name, lambda: namespace, root=root, install_command=f"pip install {root}")
        self.is_accepted = False
        self._looked_at: set[Hashable] = set()
        self._why_not_assigned = self._try_to_assign()
        if self._why_not_assigned is not None:
            self.modes = {"apply": PURE}

    def owns(self, leaf: object) -> bool:
        return backend_of(leaf) is self

    def describe(self, array: Any) -> ArrayInfo:
        if carried := beside_numbers(array):
            raise TypeError(
                f"arrays of type {type(array).__name__} have a {carried} besides their numbers, which a step would not heed; "
                "give plain arrays"
            )
        info = super().describe(array)
        if info.dtype in COMPUTE_DTYPE:
            self.dtype(info.dtype)
        return info

    def full(self, like: Any, value: float, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        for used in (self.dtype_name(like), dtype):
            self._look_at_operations(used, like)
        return super().full(like, value, dtype, shape)

    def gradient_norm(self, gradients: Sequence[Any]) -> Any:
        for gradient in gradients:
            dtype = self.dtype_name(gradient)
            self._look_at_operations(dtype, gradient)
            self._look(("norm", dtype), gradient, lambda d=dtype, g=gradient: operation_checks.check_norm(self, d, g))  # type: ignore[misc]  # binds
        return super().gradient_norm(gradients)

    def update(self, works: Sequence[Work], *, in_place: bool) -> list[dict[str, Any]]:
        works = [Work(program, scalars, described(self, parameters)) for program, scalars, parameters in works]
        for work in works:
            for leaf in work.parameters:
                self._look_at_step(work.program, leaf)
        return super().update(works, in_place=in_place)

    def _look_at_step(self, program: Program, leaf: Any) -> None:
        like, dtypes = leaf["p"], leaf.dtypes
        for dtype in dtypes.values():
            self._look_at_operations(dtype, like)
        compute = COMPUTE_DTYPE[dtypes["p"]]
        for name in sorted({op.name for op in program.ops} & {*REDUCTIONS, *PRODUCTS, *DRAWS}):
            self._look((name, compute), like, lambda n=name: operation_checks.check_operation(self, n, compute, like))  # type: ignore[misc]  # binds
        self._look((program, *dtypes.items()), like, lambda: operation_checks.check_step(self, program, dtypes, like))

    def _look_at_operations(self, dtype: str, like: Any) -> None:
        self._look(("operations", dtype), like, lambda: operation_checks.check_operations(self, dtype, like))

    def _look(self, subject: Hashable, like: Any, check: Callable[[], None]) -> None:
        """Check something on the device of `like`, once; not what the user accepts, nor what is being tested at length."""
        key = (subject, str(getattr(like, "device", "")))
        if key in self._looked_at or self.is_accepted or is_preferred(self):
            return
        with operation_checks.silence():
            check()
        self._looked_at.add(key)

    def assign(self, target: Any, value: Any) -> None:
        # There is nothing to write into an empty array, and libraries may refuse even that.
        if 0 not in target.shape:
            super().assign(target, value)

    def why_read_only(self, array: Any) -> str | None:
        return self._why_not_assigned

    def _try_to_assign(self) -> str | None:
        """Return why arrays of the library cannot be changed; one whose arrays are immutable may have the method nevertheless."""
        try:
            target, value = (self.xp.full((2,), x, dtype=self.dtype("float32")) for x in (1.0, 2.0))
            self.assign(target, value)
            if self.to_numpy(target).tolist() == [2.0, 2.0]:
                return None
        except Exception as error:
            return f"is an immutable array of {self.name} ({error!s:.120})"
        return f"is an array of {self.name}, which keeps its values when others are assigned"


_by_type: dict[type, UnannouncedBackend] = {}
_backends: list[UnannouncedBackend] = []


def backend_of(leaf: object) -> UnannouncedBackend | None:
    """Return the backend of an array that has a namespace, or None if `leaf` has none; arrays of one type have one backend."""
    kind = type(leaf)
    backend = _by_type.get(kind)
    if backend is None:
        namespace = _namespace_of(leaf)
        if namespace is None:
            return None
        # Of threads that meet the type at once, the first one's is the backend of all.
        backend = _by_type.setdefault(kind, _backend_of_namespace(namespace, _name_of(namespace, kind)))
    return backend


def backend_named(name: str, *, may_import: bool = True) -> Backend | None:
    """Return the backend of a library that was met before, or of an importable one; None if there is none of that name.

    Args:
        name: of the library.
        may_import: whether a module of that name is imported; otherwise it must be there already.
    """
    known = next((backend for backend in _backends if backend.name == name), None)
    if known is not None:
        return known
    if not may_import and "__array_namespace_info__" not in getattr(sys.modules.get(name), "__dict__", ()):
        return None
    for module in (name, f"array_api_compat.{name}"):
        with contextlib.suppress(ImportError, ValueError, TypeError):
            namespace = importlib.import_module(module)
            if hasattr(namespace, "__array_namespace_info__"):
                # Its arrays may be those of another backend, or have another namespace than the one that was named.
                array = namespace.asarray(0.0)
                backend = find_backend(array)
                if backend is None:
                    backend = _by_type.setdefault(type(array), _backend_of_namespace(namespace, name))
                return backend
    return None


def _namespace_of(leaf: object) -> Any:
    kind = type(leaf)
    # Special methods are those of a type: wrappers that hand on every attribute of an array are not arrays for that.
    if hasattr(kind, "__array_namespace__"):
        return leaf.__array_namespace__()  # type: ignore[attr-defined]  # just asked for
    if hasattr(kind, "shape") and hasattr(kind, "dtype"):
        import array_api_compat

        with contextlib.suppress(TypeError):
            return array_api_compat.array_namespace(leaf)
    return None


def _name_of(namespace: Any, kind: type) -> str:
    name = getattr(namespace, "__name__", None) or f"{kind.__module__}.{kind.__qualname__}"
    return str(name).removeprefix("array_api_compat.")


def _backend_of_namespace(namespace: Any, name: str) -> UnannouncedBackend:
    found = _met_before(namespace)
    if found is None:
        _backends.append(UnannouncedBackend(name, namespace))
        # Another thread may meet the library at the same time; the first of the list is the backend of both.
        found = _met_before(namespace)
        assert found is not None
    return found


def _met_before(namespace: Any) -> UnannouncedBackend | None:
    # Some libraries make an equal namespace anew each time that they are asked.
    return next((b for b in _backends if b.xp is namespace or b.xp == namespace), None)


def accept(name: str) -> None:
    """Take arrays of a library without a backend as they are, though the look at its first use finds an operation wrong.

    Steps then have whatever bits the library gives. The announced `backends` are not looked at: for them there is the
    conformance suite.

    Args:
        name: the library's name, as the error has it.

    Raises:
        UnknownBackendError: there is no library of that name.
        ValueError: the library has a backend of its own.

    Example:
        >>> import portopt.backend
        >>> portopt.backend.accept("array_api_strict")
    """
    backend = get_backend(name)
    if not isinstance(backend, UnannouncedBackend):
        raise ValueError(
            f"{name!r} has a backend of its own, whose operations nobody looks at, so there is nothing to accept"
        )
    backend.is_accepted = True
