"""Fused kernels: programs as source of a target, compiled, launched, planned and kept."""
