"""Integrations that run other libraries on fastvision's kernels."""
