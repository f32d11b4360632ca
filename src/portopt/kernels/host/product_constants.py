"""Numbers that the sources of kernels around products, and the functions that they call, have in common."""

ROUND = 1.5 * 2.0**52
"""A number below 2**51 is rounded to an integer, halves to even, by adding it and subtracting it again."""

TILE = 16
"""Rows and columns of the tiles in which a matrix is transposed: as long as the lines of a cache, for numbers of four bytes."""
