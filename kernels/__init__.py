"""Triton kernels, installed as ``fastvision.kernels`` and imported on the first launch."""

if __name__ != "fastvision.kernels":
    raise ImportError("import fastvision.kernels, not the source folder kernels/")
