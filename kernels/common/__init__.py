"""Device functions shared by the Triton kernels."""
