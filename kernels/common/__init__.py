"""Device functions shared by several Triton kernels."""
