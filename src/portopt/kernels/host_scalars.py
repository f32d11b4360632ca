"""The scalars of a program as the host computes them for kernels on a device."""

from __future__ import annotations

from portopt.kernels.device_queue import FLOAT, OF_KIND, ROUNDED
from portopt.kernels.host.compiler import default_flush
from portopt.kernels.host.kernel import host_kernel
from portopt.kernels.key import KernelKey
from portopt.kernels.norm_dependence import host_program, norm_dependence
from portopt.program import Kind, Op, Program


class HostScalars:
    """The scalars of a program, computed by a function that is compiled for the host, as arguments of its kernels.

    Attributes:
        kernel: computes them.
        results: how many are computed on the device, from the norm of the gradients.
        of_state: which outputs are scalars of the state, by name.
        given: how arguments of the kernel that computes scalars from the norm are made, each from an output.
        arguments: those of the kernels of the step.
    """

    def __init__(self, program: Program, real: str) -> None:
        split = norm_dependence(program)
        self.results = len(split.rounded_on_device)
        of_host = host_program(split)
        # A kernel has a parameter; this one gets no row of any.
        load = Op("load", Kind.ARRAY, label="p")
        whole = Program(of_host.name, (*of_host.ops, load), {"p": len(of_host.ops)}, of_host.scalar_outputs)
        self.kernel = host_kernel(whole, KernelKey((("p", "float64"),), in_place=True, flush=default_flush()))
        place = {int(name): k for k, name in enumerate(of_host.scalar_outputs)}
        ops, how = split.program.ops, ROUNDED if real == "float32" else FLOAT
        self.of_state = {n: place[i] for n, i in split.program.scalar_outputs.items() if i in place}
        self.given = [(OF_KIND[ops[j].kind], place[j]) for j in split.given]
        self.arguments = [(how, place[j]) for _, j in split.rounded_on_host]
        self.arguments += [(OF_KIND[ops[j].kind], place[j]) for j in split.unrounded]

    @property
    def address(self) -> int:
        """Of what computes them."""
        return self.kernel.address
