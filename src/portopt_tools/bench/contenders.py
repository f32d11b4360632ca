"""Who takes part: portopt on each backend and mode, and the optimizers of other libraries at the same hyperparameters.

The formulas of the others differ from portopt's in where epsilon stands and in the order of operations, not in what they
read and write.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from portopt.backend import INTERPRETED, Backend, Mode
from portopt.interchange.frameworks import Construction, get_framework
from portopt.interchange.nearest import counterpart_of
from portopt.optimizer import Optimizer
from portopt.slot import slot_shape, slots_of_shape
from portopt_tools.bench.measuring import Step
from portopt_tools.bench.shapes import ShapeSet

DONATED = "donated"
"""The extra mode that JAX users are told to use."""
_PATTERN_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Contender:
    """One way to do a step.

    Attributes:
        library: `"portopt"`, or the library whose optimizer it is.
        backend: whose arrays are updated.
        mode: the mode of portopt, or the implementation of the other library.
        prepare: given the inputs, returns a function that does a step and waits until it is done.
    """

    library: str
    backend: str
    mode: str
    prepare: Callable[[Inputs], Step]

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"portopt {self.backend} {self.mode}" if self.library == "portopt" else f"{self.library} {self.mode}"


class Inputs:
    """The parameters and gradients of one measurement; contenders on one library's arrays share the gradients.

    Args:
        optimizer: the rule.
        shapes: what it updates.
    """

    def __init__(self, optimizer: Optimizer, shapes: ShapeSet) -> None:
        self.optimizer = optimizer
        self.shapes = shapes
        self._made: dict[tuple[str, str], Any] = {}

    def once(self, backend: Backend, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` returned when it was called first for this name and backend."""
        key = (backend.name, name)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def arrays(self, backend: Backend, seed: int) -> list[Any]:
        """Return new arrays of a backend, with ordinary values."""
        return [self.array(backend, array) for array in self.host_arrays(seed)]

    def host_arrays(self, seed: int) -> list[npt.NDArray[np.float32]]:
        """Return new NumPy arrays, with ordinary values."""
        return list(_host_arrays(self.shapes, seed))

    def array(self, backend: Backend, array: Any) -> Any:
        """Return a NumPy array as one of a backend, on its first device."""
        device = next(name for name, reason in backend.devices().items() if reason is None)
        return backend.from_numpy(array, device)

    def gradients(self, backend: Backend) -> list[Any]:
        """Return the gradients, the same arrays each time."""
        return list(self.once(backend, "gradients", lambda: self.arrays(backend, 1)))

    def in_turns(self, backend: Backend) -> Iterator[list[Any]]:
        """Return the gradients of one step after the other: the same each time, or else in turns with their opposites.

        From gradients that always point the same way, rules that estimate their rate from totals leave float32 within some dozen
        steps, and to add up infinities takes other time.
        """
        gradients = self.gradients(backend)
        if not has_totals(self.optimizer, self.shapes):
            return itertools.repeat(gradients)
        opposite = self.once(
            backend, "opposite", lambda: [self.array(backend, np.negative(a)) for a in self.host_arrays(1)]
        )
        return itertools.cycle((gradients, opposite))

    def shared(self, backend: Backend) -> tuple[list[Any], Any]:
        """Return parameters and state for the modes that do not consume them, the same arrays each time."""

        def make() -> tuple[list[Any], Any]:
            parameters = self.arrays(backend, 0)
            return parameters, self.optimizer.init(parameters)

        parameters, state = self.once(backend, "parameters and state", make)
        return list(parameters), state


def has_totals(optimizer: Optimizer, shapes: ShapeSet) -> bool:
    """Tell whether a rule's step needs totals over all parameters."""
    return any(optimizer.program(shape=shape).totals for shape in dict.fromkeys(shapes.shapes))


def _host_arrays(shapes: ShapeSet, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    pattern = np.random.default_rng(seed).standard_normal(_PATTERN_ELEMENTS, np.float32)
    for shape in shapes.shapes:
        yield np.resize(pattern, shape)


def portopt_contenders(backend: Backend, *, interpreted: bool) -> list[Contender]:
    """Return portopt's contenders on a backend: its modes that do one step at a time, and the donated one."""
    modes = {**backend.modes, **{name: mode for name, mode in backend.extra_modes.items() if name == DONATED}}
    # A mode with `run` takes many steps at once, from gradients that are known before.
    chosen = [m for m in modes.values() if m.run is None and (interpreted or m.name != INTERPRETED.name)]
    return [Contender("portopt", backend.name, mode.name, _portopt_step(backend, mode)) for mode in chosen]


def _portopt_step(backend: Backend, mode: Mode) -> Callable[[Inputs], Step]:
    def prepare(inputs: Inputs) -> Step:
        gradients = inputs.in_turns(backend)
        # Only modes outside of `modes` consume their arguments.
        consumes = mode.name not in backend.modes
        parameters, state = inputs.shared(backend)
        if consumes:
            parameters = inputs.arrays(backend, 0)
            state = inputs.optimizer.init(parameters)
            # A step number that is an array from the start is compiled for once.
            state = state._replace(step=inputs.array(backend, np.asarray(state.step, np.int32)))
        run = mode.step(inputs.optimizer)
        wait = _waiting(backend)
        current = [parameters, state]

        def step() -> None:
            new_parameters, new_state = run(current[0], next(gradients), current[1])
            wait((new_parameters, new_state))
            # A pure step starts from the same arrays each time, so that no second set of them stays alive.
            if consumes or new_parameters is parameters:
                current[:] = new_parameters, new_state

        return step

    return prepare


def _waiting(backend: Backend) -> Callable[[Any], object]:
    """Return a function that waits until arrays are computed; where a step returns only then, it does nothing."""
    wait: Callable[[Any], object] | None = getattr(sys.modules.get(backend.name), "block_until_ready", None)
    return wait or (lambda arrays: None)


class Peer(Protocol):
    """Another library's optimizers."""

    name: str
    """What tables call it."""
    framework: str
    """What `portopt.interchange` calls it."""
    backend: str
    """The backend whose arrays they update."""
    install_command: str

    def version(self) -> str:
        """Return the version; raise `ImportError` if it cannot be imported."""

    def contenders(self, optimizer: Optimizer, backend: Backend) -> list[Contender]:
        """Return the implementations that the library has of a rule of which it has a counterpart."""

    def backward(self) -> Step | None:
        """Return a forward and a backward pass of a model on the backend; None if the library has none apart from its steps."""


class TorchOptim:
    """`torch.optim`, in each of its implementations."""

    name, framework, backend = "torch.optim", "torch", "torch"
    install_command = 'pip install "portopt[torch]"'

    def version(self) -> str:
        return str(importlib.import_module("torch").__version__)

    def contenders(self, optimizer: Optimizer, backend: Backend) -> list[Contender]:
        implementations: dict[str, dict[str, Any]] = {"foreach": {"foreach": True}, "for-loop": {"foreach": False}}
        if self._has_fused(optimizer):
            implementations = {"fused": {"fused": True}, **implementations}
        return [
            Contender(self.name, backend.name, mode, self._step(backend, arguments))
            for mode, arguments in implementations.items()
        ]

    def backward(self) -> Step:
        torch = importlib.import_module("torch")
        layers = [torch.nn.Linear(512, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512)]
        model, inputs = torch.nn.Sequential(*layers), torch.ones(256, 512)

        def backward() -> None:
            model.zero_grad()
            model(inputs).square().mean().backward()

        return backward

    def _has_fused(self, optimizer: Optimizer) -> bool:
        torch = importlib.import_module("torch")
        made = self._make(optimizer, [torch.zeros(1)], {})
        try:
            return "fused" in made.defaults and bool(self._make(optimizer, [torch.zeros(1)], {"fused": True}))
        except (RuntimeError, TypeError):
            return False

    def _make(self, optimizer: Optimizer, tensors: list[Any], arguments: dict[str, Any]) -> Any:
        found = counterpart(self, optimizer)
        return found.factory(tensors, **found.arguments, **arguments)

    def _step(self, backend: Backend, arguments: dict[str, Any]) -> Callable[[Inputs], Callable[[], object]]:
        def prepare(inputs: Inputs) -> Step:
            tensors, _ = inputs.shared(backend)
            for tensor, gradient in zip(tensors, inputs.gradients(backend), strict=True):
                tensor.grad = gradient
            step: Step = self._make(inputs.optimizer, tensors, arguments).step
            return step

        return prepare


class Optax:
    """optax under a jit that is donated parameters and state."""

    name, framework, backend = "optax", "optax", "jax"
    install_command = 'pip install "portopt[bench,jax]"'

    def version(self) -> str:
        importlib.import_module("jax")
        return str(importlib.import_module("optax").__version__)

    def contenders(self, optimizer: Optimizer, backend: Backend) -> list[Contender]:
        return [Contender(self.name, backend.name, "jit, donated", self._step(backend))]

    def backward(self) -> None:
        """Return None: JAX computes gradients and steps in one program."""

    def _step(self, backend: Backend) -> Callable[[Inputs], Step]:
        def prepare(inputs: Inputs) -> Step:
            jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
            found = counterpart(self, inputs.optimizer)
            transformation = found.factory(**found.arguments)
            gradients = inputs.in_turns(backend)

            def update(parameters: Any, gradients: Any, state: Any) -> tuple[Any, Any]:
                updates, state = transformation.update(gradients, state, parameters)
                return optax.apply_updates(parameters, updates), state

            run = jax.jit(update, donate_argnums=(0, 2))
            parameters = inputs.arrays(backend, 0)
            # Some of optax's states hold the parameters themselves, which can be donated only once.
            state = jax.tree.map(lambda array: array.copy(), transformation.init(parameters))
            current = [parameters, state]

            def step() -> None:
                current[:] = jax.block_until_ready(run(current[0], next(gradients), current[1]))

            return step

        return prepare


def counterpart(peer: Peer, optimizer: Optimizer) -> Construction:
    """Return what constructs the optimizer of another library that is nearest.

    Raises:
        ValueError: there is none; the message says why.
    """
    found = counterpart_of(get_framework(peer.framework), optimizer)
    if found is None:
        raise ValueError(f"{peer.framework} has no counterpart of {optimizer!r}")
    return found


def why_not_compared(peer: Peer, optimizer: Optimizer) -> str | None:
    """Return why there is nothing in a library to compare with; None if it has a counterpart."""
    try:
        counterpart(peer, optimizer)
    except ValueError as error:
        return str(error)
    return None


PEERS: Mapping[str, Peer] = {peer.framework: peer for peer in (TorchOptim(), Optax())}
"""The values of `--against`."""


def memory_needed(contenders: Sequence[Contender], optimizer: Optimizer, shapes: ShapeSet) -> int:
    """Return about how many bytes the arrays of these contenders take together, on parameters of these shapes."""
    parameters = shapes.parameters
    slots = sum(
        math.prod(slot_shape(optimizer, name, shape))
        for shape in shapes.shapes
        for name in slots_of_shape(optimizer, shape)
    )
    gradients = 2 if has_totals(optimizer, shapes) else 1
    shared = len({c.backend for c in contenders}) * ((1 + gradients) * parameters + slots)
    own = sum(
        (parameters + slots) if c.mode in (DONATED, "jit, donated") else slots * (c.library != "portopt")
        for c in contenders
    )
    largest_step = 2 * parameters + slots
    return 4 * (shared + own + largest_step)
