"""Fused kernels for arrays in host memory: one compiled loop does a whole step of a program.

`source.py` writes a program as Python that numba compiles, `compiler.py` turns it into machine code and keeps that in
`cache.py`, `threads.py` splits large work, and `kernel.py` is what a backend calls.
"""
