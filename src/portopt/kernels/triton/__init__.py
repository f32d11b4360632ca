"""Source of fused kernels in Triton, and what they call."""
