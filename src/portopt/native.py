"""The optimizers of other libraries with portopt's `init`, `apply` and `get_config`: `NativeOptimizer`, `TFOptimizer`.

What is particular to one framework is in its package, which announces an object with the attributes of `NativeFramework`
through the entry-point group `portopt.natives`; nothing here, and no question whether an object belongs to a framework,
imports one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any, NamedTuple, Protocol, Self

from portopt.backend import ArrayInfo, backends
from portopt.optimizer import Optimizer, OptimizerState
from portopt.trees import Trees, explain_difference

ENTRY_POINT_GROUP = "portopt.natives"


class NativeArrays(Protocol):
    """The arrays that a native optimizer updates."""

    name: str
    """The library's name."""
    trees: Trees
    """How the library sees nested containers."""
    shares_memory: bool
    """Whether `borrow` always gives an array on the memory of a writable NumPy array."""

    def owns(self, leaf: object) -> bool:
        """Tell whether `leaf` is an array of this library."""

    def describe(self, array: Any) -> ArrayInfo:
        """Return shape, dtype name and device of an array."""

    def borrow(self, array: Any) -> Any:
        """Return a NumPy array as one of this library for the length of a step, without a copy where that is possible."""

    def give_back(self, array: Any) -> Any:
        """Return an array that a step on borrowed ones made as a NumPy array that may be written."""

    def why_read_only(self, array: Any) -> str | None:
        """Return what keeps an array from being written, such as "is a read-only array"; None if nothing does."""

    def assign(self, target: Any, value: Any) -> None:
        """Write `value` into `target`."""

    def dtype_context(self, dtype: str) -> AbstractContextManager[Any]:
        """Return a context in which arrays of a dtype can be borrowed."""


class Native(Protocol):
    """One native optimizer with its hyperparameters, which keeps no state."""

    arrays: NativeArrays
    updates_in_place: bool
    """Whether `apply` can write into the given arrays."""

    def describe(self) -> str:
        """Return the Python expression, or a description, of the optimizer."""

    def config(self) -> dict[str, Any]:
        """Return `{"optimizer": name, "arguments": dict}` for JSON; raise `ValueError` if it cannot be known."""

    def init(self, tree: Tree, leaves: list[Any]) -> dict[str, Any]:
        """Return the slots before the first step."""

    def apply(
        self,
        tree: Tree,
        leaves: list[Any],
        gradients: list[Any],
        slots: Mapping[str, Any],
        hyperparameters: Mapping[str, Any],
        *,
        in_place: bool,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Do one step.

        Args:
            tree: the structure of the parameters.
            leaves: the parameters; None where there is none.
            gradients: one for each parameter, or None, which leaves the parameter as it is.
            slots: what `init` or the step before returned.
            hyperparameters: values for this step only.
            in_place: write the results into the given arrays; only if `updates_in_place`.

        Returns:
            The new parameters and slots; unless `in_place`, they share no memory with what was given.
        """


class NativeFramework(Protocol):
    """What portopt asks of a framework that has optimizers of its own."""

    name: str
    install_command: str
    """The command that installs the framework."""
    accepts: str
    """What may be given to `NativeOptimizer`, for messages."""

    def owns(self, thing: object) -> bool:
        """Tell whether `thing` is an optimizer of this framework, or a class or factory of them, importing nothing."""

    def version(self) -> str:
        """Return the framework's version; raise `ImportError` if it cannot be imported."""

    def adopt(self, thing: Any, arguments: dict[str, Any]) -> Native:
        """Return the native optimizer that a thing that is owned makes with these arguments."""

    def from_config(self, config: Mapping[str, Any]) -> Native:
        """Return the native optimizer that `Native.config` described."""

    def counterpart(self, optimizer: Optimizer) -> Counterpart | None:
        """Return what is nearest to a portopt optimizer, with its hyperparameters but without clipping; None if nothing is."""

    def counterparts(self) -> Iterable[type[Optimizer]]:
        """Return the rules that have a counterpart."""

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of arrays compiled as the framework's users would; itself where they would not."""

    def devices(self) -> Mapping[str, str | None]:
        """Map each device's name to None if it can be used, else to the reason why not."""

    def load(self, array: Any, device: str) -> Any:
        """Return a copy of a NumPy array as an array that the framework's optimizers update."""

    def fetch(self, array: Any) -> Any:
        """Return a copy of such an array as a NumPy array."""


class Counterpart(NamedTuple):
    """What makes the native optimizer nearest to one of portopt's.

    Attributes:
        name: how users of the framework call it, such as `"torch.optim.Adam"`.
        factory: a class or function of the framework.
        arguments: its arguments; the learning rate is that of the first step.
        learning_rate: the name of the argument that is the learning rate.
    """

    name: str
    factory: Any
    arguments: dict[str, Any]
    learning_rate: str


class Correspondence(NamedTuple):
    """What of a framework's optimizer corresponds to what of a rule in the framework's dialect.

    Attributes:
        rule: portopt's.
        name: how users of the framework call the optimizer, such as `"torch.optim.Adam"`.
        hyperparameters: argument of the framework to the rule's hyperparameter; `"betas.0"` is the first of several values.
        slots: last part of the name of a framework's slot to the rule's slot, `"step"`, or `"-slot"` for one of other sign.
        fixed: hyperparameters of the rule that the optimizer implies.
        ignored: arguments that do not change what is computed.
    """

    rule: Any
    name: str
    hyperparameters: Mapping[str, str]
    slots: Mapping[str, str]
    fixed: Mapping[str, Any] = {}
    ignored: frozenset[str] = frozenset()


class Translator(Protocol):
    """How a framework's optimizers are translated; an attribute `translator` of a `NativeFramework` that has one."""

    dialect: str
    package: str
    """Where users of the framework find its optimizers."""
    trees: Trees
    correspondences: Sequence[Correspondence]

    def defaults(self, correspondence: Correspondence) -> Mapping[str, Any]:
        """Return the arguments' values that switch their features off."""

    def arguments(self, native: Any) -> tuple[str, Mapping[str, Any]]:
        """Return name and arguments of a `Native` of this framework."""

    def own_state(self, native: Any, state: Any, params: Any) -> OptimizerState:
        """Return the framework's form of a state as a `NativeOptimizer`'s."""

    def capture(self, native: Any, params: Any) -> tuple[str, Mapping[str, Any], OptimizerState, Any]:
        """Return name, arguments, state as a `NativeOptimizer`'s, and parameters of a live optimizer."""

    def call(self, correspondence: Correspondence, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what makes the optimizer, and its arguments as it takes them."""

    def release(
        self,
        correspondence: Correspondence,
        arguments: dict[str, Any],
        optimizer: Optimizer,
        state: OptimizerState,
        params: Any,
    ) -> Any:
        """Return the live optimizer."""


class Tree(NamedTuple):
    """The structure of the parameters, and how to see it."""

    trees: Trees
    definition: Any

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return a tree of this structure."""
        return self.trees.unflatten(self.definition, leaves)

    def flatten(self, tree: Any, name: str) -> list[Any]:
        """Return the leaves of a slot of this structure; raise `ValueError` if its structure is another."""
        leaves, found = self.trees.flatten(tree)
        if found != self.definition:
            raise ValueError(
                f"state.slots[{name!r}] must have the structure of params, {self.definition}, but it has {found}: start from "
                "init(params), or give the state that goes with these parameters"
            )
        return leaves


@functools.cache
def frameworks() -> Mapping[str, NativeFramework]:
    """Return what is installed for each framework, found through the entry-point group `portopt.natives`.

    One that cannot be loaded is left out, with a warning: the others must go on working.
    """
    from importlib import metadata

    found: dict[str, NativeFramework] = {}
    for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            warnings.warn(
                f"the native optimizers of {entry.name!r} ({entry.value}) cannot be loaded and are left out: {error!r}",
                RuntimeWarning,
                stacklevel=2,
            )
    return dict(sorted(found.items()))


def find_framework(thing: object) -> NativeFramework | None:
    """Return the framework whose optimizer, class or factory `thing` is, or None."""
    return next((framework for framework in frameworks().values() if framework.owns(thing)), None)


def get_framework(name: str) -> NativeFramework:
    """Return the framework of that name."""
    if name not in frameworks():
        raise ValueError(f"no framework is named {name!r}; known are {', '.join(frameworks())}")
    return frameworks()[name]


class NativeOptimizer:
    """A framework's own optimizer with portopt's methods.

    It computes what the framework computes, bit for bit, on the framework's arrays, or on NumPy arrays that are exchanged
    without a copy where the framework allows it. The slots of the state are the framework's own, under its names.

    Args:
        optimizer: a class of `torch.optim`, `keras.optimizers`, `tf_keras.optimizers` or `tf.compat.v1.train`, or a function
            of optax such as `optax.adam`, whose arguments follow; or an optimizer of one of these, or an optax
            transformation. Of an optimizer's own parameters and state nothing is used.
        **arguments: what `optimizer` is called with.

    Raises:
        TypeError: `optimizer` is none of these, or arguments are given beside an instance.
        ValueError: the optimizer needs what portopt's `apply` has not, such as a closure.

    Example:
        >>> import numpy as np, portopt, torch
        >>> opt = portopt.NativeOptimizer(torch.optim.SGD, lr=0.5, momentum=0.9)
        >>> w = np.asarray([1.0, 2.0])
        >>> w, state = opt.apply(w, np.asarray([1.0, 1.0]), opt.init(w))
        >>> w, state
        (array([0.5, 1.5]), OptimizerState(step=1, slots={'momentum_buffer': array([1., 1.])}))
    """

    def __init__(self, optimizer: Any, **arguments: Any) -> None:
        framework = find_framework(optimizer)
        if framework is None:
            accepted = "; ".join(f.accepts for f in frameworks().values())
            raise TypeError(
                f"{type(self).__name__} takes {accepted}; but {optimizer!r:.80} of type {type(optimizer).__name__} was given"
            )
        self._set(framework, framework.adopt(optimizer, arguments))

    def _set(self, framework: NativeFramework, native: Native) -> None:
        self._framework, self._native = framework, native

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._native.describe()})"

    @property
    def framework(self) -> str:
        """The name of the framework."""
        return self._framework.name

    @property
    def arrays(self) -> NativeArrays:
        """The arrays that it updates."""
        return self._native.arrays

    def init(self, params: Any) -> OptimizerState:
        """Return the state before the first step; some frameworks make their slots only in that step.

        Args:
            params: an array, or a tree of arrays, of the framework's library or of NumPy.

        Raises:
            TypeError: a leaf is of another library.

        Example:
            >>> import numpy as np, optax, portopt
            >>> opt = portopt.NativeOptimizer(optax.sgd, learning_rate=0.1, momentum=0.9)
            >>> opt.init({"w": np.zeros(2)})
            OptimizerState(step=0, slots={'0.trace': {'w': array([0., 0.])}})
        """
        step = _Exchange(self._native.arrays, params)
        with step.context:
            return OptimizerState(0, step.returned(self._native.init(step.tree, step.leaves)))

    def apply(
        self, params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any
    ) -> tuple[Any, OptimizerState]:
        """Return parameters and state after one step; the given ones stay untouched.

        Args:
            params: the tree given to `init`, or one of the same structure, shapes and dtypes.
            grads: gradients in the same structure, shapes and dtypes. None leaves a parameter as it is, if the framework
                can leave one out.
            state: what `init` or the previous step returned.
            **hyperparameters: values for this step only, under the framework's names, where the framework has such.

        Raises:
            ValueError: structure or shape differ.
            TypeError: library or dtype differ, or a hyperparameter is unknown.

        Example:
            >>> import numpy as np, portopt, torch
            >>> opt, w = portopt.NativeOptimizer(torch.optim.SGD, lr=0.1), np.asarray([1.0])
            >>> opt.apply(w, np.asarray([2.0]), opt.init(w), lr=0.25)[0]
            array([0.5])
        """
        step = _Exchange(self._native.arrays, params)
        with step.context:
            leaves, slots = self._native.apply(
                step.tree, step.leaves, step.gradients(grads), step.slots(state), hyperparameters, in_place=False
            )
            new_params = step.tree.unflatten(step.returned(leaves))
            return new_params, OptimizerState(state.step + 1, step.returned(slots))

    def apply_(self, params: Any, grads: Any, state: OptimizerState, **hyperparameters: Any) -> OptimizerState:
        """Do one step in place: parameters are overwritten; returns the state to use from now on instead of `state`.

        Arguments and errors are those of `apply`.

        Raises:
            TypeError: the arrays cannot be changed in place (JAX arrays, `tf.Tensor`, read-only NumPy arrays).

        Example:
            >>> import numpy as np, portopt, torch
            >>> opt, w = portopt.NativeOptimizer(torch.optim.SGD, lr=0.25), np.asarray([1.0])
            >>> state = opt.apply_(w, np.asarray([2.0]), opt.init(w))
            >>> w
            array([0.5])
        """
        step = _Exchange(self._native.arrays, params)
        step.check_writable()
        direct = self._native.updates_in_place and (step.arrays.shares_memory or not step.borrowed)
        with step.context:
            leaves, slots = self._native.apply(
                step.tree, step.leaves, step.gradients(grads), step.slots(state), hyperparameters, in_place=direct
            )
            if not direct:
                step.write(leaves)
            return OptimizerState(state.step + 1, step.returned(slots))

    def get_config(self) -> dict[str, Any]:
        """Return framework, name and arguments as Python values that JSON can hold.

        Raises:
            ValueError: the framework does not know the arguments, as with an optax transformation.

        Example:
            >>> import portopt, torch
            >>> portopt.NativeOptimizer(torch.optim.Adagrad, lr=0.1).get_config()
            {'framework': 'torch', 'optimizer': 'Adagrad', 'arguments': {'lr': 0.1}}
        """
        return {"framework": self._framework.name, **self._native.config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the optimizer that `get_config` described."""
        keys = {"framework", "optimizer", "arguments"}
        if set(config) != keys or not isinstance(config["arguments"], Mapping):
            raise ValueError(
                f"the config of a {cls.__name__} is a dict of {', '.join(sorted(keys))}, but {config!r:.200} was given"
            )
        framework = get_framework(config["framework"])
        optimizer = cls.__new__(cls)
        optimizer._set(framework, framework.from_config(config))
        return optimizer


class TFOptimizer(NativeOptimizer):
    """A TensorFlow optimizer, under the name that Keras has for it: `NativeOptimizer` for `tf.Tensor` and `tf.Variable`.

    Args:
        optimizer: an optimizer, or a class, of `tf.compat.v1.train`, of `tf_keras.optimizers`, or of `keras.optimizers`
            while Keras's backend is TensorFlow.
        **arguments: what a class is called with.

    Raises:
        TypeError: `optimizer` is none of these, or arguments are given beside an instance.
    """

    def _set(self, framework: NativeFramework, native: Native) -> None:
        if native.arrays.name != "tensorflow":
            raise TypeError(
                f"{type(self).__name__} takes an optimizer of TensorFlow, but {native.describe()} updates arrays of "
                f"{native.arrays.name}: use NativeOptimizer"
            )
        super()._set(framework, native)


class _Exchange:
    """The arguments of one step as the arrays of the framework, and the results as those that were given."""

    def __init__(self, arrays: NativeArrays, params: Any) -> None:
        self.arrays, self._params = arrays, params
        leaves, definition = arrays.trees.flatten(params)
        self.tree = Tree(arrays.trees, definition)
        self._numpy = backends()["numpy"]
        first = next((leaf for leaf in leaves if leaf is not None), None)
        if first is None:
            raise ValueError("params holds no array; give an array, or nested dicts, lists and tuples of arrays")
        self.borrowed = not arrays.owns(first) and self._numpy.owns(first)
        self.given: Any = self._numpy if self.borrowed else arrays
        for i, leaf in enumerate(leaves):
            if leaf is not None and not self.given.owns(leaf):
                raise self._foreign(f"params{arrays.trees.paths(params)[i]}", leaf)
        self._given_leaves = leaves
        self._infos = [None if leaf is None else self.given.describe(leaf) for leaf in leaves]
        wide = self.borrowed and any(info is not None and info.dtype == "float64" for info in self._infos)
        self.context: AbstractContextManager[Any] = arrays.dtype_context("float64") if wide else nullcontext()

    def _foreign(self, path: str, leaf: object) -> TypeError:
        allowed = self._numpy.name if self.borrowed else self.arrays.name
        also = "" if self.borrowed or self.arrays.name == "numpy" else " (or NumPy, all of them)"
        return TypeError(
            f"{path} is {type(leaf).__module__}.{type(leaf).__qualname__}, but this optimizer updates arrays of {allowed}{also}: "
            "nothing is moved between libraries silently; convert it first"
        )

    @functools.cached_property
    def leaves(self) -> list[Any]:
        """The parameters; only inside `context`."""
        return [self._lent(leaf) for leaf in self._given_leaves]

    def _lent(self, leaf: Any) -> Any:
        return self.arrays.borrow(leaf) if self.borrowed and self._numpy.owns(leaf) else leaf

    def gradients(self, grads: Any) -> list[Any]:
        """Return the gradients, after checks."""
        trees = self.tree.trees
        gradients, found = trees.flatten(grads)
        if found != self.tree.definition:
            difference = explain_difference(trees, self._params, grads, "params", "grads")
            raise ValueError(f"grads must have the structure of params: {difference}")
        for i, (info, gradient) in enumerate(zip(self._infos, gradients, strict=True)):
            if gradient is None:
                continue
            path = trees.paths(self._params)[i]
            if info is None:
                raise ValueError(f"params{path} is None, so grads{path} must be None too")
            if not self.given.owns(gradient):
                raise self._foreign(f"grads{path}", gradient)
            described = self.given.describe(gradient)
            for what, error in (("shape", ValueError), ("dtype", TypeError)):
                left, right = getattr(info, what), getattr(described, what)
                if left != right:
                    raise error(f"grads{path} has {what} {right}, but params{path} has {what} {left}; they must agree")
        return [self._lent(gradient) for gradient in gradients]

    def slots(self, state: Any) -> dict[str, Any]:
        """Return the slots of a state, after checks."""
        slots = getattr(state, "slots", None)
        if not isinstance(slots, Mapping) or not hasattr(state, "step"):
            raise TypeError(
                f"state must be the OptimizerState that init or the previous step returned, but {type(state).__name__} was given"
            )
        trees = self.tree.trees
        converted: dict[str, Any] = {}
        for name, slot in slots.items():
            leaves, definition = trees.flatten(slot)
            for i, leaf in enumerate(leaves):
                if leaf is not None and self.borrowed == self.arrays.owns(leaf) and self.arrays.name != "numpy":
                    raise self._foreign(f"state.slots[{name!r}]{trees.paths(slot)[i]}", leaf)
            converted[name] = trees.unflatten(definition, [self._lent(leaf) for leaf in leaves])
        return converted

    def returned(self, results: Any) -> Any:
        """Return a tree of results as arrays of the library of the parameters."""
        if not self.borrowed or self.arrays.name == "numpy":
            return results
        leaves, definition = self.tree.trees.flatten(results)
        given_back = [self.arrays.give_back(leaf) if self.arrays.owns(leaf) else leaf for leaf in leaves]
        return self.tree.trees.unflatten(definition, given_back)

    def check_writable(self) -> None:
        """Raise `TypeError` if a parameter cannot be changed in place."""
        for i, leaf in enumerate(self._given_leaves):
            reason = None if leaf is None else self.given.why_read_only(leaf)
            if reason is not None:
                path = f"params{self.tree.trees.paths(self._params)[i]}"
                raise TypeError(f"{path} {reason}, so it cannot be changed in place; copy it, or use apply")

    def write(self, leaves: Sequence[Any]) -> None:
        """Write new parameters into the given ones."""
        for target, value in zip(self._given_leaves, leaves, strict=True):
            if target is not None:
                self.given.assign(target, self.returned(value) if self.borrowed else value)


_BY_LIBRARY: Mapping[str, type[NativeOptimizer]] = {"tensorflow": TFOptimizer}


def wrap(optimizer: Any) -> NativeOptimizer | None:
    """Return a native optimizer as Keras's `get` would: in a `TFOptimizer` if it is TensorFlow's; None if it is none."""
    framework = None if isinstance(optimizer, type | FunctionType | functools.partial) else find_framework(optimizer)
    if framework is None:
        return None
    native = framework.adopt(optimizer, {})
    wrapped = NativeOptimizer.__new__(_BY_LIBRARY.get(native.arrays.name, NativeOptimizer))
    wrapped._set(framework, native)
    return wrapped
