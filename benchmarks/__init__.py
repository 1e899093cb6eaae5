"""Measures fastvision against torchvision on this machine: ``python -m benchmarks.run``."""
