"""Unchanged torchvision code on fastvision's kernels: enable(), disable(), enabled().

Two tables say what is replaced. ``operators.OPERATORS`` has torchvision's operators and our kernels
for them in the dispatcher, which reaches every caller: eager, TorchScript, autocast, compiled
programs. ``names.NAMES`` has the Python functions around them (a loop over classes, a loop over
pyramid levels), replaced in the modules whose globals torchvision itself looks up, so names bound
elsewhere and modules already built are reached too. Ours for both are in ``nms``, ``roi_align`` and
``focal_loss``; ``switch`` turns them on and off, and ``classes`` makes our layers instances of
torchvision's.
"""

from . import classes
from .switch import disable, enable, enabled

__all__ = ["disable", "enable", "enabled"]

classes.install()
