"""Speed of fastvision beside torchvision on this machine: ``python -m benchmarks.run``."""
