"""A detector's boxes, feature map and rois, for what runs under torchvision's names."""

from __future__ import annotations

from fastvision.testing import cases

BOXES, SCORES, CLASSES = cases.clustered_boxes(300), cases.scores(300), cases.classes(300, 5)
FEATURES = cases.feature_map(2, 6, 20, 30)
ROIS = cases.rois(12, 2, height=80, width=120, max_size=60)  # at a scale of 1/4
