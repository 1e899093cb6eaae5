"""Tile sizes and warp counts for the Triton kernels, one module per op."""
