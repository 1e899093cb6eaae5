"""The names of torchvision.ops.deform_conv, at its path."""

from .deform_conv2d import DeformConv2d, deform_conv2d

__all__ = ["DeformConv2d", "deform_conv2d"]
