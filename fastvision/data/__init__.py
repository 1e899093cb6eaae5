"""Data sets, augmentation and loading for training vision models."""

from .digits import Digits8x8, MNIST5k
from .photographs import photographs
from .scenes import DigitScenes
__all__ = ["Digits8x8","MNIST5k","photographs","DigitScenes"]
