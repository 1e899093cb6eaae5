"""Runs unchanged torchvision code on fastvision's kernels: enable(), disable(), enabled().

Two tables list the replacements. ``operators.OPERATORS`` registers our kernels for torchvision's
operators in the dispatcher, which reaches every caller: eager, TorchScript, autocast, compiled
programs. ``names.NAMES`` lists the Python functions around them (the loop over classes, the loop
over pyramid levels). They are replaced in the globals that torchvision itself looks up, which also
reaches names bound elsewhere and modules built before. The replacements are in files named as the
ops and as torchvision's modules; ``switch`` turns them on and off, ``report`` tells which there
are, and ``classes`` makes our layers instances of torchvision's.
"""

from . import classes
from .report import enabled_names
from .switch import disable, enable, enabled

__all__ = ["disable", "enable", "enabled", "enabled_names"]

classes.install()
