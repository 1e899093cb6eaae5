"""R-CNN: a network for each proposed region, SVMs and box regression on its features.

Girshick, Donahue, Darrell and Malik, Rich feature hierarchies for accurate object detection and
semantic segmentation, 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._optional import optional
from ...ops import batched_nms, box_iou
from ...ops._checks import integer
from ...ops.chain import run_layers
from .._images import IMAGENET_MEAN, IMAGENET_STD, enter
from .._registry import register
from .._weights import load_weights
from ..alexnet import alexnet
from ._parts import check_counts, check_numbers
from ._svm import LinearSVMs
from ._warp import warp_regions
from .anchors import box_dtype
from .box_coder import BoxCoder
from .image_list import Target
from .matching import BalancedPositiveNegativeSampler, Matcher
from .postprocess import clip, limits
from .selective_search import SelectiveSearch, check_proposals
from .targets import check_boxes, check_labels, check_targets
from .transform import GeneralizedRCNNTransform, sizes_of
from .vgg_parts import vgg

Proposals = Callable[[Sequence[Tensor]], list[Tensor]]

_NORM = 20.0  # mean norm of the features for which the SVMs' and the regression's penalty is meant
_NEGATIVE = 0.3  # a region that overlaps the objects of a class less is a negative of its SVM
_NEAR = 0.6  # one that overlaps an object as much teaches the regression


class RCNN(nn.Module):
    """A classifier of warped regions, trained in two steps.

    In training mode the classifier learns the class of regions that it is given, the background
    included (the paper's fine-tuning). :meth:`fit` then trains a linear SVM per class and a
    regression of boxes on its features. Before that, detections have the classifier's own
    probabilities as scores and the proposals as boxes.

    Args:
        network: has ``features``, ``avgpool`` and ``classifier``, as AlexNet and VGG do, and an
            output for each class, the background first.
        size: pixels of the warped regions.
        context: pixels of them on each side that are outside of the proposal.
        proposals: gives boxes [n, 4] for each of a list of images; :class:`SelectiveSearch` if
            None.
        batch_size: regions per call of the network in evaluation.
        batch_size_per_image: regions of an image in a step of training.
        positive_fraction: largest share of regions with an object among them.
        score_thresh: detections with a score not above it are dropped. The score is the sigmoid of
            an SVM's margin, which is no probability.
        nms_thresh: overlap of two detections of a class of which the better one remains.
        detections_per_img: largest number of detections in an image.
        image_mean, image_std: per channel.

    Raises:
        ValueError: a number is out of range.
        TypeError: an option is no number.
    """

    fitted: Tensor  # whether there are SVMs

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int = 224,
        context: int = 16,
        proposals: Proposals | None = None,
        batch_size: int = 64,
        batch_size_per_image: int = 64,
        positive_fraction: float = 0.25,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.3,
        detections_per_img: int = 100,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        check_counts(1, size=size, batch_size=batch_size)
        check_counts(
            batch_size_per_image=batch_size_per_image, detections_per_img=detections_per_img
        )
        check_numbers(
            positive_fraction=positive_fraction, score_thresh=score_thresh, nms_thresh=nms_thresh
        )
        if not 0 <= 2 * integer(context, "context must be an integer") < size:
            raise ValueError(f"context must leave some of the size of {size}, got {context}")
        layers: Any = network.classifier
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.network = network
        classes = linear[-1].out_features - 1
        self.svms = nn.Linear(linear[-1].in_features, classes).requires_grad_(False)
        self.regression = nn.Linear(linear[0].in_features, 4 * classes).requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(False))
        # of which the normalization serves, regions being warped
        self.transform = GeneralizedRCNNTransform(size, size, image_mean, image_std)
        self.matcher = Matcher(0.5, 0.5)
        self.sampler = BalancedPositiveNegativeSampler(batch_size_per_image, positive_fraction)
        self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.size, self.context = size, context
        self.proposals = SelectiveSearch() if proposals is None else proposals
        self.batch_size = batch_size
        self.score_thresh, self.nms_thresh = score_thresh, nms_thresh
        self.detections_per_img = detections_per_img

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        proposals: Sequence[Tensor] | None = None,
    ) -> Any:
        """Detections of each image; in training mode {"loss_classifier": the cross entropy}.

        Args:
            images: RGB [3, H, W] each, floating-point in 0..1.
            targets: in training, "boxes" [n, 4] (x1, y1, x2, y2) in pixels and "labels" int64 [n]
                from 1 of each image.
            proposals: boxes [n, 4] of each image; the module's own if None.

        Returns:
            For each image "boxes" [n, 4], "labels" int64 [n] and "scores" [n], the best first.

        Raises:
            AssertionError: no targets in training, boxes of another shape, or one without area.
            ValueError, TypeError: an image, a label or a proposal of another form.
        """
        sizes_of(images)
        if self.training:
            self._check(targets, images)
        if proposals is None:
            proposals = self.proposals(images)
        proposals = check_proposals(proposals, images)
        if self.training:
            return self._losses(images, targets or (), proposals)
        return [self._detect(*pair) for pair in zip(images, proposals, strict=True)]

    def _check(self, targets: Sequence[Target] | None, images: Sequence[Tensor]) -> None:
        check_targets(targets, images)
        check_boxes(targets)
        check_labels(targets or ())
        labels = torch.cat([target["labels"].cpu() for target in targets or ()])
        if len(labels) and not 1 <= labels.min() <= labels.max() <= self.svms.out_features:
            raise ValueError(
                f"labels must be from 1 to {self.svms.out_features}, "
                f"got {labels.min()} to {labels.max()}"
            )

    def _losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], proposals: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        regions, labels = [], []
        for image, target, boxes in zip(images, targets, proposals, strict=True):
            truth = target["boxes"].to(boxes)
            boxes = torch.cat((boxes, truth))
            label = self._labels(boxes, truth, target["labels"])
            positive, negative = self.sampler([label])
            drawn = torch.where(positive[0] | negative[0])[0]
            regions.append(self._warp(image, boxes[drawn]))
            labels.append(label[drawn])
        label = torch.cat(labels)
        if len(label) == 0:  # a mean of nothing is NaN
            return {"loss_classifier": 0 * next(self.network.parameters()).sum()}
        scores = self.network(torch.cat(regions))
        return {"loss_classifier": F.cross_entropy(scores, label)}

    def _labels(self, boxes: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
        if not len(truth):
            return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        matches = self.matcher(box_iou(truth, boxes))
        return torch.where(matches < 0, 0, labels[matches.clamp(min=0)])

    def _warp(self, image: Tensor, boxes: Tensor) -> Tensor:
        return warp_regions(self.transform.normalize(image), boxes, self.size, self.context)

    def _features(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """What the first and what the last linear layer of the classifier is given: [n, P] and
        [n, D]."""
        network: Any = self.network
        pooled, deep = [], []
        for part in boxes.split(self.batch_size):
            x = network.avgpool(network.features(enter(self._warp(image, part))))
            pooled.append(x.flatten(1))
            deep.append(run_layers(list(network.classifier)[:-1], pooled[-1]))
        return torch.cat(pooled), torch.cat(deep)

    def _detect(self, image: Tensor, proposals: Tensor) -> dict[str, Tensor]:
        pooled, deep = self._features(image, proposals)
        if self.fitted:
            scores = self.svms(deep).sigmoid()
            codes = self.regression(pooled).view(*scores.shape, 4).to(proposals.dtype)
        else:
            network: Any = self.network
            scores = network.classifier[-1](deep).softmax(1)[:, 1:]
            codes = proposals.new_zeros((*scores.shape, 4))
        boxes = self.box_coder.decode_single(codes, proposals[:, None])
        height, width = image.shape[-2:]
        boxes = clip(boxes, limits([(height, width)], boxes))
        row, label = torch.where(scores > self.score_thresh)
        boxes, scores = boxes[row, label], scores[row, label].to(boxes.dtype)
        kept = batched_nms(
            boxes, scores, label, self.nms_thresh, max_output=self.detections_per_img
        )
        return {"boxes": boxes[kept], "labels": label[kept] + 1, "scores": scores[kept]}

    @torch.no_grad()
    def fit(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        *,
        penalty: float = 1e-3,
        ridge: float = 1000.0,
    ) -> RCNN:
        """Trains the SVMs and the regression on the features of the classifier as it is.

        One pass over the images collects hard negatives; the features of all regions near objects
        stay in memory, with VGG-16 100 kB each. Features are scaled to a mean norm of 20, for which
        the paper's penalties are meant.

        Args:
            images, targets: see :meth:`forward`; any sequences, each read twice.
            penalty: C of the SVMs.
            ridge: penalty of the regression.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
            ValueError: there is no object at all.
        """
        training = self.training
        self.eval()
        try:
            self._fit(images, targets, penalty, ridge)
        finally:
            self.train(training)
        return self

    def _fit(
        self, images: Sequence[Tensor], targets: Sequence[Target], penalty: float, ridge: float
    ) -> None:
        self._check(targets, images)
        features = [
            self._features(image, target["boxes"].to(box_dtype(image)))
            for image, target in zip(images, targets, strict=True)
        ]
        labels = torch.cat([target["labels"] for target in targets])
        if not len(labels):
            raise ValueError("targets must have objects, got none")
        objects = [torch.cat(parts).float() for parts in zip(*features, strict=True)]
        scale, deep_scale = (_NORM / x.norm(dim=1).mean().clamp(min=1e-12) for x in objects)
        of_class = [labels == k + 1 for k in range(self.svms.out_features)]
        svms = LinearSVMs([objects[1][rows] * deep_scale for rows in of_class], penalty=penalty)
        near: list[tuple[Tensor, ...]] = []
        proposals = (check_proposals(self.proposals([image]), [image])[0] for image in images)
        for image, target, boxes in zip(images, targets, proposals, strict=True):
            truth, kinds = target["boxes"].to(boxes), target["labels"]
            boxes = torch.cat((boxes, truth))
            pooled, deep = (x.float() for x in self._features(image, boxes))
            overlaps = box_iou(truth, boxes)
            far = [(overlaps[kinds == k + 1] < _NEGATIVE).all(0) for k in range(len(of_class))]
            svms.add(deep * deep_scale, torch.stack(far, 1))
            if len(overlaps):
                overlap, nearest = overlaps.max(0)
                rows = overlap >= _NEAR
                codes = self.box_coder.encode_single(truth[nearest[rows]], boxes[rows])
                near.append((pooled[rows] * scale, codes, kinds[nearest[rows]]))
        weight, bias = svms.finish()
        self.svms.weight.copy_(weight.to(deep_scale.device) * deep_scale)
        self.svms.bias.copy_(bias)
        self._fit_regression([torch.cat(parts) for parts in zip(*near, strict=True)], scale, ridge)
        self.fitted.fill_(True)

    def _fit_regression(self, near: list[Tensor], scale: Tensor, ridge: float) -> None:
        """``near``: scaled features, offsets of the objects, and labels of regions near objects."""
        features, codes, labels = (x.cpu() for x in near)
        weight = self.regression.weight.view(-1, 4, self.regression.in_features)
        bias = self.regression.bias.view(-1, 4)
        self.regression.weight.zero_()
        self.regression.bias.zero_()
        for k in labels.unique().tolist():
            model = optional("sklearn.linear_model").Ridge(ridge)
            model.fit(features[labels == k].numpy(), codes[labels == k].numpy())
            weight[k - 1] = torch.from_numpy(model.coef_).to(weight) * scale.to(weight)
            bias[k - 1] = torch.from_numpy(model.intercept_).to(bias)


@register("detection")
def rcnn_alexnet(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 21,
    weights_backbone: Any = None,
    **options: Any,
) -> RCNN:
    """R-CNN on AlexNet (Girshick et al. 2014): 57,089,877 parameters of the classifier with 21
    classes.

    Args:
        weights: None, a state dict, or the path of a file.
        progress: whether a download shows a progress bar.
        num_classes: the background included.
        weights_backbone: of AlexNet, see :func:`fastvision.models.alexnet`.
        options: of :class:`RCNN`.
    """
    network = classifier_of(alexnet(weights=weights_backbone, progress=progress), num_classes)
    return load_weights(RCNN(network, **options), "rcnn_alexnet", weights, progress)


@register("detection")
def rcnn_vgg16(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int = 21,
    weights_backbone: Any = None,
    base_width: int = 64,
    batch_norm: bool = False,
    dropout: float = 0.5,
    **options: Any,
) -> RCNN:
    """R-CNN on VGG-16 (Girshick et al. 2014): 134,346,581 parameters of the classifier with 21
    classes.

    Args:
        weights, progress: see :func:`rcnn_alexnet`.
        num_classes: the background included.
        weights_backbone: of VGG-16, see :func:`fastvision.models.vgg16`.
        base_width: channels of the first stage.
        batch_norm: whether a batch normalization follows each convolution; the paper has none.
        dropout: probability behind VGG's linear layers.
        options: of :class:`RCNN`.
    """
    network = classifier_of(
        vgg(weights_backbone, progress, base_width, batch_norm, dropout), num_classes
    )
    return load_weights(RCNN(network, **options), "rcnn_vgg16", weights, progress)


def classifier_of(network: Any, num_classes: int) -> nn.Module:
    """The network with a new last layer, which the paper's begins with at random."""
    last = nn.Linear(network.classifier[-1].in_features, num_classes)
    nn.init.normal_(last.weight, 0, 0.01)
    nn.init.zeros_(last.bias)
    network.classifier[-1] = last
    return network
