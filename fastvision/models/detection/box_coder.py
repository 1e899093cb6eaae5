"""Boxes as offsets from other boxes, which networks predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._constants import constant


class BoxCoder:
    """Shifts of the centre in units of the reference's size, and logarithms of the ratios of sizes
    (Girshick, Donahue, Darrell and Malik, R-CNN, 2014, appendix C).

    Args:
        weights: factors of the offsets in x, y, width and height.
        bbox_xform_clip: the largest logarithm that is decoded.
    """

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        bbox_xform_clip: float = math.log(1000 / 16),
    ) -> None:
        self.weights = weights
        self.bbox_xform_clip = bbox_xform_clip

    def encode(
        self, reference_boxes: Sequence[Tensor], proposals: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """:meth:`encode_single` of each image: offsets [L, 4] of boxes [L, 4]."""
        codes = self.encode_single(torch.cat(list(reference_boxes)), torch.cat(list(proposals)))
        return codes.split([len(boxes) for boxes in reference_boxes])

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Offsets [..., 4] with which ``decode_single`` makes ``reference_boxes`` of
        ``proposals``, both corners [..., 4]."""
        shifts, scales = self._factors(reference_boxes)
        centre, size = _centre_and_size(proposals)
        wanted_centre, wanted_size = _centre_and_size(reference_boxes)
        shift = shifts * (wanted_centre - centre) / size
        return torch.cat((shift, scales * torch.log(wanted_size / size)), -1)

    def decode(self, rel_codes: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Boxes [sum of L, C, 4] of offsets [sum of L, 4 C] and one [L, 4] per image."""
        flat = torch.cat(list(boxes))
        of_each = rel_codes.numel() // (4 * len(flat)) if len(flat) else rel_codes.shape[-1] // 4
        return self.decode_single(rel_codes.reshape(len(flat), of_each, 4), flat[:, None])

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Corners [..., 4], in float32 for 16-bit offsets.

        Args:
            rel_codes: offsets [..., 4]; or [N, 4 C], for C boxes each, which gives [N, 4 C].
            boxes: corners [..., 4] that broadcast with the offsets; [N, 4] for the second form.
        """
        shape = rel_codes.shape
        if shape[-1] != 4:
            rel_codes, boxes = rel_codes.unflatten(-1, (-1, 4)), boxes.unsqueeze(-2)
        codes = rel_codes.to(torch.promote_types(rel_codes.dtype, torch.float32))
        shifts, scales = self._factors(codes)
        centre, size = _centre_and_size(boxes.to(codes.dtype))
        centre = codes[..., :2] / shifts * size + centre
        half = 0.5 * (torch.exp((codes[..., 2:] / scales).clamp(max=self.bbox_xform_clip)) * size)
        return torch.cat((centre - half, centre + half), -1).reshape(shape)

    def _factors(self, like: Tensor) -> tuple[Any, Any]:
        x, y, width, height = self.weights
        if x == y and width == height:  # numbers, which no GPU has to wait for
            return x, width
        shifts, scales = constant(((x, y), (width, height)), like)
        return shifts, scales


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


class BoxLinearCoder:
    """Distances from the centre of a reference to the four sides of a box (Tian, Shen, Chen and
    He, FCOS, 2019, equation 1).

    Args:
        normalize_by_size: whether distances are in units of the reference's size.
    """

    def __init__(self, normalize_by_size: bool = True) -> None:
        self.normalize_by_size = normalize_by_size

    def encode(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Distances [..., 4] to the left, upper, right and lower side.

        Args:
            reference_boxes: corners [..., 4] of the boxes from whose centres they are measured.
            proposals: corners [..., 4] of the boxes whose sides they are.
        """
        centre = 0.5 * (reference_boxes[..., :2] + reference_boxes[..., 2:])
        sides = torch.cat((centre - proposals[..., :2], proposals[..., 2:] - centre), -1)
        return sides / _sizes(reference_boxes) if self.normalize_by_size else sides

    def decode(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Corners [..., 4] of the distances from the centres of ``boxes`` [..., 4], in float32 for
        16-bit distances."""
        sides = rel_codes.to(torch.promote_types(rel_codes.dtype, torch.float32))
        boxes = boxes.to(sides.dtype)
        centre = 0.5 * (boxes[..., :2] + boxes[..., 2:])
        sides = sides * _sizes(boxes) if self.normalize_by_size else sides
        return torch.cat((centre - sides[..., :2], centre + sides[..., 2:]), -1)


def _sizes(boxes: Tensor) -> Tensor:
    """[..., 4] widths and heights, twice."""
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.cat((size, size), -1)
