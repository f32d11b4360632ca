"""The optimizers of other libraries with portopt's `init`, `apply` and `get_config`: `NativeOptimizer`, `TFOptimizer`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import FunctionType
from typing import Any, Self

from portopt.interchange.exchange import Exchange, Native, NativeArrays
from portopt.interchange.frameworks import NativeFramework, find_framework, frameworks, get_framework
from portopt.state import OptimizerState
from portopt.trees import Tree


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
    def native(self) -> Native:
        """The framework's optimizer, as portopt drives it."""
        return self._native

    @property
    def framework(self) -> str:
        """The name of the framework."""
        return self._framework.name

    @property
    def arrays(self) -> NativeArrays:
        """The arrays that it updates."""
        return self._native.arrays

    def init(self, params: object) -> OptimizerState:
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
        step = Exchange(self._native.arrays, params)
        with step.context:
            return OptimizerState(0, step.returned(self._native.init(step.tree, step.leaves)))

    def apply(
        self, params: Tree, grads: object, state: OptimizerState, **hyperparameters: Any
    ) -> tuple[Tree, OptimizerState]:
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
        step = Exchange(self._native.arrays, params)
        with step.context:
            leaves, slots = self._native.apply(
                step.tree, step.leaves, step.gradients(grads), step.slots(state), hyperparameters, in_place=False
            )
            new_params = step.tree.unflatten(step.returned(leaves))
            return new_params, OptimizerState(state.step + 1, step.returned(slots))

    def apply_(self, params: object, grads: object, state: OptimizerState, **hyperparameters: Any) -> OptimizerState:
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
        step = Exchange(self._native.arrays, params)
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
        optimizer._set(framework, framework.from_config(config))  # noqa: SLF001  # of this class
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


_BY_LIBRARY: Mapping[str, type[NativeOptimizer]] = {"tensorflow": TFOptimizer}


def wrap(optimizer: Any) -> NativeOptimizer | None:
    """Return a native optimizer as Keras's `get` would: in a `TFOptimizer` if it is TensorFlow's; None if it is none."""
    framework = None if isinstance(optimizer, type | FunctionType | functools.partial) else find_framework(optimizer)
    if framework is None:
        return None
    native = framework.adopt(optimizer, {})
    wrapped = NativeOptimizer.__new__(_BY_LIBRARY.get(native.arrays.name, NativeOptimizer))
    wrapped._set(framework, native)  # noqa: SLF001  # of this module
    return wrapped
