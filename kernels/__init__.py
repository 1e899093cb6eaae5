"""Triton kernels, installed as ``fastvision.kernels`` and imported when the first one runs."""

if __name__ != "fastvision.kernels":
    raise ImportError("import fastvision.kernels, not the source folder kernels/")
