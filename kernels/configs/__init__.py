"""Tile sizes and warps of the Triton kernels, one module per op."""
