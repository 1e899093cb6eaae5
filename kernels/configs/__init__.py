"""Tile sizes and warp counts of the Triton kernels, one module per op."""
