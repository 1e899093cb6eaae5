"""PointPillars: solid boxes in point clouds.

Lang, Vora, Caesar, Zhou, Yang and Beijbom, PointPillars: fast encoders for object detection from
point clouds, CVPR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import (
    Conv2dNormActivation,
    ConvTranspose2dNormActivation,
    Sequential,
    conv_norm_act,
    nms_3d,
    sigmoid_focal_loss,
)
from ...ops._checks import check_floating, check_tensor
from .._registry import register
from .._weights import load_weights
from ._parts import check_counts, check_numbers
from .solid_anchors import CODE, SolidAnchors, decode, encode

# length, width, height and z of the center in metres: a car and a pedestrian
ANCHORS = ((4.1, 1.75, 1.55, 0.78), (0.65, 0.6, 1.7, 0.85))
EXTENT = (-25.6, -25.6, -1.0, 25.6, 25.6, 4.0)  # x1, y1, z1, x2, y2, z2 in metres

_OUTPUTS = 1 + CODE + 1  # score, code of the box, direction
_PRIOR = 0.01  # probability of an object before training
_WEIGHTS = {"classification": 1.0, "bbox_regression": 2.0, "direction": 0.2}  # of the losses


class PillarFeatures(nn.Module):
    """A map of the scene seen from above: in each cell the maxima of what a linear layer gives for
    the points in the column above it.

    The paper samples up to 100 points per pillar and 12,000 pillars. Here, points are scattered to
    the map, so that a pillar holds any number of them and none is left out.

    Args:
        channels: of the map.
        extent: (x1, y1, z1, x2, y2, z2) in metres, what the map covers.
        pillar_size: side of a pillar in metres.
        point_channels: numbers of a point; the first three are x, y and z.
    """

    def __init__(
        self,
        channels: int = 32,
        extent: Sequence[float] = EXTENT,
        pillar_size: float = 0.4,
        point_channels: int = 4,
    ) -> None:
        super().__init__()
        self.point_channels = point_channels
        self.pillar_size = pillar_size
        self.shape = grid_of(extent, pillar_size)
        self.extent = tuple(map(float, extent))
        self.channels = channels
        self.layers = Conv2dNormActivation(point_channels + 5, channels, 1)

    def forward(self, clouds: Sequence[Tensor]) -> Tensor:
        """[N, channels, rows, columns] in channels_last of clouds [n, point_channels].

        Points outside of the extent, and with a number that is not finite, are left out.
        """
        rows, columns = self.shape
        points, cells, pillar = self._inside(clouds)
        count = len(clouds) * rows * columns
        conv: Any = self.layers[0]
        values = self._values(points, cells, pillar, count + 1).to(conv.weight.dtype)
        if len(values):
            features = self.layers(values[None, :, None].permute(0, 3, 1, 2))
            features = features.permute(0, 2, 3, 1).reshape(len(values), self.channels)
        else:
            features = values.new_zeros(0, self.channels)
        # no feature is negative, so that the zeros of empty pillars change no maximum
        canvas = features.new_zeros(count + 1, self.channels).scatter_reduce(
            0, pillar[:, None].expand_as(features), features, "amax"
        )
        return canvas[:count].reshape(len(clouds), rows, columns, -1).permute(0, 3, 1, 2)

    def _inside(self, clouds: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The points [n, C] of all clouds, their cells [n, 2] (column and row), and the number of
        their pillar [n] over all clouds.

        In training, points that do not count are left out, since normalization is over all. In
        evaluation they get a pillar after all others, so that shapes depend on no value.
        """
        rows, columns = self.shape
        points = torch.cat(list(clouds))
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        low, high = points.new_tensor(self.extent).split(3)
        counts = torch.tensor([len(cloud) for cloud in clouds], device=points.device)
        scene = torch.repeat_interleave(counts, output_size=len(points))
        place = points[:, :3]
        counted = ((place >= low) & (place < high)).all(1) & points.isfinite().all(1)
        if self.training:
            points, scene = points[counted], scene[counted]
        else:
            points = torch.where(counted[:, None], points, 0)
        cells = ((points[:, :2] - low[:2]) / self.pillar_size).long()
        last = cells.new_tensor((columns - 1, rows - 1))
        cells = torch.minimum(cells, last).clamp(min=0)  # rounding, and what does not count
        pillar = (scene * rows + cells[:, 1]) * columns + cells[:, 0]
        if not self.training:
            pillar = torch.where(counted, pillar, len(clouds) * rows * columns)
        return points, cells, pillar

    def _values(self, points: Tensor, cells: Tensor, pillar: Tensor, pillars: int) -> Tensor:
        """[n, C + 5]: positions from -1 to 1, what else is known of a point, and in units of a
        pillar the offsets from the mean of its points and from its center."""
        low, high = points.new_tensor(self.extent).split(3)
        place = points[:, :3]
        sums = points.new_zeros((pillars, 4))
        sums = sums.index_add(0, pillar, F.pad(place, (0, 1), value=1.0))[pillar]
        center = low[:2] + (cells + 0.5) * self.pillar_size
        return torch.cat(
            (
                (place - low) * (2 / (high - low)) - 1,
                points[:, 3:],
                (place - sums[:, :3] / sums[:, 3:]) / self.pillar_size,
                (place[:, :2] - center) / self.pillar_size,
            ),
            1,
        )


class PillarBackbone(nn.Module):
    """Stages of 3x3 convolutions, each at half the resolution of the one before, and their results
    joined at the resolution of the first.

    Args:
        in_channels: of the map.
        widths: channels of each stage.
        depths: convolutions of each stage after its strided one.
        up_channels: of each stage in the result.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (2, 3, 3),
        up_channels: int = 32,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths):
            raise ValueError(
                f"widths and depths must be one per stage, got {list(widths)} and {list(depths)}"
            )
        self.stages, self.ups = nn.ModuleList(), nn.ModuleList()
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers = [Conv2dNormActivation(in_channels, width, 3, stride=2)]
            layers += [Conv2dNormActivation(width, width, 3) for _ in range(depth)]
            self.stages.append(Sequential(*layers))
            factor = 2**number
            self.ups.append(
                Conv2dNormActivation(width, up_channels, 1)
                if factor == 1
                else ConvTranspose2dNormActivation(width, up_channels, factor, factor, padding=0)
            )
            in_channels = width
        self.out_channels = up_channels * len(widths)

    def forward(self, x: Tensor) -> Tensor:
        """[N, out_channels, H / 2, W / 2] of a map [N, in_channels, H, W]."""
        results = []
        for stage, up in zip(self.stages, self.ups, strict=True):
            x = stage(x)
            results.append(up(x))
        return torch.cat(results, 1)


class PointPillars(nn.Module):
    """Solid boxes with their yaw in point clouds, by a 2-D network on a map seen from above.

    Differences from the paper: any number of points per pillar, positions in units of the extent
    and of a pillar, and a direction relative to the anchor, which is of one class and gives the
    score of that class.

    Args:
        anchors: (length, width, height, z of the center) in metres of an anchor of each class but
            the background; each is used at yaws of 0 and 90 degrees.
        extent: (x1, y1, z1, x2, y2, z2) in metres, what the network sees.
        pillar_size: side of a pillar in metres; in x and y, the extent has to be a multiple of it
            by a multiple of 2 to the number of stages.
        point_channels: numbers of a point; the first three are x, y and z.
        pillar_channels: of the map of pillars.
        widths, depths, up_channels: see :class:`PillarBackbone`.
        score_thresh: least score of a detection.
        nms_thresh: overlap seen from above from which on the better of two boxes of a class stays.
        topk_candidates: boxes of a scene that are decoded.
        detections_per_scene: largest number of detections.

    Raises:
        ValueError: sizes that do not fit, or a number out of range.
        TypeError: an option is no number.
    """

    def __init__(
        self,
        anchors: Sequence[Sequence[float]] = ANCHORS,
        extent: Sequence[float] = EXTENT,
        pillar_size: float = 0.4,
        point_channels: int = 4,
        pillar_channels: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (2, 3, 3),
        up_channels: int = 32,
        score_thresh: float = 0.1,
        nms_thresh: float = 0.2,
        topk_candidates: int = 300,
        detections_per_scene: int = 100,
    ) -> None:
        super().__init__()
        check_numbers(score_thresh=score_thresh, nms_thresh=nms_thresh)
        check_counts(topk_candidates=topk_candidates, detections_per_scene=detections_per_scene)
        if not anchors or any(len(size) != 4 or min(size[:3]) <= 0 for size in anchors):
            raise ValueError(
                "anchors must be (length, width, height, z) of each class, with positive sides, "
                f"got {anchors}"
            )
        self.pillars = PillarFeatures(pillar_channels, extent, pillar_size, point_channels)
        self.backbone = PillarBackbone(pillar_channels, widths, depths, up_channels)
        rows, columns = self.pillars.shape
        if rows % 2 ** len(widths) or columns % 2 ** len(widths):
            raise ValueError(
                f"extent must be a multiple of {2 ** len(widths)} pillars in x and y, "
                f"got {columns} x {rows} pillars"
            )
        area = (*extent[:2], *extent[3:5])
        self.anchors = SolidAnchors(anchors, area, (rows // 2, columns // 2))
        self.num_classes = len(anchors) + 1
        self.head = nn.Conv2d(self.backbone.out_channels, self.anchors.per_cell * _OUTPUTS, 1)
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.topk_candidates = topk_candidates
        self.detections_per_scene = detections_per_scene
        nn.init.normal_(self.head.weight, std=0.01)
        bias = torch.zeros(self.anchors.per_cell, _OUTPUTS)
        bias[:, 0] = -math.log((1 - _PRIOR) / _PRIOR)
        self.head.bias = nn.Parameter(bias.flatten())

    def forward(self, clouds: Sequence[Tensor], targets: Any = None) -> Any:
        """Detections of clouds, or in training their losses.

        Args:
            clouds: [n, point_channels] of each scene, (x, y, z) in metres and what else is known,
                in any order. A cloud may be empty. Points outside of the extent, and with a number
                that is not finite, are left out.
            targets: in training, of each scene "boxes" [m, 7] (x, y, z, length, width, height,
                yaw), in metres and radians as in :func:`fastvision.ops.box_iou_3d`, and "labels"
                [m] int64 from 1.

        Returns:
            In evaluation a dictionary of each scene, in descending order of the scores, with
            "boxes" [k, 7], whose yaws are from -pi to pi, "labels" [k] and "scores" [k]. In
            training the scalars "classification", "bbox_regression" and "direction", means over the
            scenes, whose sum is the loss.

        Raises:
            TypeError, ValueError: clouds or targets of other types, shapes or values.
        """
        self._check_clouds(clouds)
        if not self.training:
            return self.detections(self.outputs(clouds))
        boxes, labels = self._padded(targets, len(clouds))
        return self.losses(self.outputs(clouds), boxes, labels)

    def outputs(self, clouds: Sequence[Tensor]) -> Tensor:
        """[N, A, 9] of the anchors: logit of the score, code of the box, logit of the direction.

        In evaluation, shapes depend on the sizes of the clouds alone: torch.export takes it.
        """
        x = conv_norm_act(self.backbone(self.pillars(clouds)), self.head)
        return x.permute(0, 2, 3, 1).reshape(len(clouds), -1, _OUTPUTS)

    def losses(self, outputs: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Focal loss of the scores, smooth L1 of the codes with the sine of the angle, and binary
        cross entropy of the direction, over the number of anchors with an object in each scene.

        Args:
            outputs: [N, A, 9].
            boxes: [N, M, 7]; M is at least 1.
            labels: [N, M]; 0 for no object.
        """
        outputs = outputs.float() if outputs.dtype != torch.float64 else outputs
        answers, owner = self.anchors.match(boxes, labels)
        scene, anchor = torch.where(answers == 0)
        found = outputs[scene, anchor]
        truths = boxes[scene, owner[scene, anchor]].to(outputs.dtype)
        anchors, _ = self.anchors.on(outputs.device)
        codes, forward = encode(truths, anchors[anchor].to(outputs.dtype))
        found_in = (answers == 0).sum(1).clamp(min=1)
        share = 1 / (found_in * len(outputs)).to(outputs.dtype)  # of an anchor in the loss
        focal = sigmoid_focal_loss(outputs[..., :1].contiguous(), answers)
        angle = (found[:, CODE] - codes[:, -1]).sin()
        differences = torch.cat((found[:, 1:CODE] - codes[:, :-1], angle[:, None]), 1)
        smooth = F.smooth_l1_loss(
            differences, torch.zeros_like(differences), beta=1 / 9, reduction="none"
        )
        direction = F.binary_cross_entropy_with_logits(
            found[:, -1], forward.to(found.dtype), reduction="none"
        )
        terms = {
            "classification": (focal.sum((1, 2)) * share).sum(),
            "bbox_regression": (smooth.sum(1) * share[scene]).sum(),
            "direction": (direction * share[scene]).sum(),
        }
        return {name: _WEIGHTS[name] * term for name, term in terms.items()}

    def detections(self, outputs: Tensor) -> list[dict[str, Tensor]]:
        """The boxes of outputs [N, A, 9], of all scenes at once."""
        outputs = outputs.float() if outputs.dtype != torch.float64 else outputs
        count = min(self.topk_candidates, outputs.shape[1])
        scores, anchor = outputs[..., 0].sigmoid().topk(count, 1)
        scene, rank = torch.where(scores >= self.score_thresh)
        scores, anchor = scores[scene, rank], anchor[scene, rank]
        found = outputs[scene, anchor]
        anchors, classes = self.anchors.on(outputs.device)
        boxes = decode(found[:, 1 : 1 + CODE], found[:, -1] >= 0, anchors[anchor].to(found.dtype))
        labels = classes[anchor]
        kept = nms_3d(
            boxes, scores, self.nms_thresh, idxs=scene * self.num_classes + labels, bev=True
        )
        kept = kept[scene[kept].argsort(stable=True)]  # by scene, then by score
        numbers = torch.bincount(scene[kept], minlength=len(outputs)).tolist()
        result = []
        for part in kept.split(numbers):
            best = part[: self.detections_per_scene]
            result.append({"boxes": boxes[best], "labels": labels[best], "scores": scores[best]})
        return result

    def _check_clouds(self, clouds: Any) -> None:
        if not isinstance(clouds, (list, tuple)) or not clouds:
            raise ValueError(f"clouds must be a list of tensors, got {_kind(clouds)}")
        for number, cloud in enumerate(clouds):
            check_tensor(cloud, f"clouds[{number}]")
            check_floating(cloud.dtype, f"clouds[{number}]")
            if cloud.dim() != 2 or cloud.shape[1] != self.pillars.point_channels:
                raise ValueError(
                    f"clouds[{number}] must be [n, {self.pillars.point_channels}], "
                    f"got {list(cloud.shape)}"
                )

    def _padded(self, targets: Any, scenes: int) -> tuple[Tensor, Tensor]:
        """Boxes [N, M, 7] and labels [N, M], filled up with the label 0, M at least 1."""
        if not isinstance(targets, (list, tuple)) or len(targets) != scenes:
            raise ValueError(
                f"targets must be a list of one dictionary per cloud in training, {scenes}, "
                f"got {_kind(targets)}"
            )
        for number, target in enumerate(targets):
            self._check_target(target, f"targets[{number}]")
        most = max(1, *(len(target["labels"]) for target in targets))
        padded = [
            torch.stack([F.pad(t[key], pad + (0, most - len(t[key]))) for t in targets])
            for key, pad in (("boxes", (0, 0)), ("labels", ()))
        ]
        boxes, labels = padded
        return boxes.to(torch.promote_types(boxes.dtype, torch.float32)), labels

    def _check_target(self, target: Any, name: str) -> None:
        if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
            raise ValueError(f"{name} must have boxes and labels, got {_kind(target)}")
        boxes, labels = target["boxes"], target["labels"]
        for key, value in (("boxes", boxes), ("labels", labels)):
            check_tensor(value, f"{name}[{key!r}]")
        check_floating(boxes.dtype, f"{name}['boxes']")
        if labels.dtype != torch.int64:
            raise TypeError(f"{name}['labels'] must be int64, got {labels.dtype}")
        if boxes.dim() != 2 or boxes.shape[1] != CODE or labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"{name} must have boxes [m, {CODE}] and labels [m], got {list(boxes.shape)} and "
                f"{list(labels.shape)}"
            )
        if ((labels < 1) | (labels >= self.num_classes)).any():
            raise ValueError(
                f"{name}['labels'] must be from 1 to {self.num_classes - 1}, got {labels.tolist()}"
            )
        wrong = ~boxes.isfinite().all(1) | (boxes[:, 3:6] <= 0).any(1)
        if wrong.any():
            raise ValueError(
                f"{name}['boxes'] must be finite, with positive sides, "
                f"got {boxes[wrong][0].tolist()}"
            )


def grid_of(extent: Sequence[float], pillar_size: float) -> tuple[int, int]:
    """Rows and columns of pillars in an extent.

    Raises:
        ValueError: it is empty, or no whole number of pillars.
    """
    if len(extent) != 6 or not all(low < high for low, high in zip(extent, extent[3:])):  # noqa: B905
        raise ValueError(f"extent must be (x1, y1, z1, x2, y2, z2) in order, got {extent}")
    if not pillar_size > 0:
        raise ValueError(f"pillar_size must be positive, got {pillar_size}")
    counts = [(extent[i + 3] - extent[i]) / pillar_size for i in (1, 0)]
    if any(abs(count - round(count)) > 1e-3 for count in counts):
        raise ValueError(
            f"extent must be a whole number of pillars of {pillar_size} in x and y, got {extent}"
        )
    return round(counts[0]), round(counts[1])


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a dictionary of {sorted(value)}"
    return type(value).__name__


@register("detection_3d")
def point_pillars(*, weights: Any = None, progress: bool = True, **options: Any) -> PointPillars:
    """A small PointPillars (Lang et al. 2019): 753,284 parameters for cars and pedestrians.

    Args:
        weights: None, a state dict, or the path of a file.
        progress: whether a download shows a progress bar.
        options: of :class:`PointPillars`.
    """
    return load_weights(PointPillars(**options), "point_pillars", weights, progress)
