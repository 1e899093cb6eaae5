"""Triton kernels, installed as ``fastvision.kernels``; imported only when one of them runs."""

if __name__ != "fastvision.kernels":
    raise ImportError("import fastvision.kernels, not the source folder kernels/")
