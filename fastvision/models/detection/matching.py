"""Which object a box is trained for, and which boxes a step of training takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Matcher:
    """Assigns to each box the object that it overlaps most, or none.

    Args:
        high_threshold: an overlap of at least this is a match.
        low_threshold: one below this makes a box background; those between belong to neither.
        allow_low_quality_matches: matches the boxes that overlap an object most in any case, each
            to the object that the box itself overlaps most.

    Raises:
        AssertionError: ``low_threshold`` is above ``high_threshold`` (torchvision's error type).
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(
        self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool = False
    ) -> None:
        if low_threshold > high_threshold:
            raise AssertionError(
                "low_threshold should be <= high_threshold, "
                f"got {low_threshold} and {high_threshold}"
            )
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> Tensor:
        """int64 [N]: the object of each box, or one of the two negative constants.

        Args:
            match_quality_matrix: [M, N] overlaps of objects and boxes.

        Raises:
            ValueError: there are no objects, or no boxes.
        """
        if match_quality_matrix.numel() == 0:
            missing = "ground-truth" if match_quality_matrix.shape[0] == 0 else "proposal"
            raise ValueError(f"No {missing} boxes available for one of the images during training")
        quality, nearest = match_quality_matrix.max(dim=0)
        matches = nearest.masked_fill(quality < self.high_threshold, self.BETWEEN_THRESHOLDS)
        matches.masked_fill_(quality < self.low_threshold, self.BELOW_LOW_THRESHOLD)
        if self.allow_low_quality_matches:
            best = match_quality_matrix.amax(1, keepdim=True)
            matches = torch.where((match_quality_matrix == best).any(0), nearest, matches)
        return matches


class BalancedPositiveNegativeSampler:
    """Draws a fixed number of boxes per image, a fixed share of them positive.

    Args:
        batch_size_per_image: number of boxes; fewer if an image has fewer negative ones.
        positive_fraction: share of positive boxes; fewer if an image has fewer.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, matched_idxs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """uint8 masks [L] of the positive and of the negative boxes drawn, per image.

        Args:
            matched_idxs: [L] per image: 1 or more for positive boxes, 0 for negative ones, less for
                those that are ignored.
        """
        masks: tuple[list[Tensor], list[Tensor]] = [], []
        for labels in matched_idxs:
            count = int(self.batch_size_per_image * self.positive_fraction)
            for kind, found in zip(masks, (labels >= 1, labels == 0), strict=True):
                indices = torch.where(found)[0]
                order = torch.randperm(len(indices), device=labels.device)
                drawn = indices[order[:count]]
                kind.append(torch.zeros_like(labels, dtype=torch.uint8).index_fill_(0, drawn, 1))
                count = self.batch_size_per_image - len(drawn)
        return masks
