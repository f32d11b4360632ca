"""Source of fused kernels for GPUs: CUDA C and Triton. Imports neither CuPy, torch nor Triton."""
