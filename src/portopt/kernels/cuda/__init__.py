"""Source of fused kernels in CUDA C, and how their launches are told of arrays. Imports no CuPy."""
