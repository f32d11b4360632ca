"""Fused kernels for arrays in host memory: one compiled loop does a whole step of a program.

`source.py` writes a program as Python that numba compiles, `compiler.py` turns it into machine code, `threads.py` splits large
work, and `kernel.py` is what a backend calls. A program with reductions is several loops: `staged_source.py` writes the kernel,
and `loop_source.py` and `vector_loop_source.py` its loops, with the functions of `reduction_source.py`. `plan.py` is for repeated
steps in place: it does not check again what a compiled function (`look.py`) sees unchanged. `norm.py` has the norm of all
gradients.
"""
