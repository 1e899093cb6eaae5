"""Where other libraries run on fastvision's kernels."""
