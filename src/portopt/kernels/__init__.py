"""Fused kernels: one does a whole step of a program on many parameters.

What is decided for all targets is here: which parameters share a kernel (`key.py`, `groups.py`), how a source is written
(`writer.py`, `names.py`), what a GPU's launch needs (`launch.py`, `norm_dependence.py`), and the cache of compiled
code. A target has a room: the host's processor, CUDA C.
"""
