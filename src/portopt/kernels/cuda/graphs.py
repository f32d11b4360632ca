"""Steps inside the capture of a CUDA graph: how their tables come to the device, and what is said where there can be no step."""

from __future__ import annotations

import functools

from portopt.kernels.cuda.source import source_file, words_source

WORDS = 480
"""How many words are arguments of one kernel; a kernel may have 4096 bytes of them."""


@functools.cache
def graphs_source() -> str:
    """Return the source of the kernels that put tables into the device's memory.

    A graph keeps the arguments of its kernels, so they are the only memory of the host that each repetition may read.
    """
    return "\n".join([words_source(WORDS), source_file("graphs.cuh")])


def capture_error(reason: str | None = None) -> RuntimeError:
    """Return what a step raises that cannot be captured in a CUDA graph.

    Args:
        reason: why; None if its state is on the host, so that a graph would repeat the step that was captured.
    """
    if reason is not None:
        return RuntimeError(
            f"this step of portopt cannot be captured in a CUDA graph: {reason}; nothing was changed. Capture what computes the "
            "gradients, and do the step after graph.replay(), outside the graph"
        )
    return RuntimeError(
        "a step of portopt whose state is on the host cannot be captured in a CUDA graph: each replay would repeat the step that "
        "was captured, with its step number; nothing was changed. Keep the step number on the device: "
        "opt.init(params, capturable=True), opt.to_capturable(params, state) for a state that has begun, or "
        "TorchOptimizer(..., capturable=True)"
    )
