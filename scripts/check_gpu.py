"""Check portopt on a GPU: bits, conformance, speed, streams, graphs, threads and memory.

    python3 scripts/check_gpu.py --out build/gpu
    python3 scripts/check_gpu.py --out build/gpu --page docs/gpu-results.md
    python3 scripts/check_gpu.py --out build/gpu --device cpu --small --budget 120

It needs no installed portopt: it runs on the checkout that it lies in. Each part has a limit of time, and what is found is saved
under --out as it grows: `summary.json`, and a file a section. What is printed is short; failures stand in the files with
their whole text. With `--device cpu` the same code runs on NumPy, torch's and JAX's CPU, which tries the check itself.

Sections: versions, launches (what a step asks of the driver, counted by one that runs nothing), profile (where a step's time on
the host goes, with warm and with cold caches), host (the kernels' CUDA C, compiled for the host), operations (single operations
of each library), timings, semantics (streams, graphs, threads, memory; products of matrices and totals of all parameters by
themselves), bits (a step on a million words against NumPy), conformance.
What may end a process runs in one of its own.
"""

from __future__ import annotations

import sys

from gpu_check.checkout import make_importable
from gpu_check.options import Options, from_command_line


def main() -> int:
    """Run what the command line asks for; 1 if anything failed. Where there is no GPU, what needs one is not run."""
    options = from_command_line(sys.argv[1:])
    make_importable(options)
    # Only from here on can portopt be imported.
    from gpu_check.workers import work

    if options.worker:
        work(options)
        return 0
    return check(options)


def check(options: Options) -> int:
    """Run the chosen sections."""
    from gpu_check.sections import run_sections
    from gpu_check.targets import why_no_gpu

    return run_sections(options, None if options.device == "cpu" else why_no_gpu())


if __name__ == "__main__":
    sys.exit(main())
