"""Anchors of solid boxes on a grid seen from above: matching, coding and decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...ops import box_iou_rotated
from ...reference.box_iou_3d import seen_from_above

CODE = 7  # numbers of a box, and of its code


class SolidAnchors:
    """For each cell of a grid, a box of every class in every direction.

    They are ordered by row, column, class and direction. No module has them as buffers, which would
    be rounded with its weights.

    Args:
        sizes: (length, width, height, z of the center) of each class, in metres.
        area: (x1, y1, x2, y2) of the grid, in metres.
        shape: rows, along y, and columns, along x.
        yaws: directions in radians, from 0 up to pi.
        positive: overlap with an object, seen from above, from which on an anchor is its.
        negative: overlap below which an anchor is background; those between are not trained.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        area: Sequence[float],
        shape: tuple[int, int],
        yaws: Sequence[float] = (0.0, math.pi / 2),
        positive: float = 0.5,
        negative: float = 0.35,
    ) -> None:
        self.sizes = tuple(tuple(map(float, size)) for size in sizes)
        self.area = tuple(map(float, area))
        self.shape = shape
        self.yaws = tuple(map(float, yaws))
        self.positive = positive
        self.negative = negative
        self.per_cell = len(self.sizes) * len(self.yaws)
        self._made: tuple[Tensor, Tensor] | None = None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Boxes [A, 7] in float32, and labels [A] from 1."""
        if self._made is None or self._made[0].device != device:
            with torch.inference_mode(False):  # for training, too
                self._made = self._make(device)
        return self._made

    def _make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        x1, y1, x2, y2 = self.area
        rows, columns = self.shape
        x = x1 + (torch.arange(columns, device=device) + 0.5) * ((x2 - x1) / columns)
        y = y1 + (torch.arange(rows, device=device) + 0.5) * ((y2 - y1) / rows)
        yaw = torch.tensor(self.yaws, device=device)
        length, width, height, z = torch.tensor(self.sizes, device=device).T[:, :, None]
        every = (rows, columns, len(self.sizes), len(self.yaws))
        parts = (x[:, None, None], y[:, None, None, None], z, length, width, height, yaw)
        boxes = torch.stack([part.expand(every) for part in parts], -1)
        labels = torch.arange(1, len(self.sizes) + 1, device=device)[:, None].expand(every)
        return boxes.reshape(-1, CODE), labels.reshape(-1)

    @torch.no_grad()
    def match(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """For each anchor, the object that it is trained for.

        An object is compared with anchors as if it had the closest of their directions, and only
        those of that direction can be its. The anchor that overlaps it most is its in any case, or
        of two objects that have the same one, of the object that it overlaps more.

        Args:
            boxes: [N, M, 7]; M is at least 1.
            labels: [N, M]; 0 for no object.

        Returns:
            int64 [N, A], 0 for an object, -1 for background and -2 for neither, as
            :func:`fastvision.ops.sigmoid_focal_loss` takes them; and the numbers of the objects
            [N, A].
        """
        yaw = boxes.new_tensor(self.yaws)
        closest = yaw[(boxes[..., 6:] - yaw).sin().abs().argmin(-1)]
        turned = torch.cat((boxes[..., :6], closest[..., None]), -1)
        anchors, classes = self.on(boxes.device)
        from_above = seen_from_above(anchors.to(boxes.dtype))
        overlap = box_iou_rotated(from_above[None], seen_from_above(turned))  # [N, A, M]
        overlap = torch.where(classes[:, None] == labels[:, None], overlap, 0)
        is_along = (anchors[:, None, 6] - closest[:, None]).sin().abs() < 1e-4
        along = torch.where(is_along, overlap, 0)
        best = along.amax(1, keepdim=True)
        rank = torch.where((along == best) & (best > 0), 1 + along, along)
        quality, owner = rank.max(2)
        answers = torch.where(overlap.amax(2) < self.negative, -1, -2)
        return torch.where(quality >= self.positive, 0, answers), owner


_MAX_GROWTH = math.log(100.0)  # of a side, so that no exponential overflows


def encode(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [..., 7] of boxes [..., 7] relative to anchors [..., 7], and whether they face forward.

    Of a code, the center is in units of the anchor's diagonal and its height, sides are logarithms,
    and the angle is from -pi / 2 to pi / 2: a box that faces the other way is not forward.
    """
    center = (boxes[..., :3] - anchors[..., :3]) / _units(anchors)
    sides = (boxes[..., 3:6] / anchors[..., 3:6]).log()
    angle = boxes[..., 6:] - anchors[..., 6:]
    forward = angle.cos() >= 0
    angle = torch.atan2(angle.sin(), angle.cos().abs()) * torch.where(forward, 1, -1)
    return torch.cat((center, sides, angle), -1), forward[..., 0]


def decode(codes: Tensor, forward: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., 7] of codes [..., 7], with yaws from -pi to pi; the reverse of :func:`encode`.

    A side is at most 100 times the anchor's.
    """
    center = anchors[..., :3] + codes[..., :3] * _units(anchors)
    sides = anchors[..., 3:6] * codes[..., 3:6].clamp(max=_MAX_GROWTH).exp()
    angle = anchors[..., 6] + codes[..., 6] + torch.where(forward, 0, math.pi)
    return torch.cat((center, sides, torch.atan2(angle.sin(), angle.cos())[..., None]), -1)


def _units(anchors: Tensor) -> Tensor:
    diagonal = anchors[..., 3:5].norm(dim=-1, keepdim=True)
    return torch.cat((diagonal, diagonal, anchors[..., 5:6]), -1)
