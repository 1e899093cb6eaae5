"""Weigh many easy anchors against few hard ones, by cross entropy and by the focal loss.

python examples/class_imbalance.py

Of an image's anchors, 30 are on objects and 2,200 on background. The model gives each of them a
probability of 0.2: it is 80 % certain of the background, and wrong about the objects.
"""

import math

import torch

from fastvision.ops import sigmoid_focal_loss

OBJECTS, BACKGROUND, CERTAINTY = 30, 2200, 0.8

score = torch.full((1,), -math.log(CERTAINTY / (1 - CERTAINTY)))
print(f"{'loss':20} {'2,200 of background':>22} {'30 of objects':>22} {'ratio':>6}")
ratios = []
for name, gamma in (("cross entropy", 0.0), ("focal, gamma 2", 2.0)):
    easy, hard = (
        sigmoid_focal_loss(score, truth, alpha=-1, gamma=gamma).item()  # alpha=-1: unweighted
        for truth in (torch.zeros(1), torch.ones(1))
    )
    sums = BACKGROUND * easy, OBJECTS * hard
    ratios.append(sums[0] / sums[1])
    left, right = (
        f"{count} x {loss:.4f} = {total:.0f}"
        for count, loss, total in ((BACKGROUND, easy, sums[0]), (OBJECTS, hard, sums[1]))
    )
    print(f"{name:20} {left:>22} {right:>22} {ratios[-1]:6.2f}")
    if not gamma:
        assert round(easy, 2) == 0.22
assert ratios[0] > 10 and ratios[1] < 1
