"""Steps inside the capture of a CUDA graph: refused, on every library."""

from __future__ import annotations


def capture_error() -> RuntimeError:
    """Return what a step raises while its stream is being captured.

    A step computes its scalars on the host and tells the kernels where arrays lie through memory that is used again, so that
    a graph would repeat the step that was captured, with its step number, on whatever that memory then holds.
    """
    return RuntimeError(
        "a step of portopt cannot be captured in a CUDA graph: the step number, the hyperparameters and the places of the arrays "
        "would stay those of the captured step in each replay; nothing was changed. Capture what computes the gradients, and do "
        "the step after graph.replay(), outside the graph"
    )
