"""Detectors."""

from .pillars import PillarBackbone, PillarFeatures, PointPillars, point_pillars
from .solid_anchors import SolidAnchors

__all__ = [
    "PillarBackbone",
    "PillarFeatures",
    "PointPillars",
    "SolidAnchors",
    "point_pillars",
]
