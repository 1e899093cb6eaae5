"""Faster R-CNN, on feature pyramids.

Ren, He, Girshick and Sun, Faster R-CNN: Towards real-time object detection with region proposal
networks, 2015. Lin, Dollár, Girshick, He, Hariharan and Belongie, Feature pyramid networks for
object detection, 2017. Li, Xie, Chen, Dollár, He and Girshick, Benchmarking detection transfer
learning with vision transformers, 2021 (v2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..._memory_format import is_channels_last
from ...ops import Conv2dNormActivation, MultiScaleRoIAlign, Sequential, conv_bn_relu
from ...ops.chain import run_layers
from .._registry import register
from ..mobilenetv3 import mobilenet_v3_large
from ..resnet import resnet50
from ._build import Start, start
from ._heads import may_rearrange
from ._parts import channels_of, check_class, check_counts, check_numbers
from .anchors import AnchorGenerator
from .backbones import Norm, mobilenet_features, resnet_pyramid
from .generalized_rcnn import GeneralizedRCNN
from .roi_heads import RoIHeads
from .rpn import RegionProposalNetwork, RPNHead, default_anchors
from .transform import GeneralizedRCNNTransform

_REPRESENTATION = 1024  # numbers that describe a box between the layers of its head
_RELU = nn.ReLU()


class FasterRCNN(GeneralizedRCNN):
    """A :class:`GeneralizedRCNN` that classifies and refines boxes.

    torchvision's constructor, initialization and state dict.

    Args:
        backbone: gives feature maps by name, or one tensor, of ``backbone.out_channels`` each.
        num_classes: background included; None with a ``box_predictor``.
        min_size, max_size, image_mean, image_std: of the :class:`GeneralizedRCNNTransform`, which
            takes further arguments too.
        rpn_anchor_generator: an :class:`AnchorGenerator`; with one size and three shapes on each of
            five levels if None.
        rpn_head: a :class:`RPNHead` if None.
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: number of proposals of a level before
            the suppression.
        rpn_post_nms_top_n_train, rpn_post_nms_top_n_test: of an image after it.
        rpn_nms_thresh, rpn_score_thresh: of the :class:`RegionProposalNetwork`.
        rpn_fg_iou_thresh, rpn_bg_iou_thresh: of the same.
        rpn_batch_size_per_image, rpn_positive_fraction: of the same.
        box_roi_pool: a :class:`fastvision.ops.MultiScaleRoIAlign`; of 7x7 bins from the maps "0"
            to "3" if None.
        box_head: on what is pooled; two linear layers if None.
        box_predictor: a :class:`FastRCNNPredictor` if None.
        box_score_thresh, box_nms_thresh, box_detections_per_img: of the :class:`RoIHeads`.
        box_fg_iou_thresh, box_bg_iou_thresh: of the same.
        box_batch_size_per_image, box_positive_fraction, bbox_reg_weights: of the same.

    Raises:
        ValueError: the backbone has no ``out_channels``, or one of ``num_classes`` and
            ``box_predictor`` is missing, or both are there, or a number is out of range.
        TypeError: ``rpn_anchor_generator`` or ``box_roi_pool`` is of another class, or an option
            is no number.

    Example:
        >>> backbone = fastvision.models.mobilenet_v2().features
        >>> backbone.out_channels = 1280
        >>> anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
        >>> pool = fastvision.ops.MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2)
        >>> model = FasterRCNN(backbone, 2, rpn_anchor_generator=anchors, box_roi_pool=pool)
    """

    def __init__(
        self,
        backbone: Any,
        num_classes: int | None = None,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        rpn_anchor_generator: AnchorGenerator | None = None,
        rpn_head: nn.Module | None = None,
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_fg_iou_thresh: float = 0.7,
        rpn_bg_iou_thresh: float = 0.3,
        rpn_batch_size_per_image: int = 256,
        rpn_positive_fraction: float = 0.5,
        rpn_score_thresh: float = 0.0,
        box_roi_pool: MultiScaleRoIAlign | None = None,
        box_head: nn.Module | None = None,
        box_predictor: nn.Module | None = None,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        box_fg_iou_thresh: float = 0.5,
        box_bg_iou_thresh: float = 0.5,
        box_batch_size_per_image: int = 512,
        box_positive_fraction: float = 0.25,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        check_numbers(
            rpn_nms_thresh=rpn_nms_thresh,
            rpn_fg_iou_thresh=rpn_fg_iou_thresh,
            rpn_bg_iou_thresh=rpn_bg_iou_thresh,
            rpn_positive_fraction=rpn_positive_fraction,
            rpn_score_thresh=rpn_score_thresh,
            box_score_thresh=box_score_thresh,
            box_nms_thresh=box_nms_thresh,
            box_fg_iou_thresh=box_fg_iou_thresh,
            box_bg_iou_thresh=box_bg_iou_thresh,
            box_positive_fraction=box_positive_fraction,
        )
        check_counts(
            rpn_pre_nms_top_n_train=rpn_pre_nms_top_n_train,
            rpn_pre_nms_top_n_test=rpn_pre_nms_top_n_test,
            rpn_post_nms_top_n_train=rpn_post_nms_top_n_train,
            rpn_post_nms_top_n_test=rpn_post_nms_top_n_test,
            rpn_batch_size_per_image=rpn_batch_size_per_image,
            box_detections_per_img=box_detections_per_img,
            box_batch_size_per_image=box_batch_size_per_image,
        )
        channels = channels_of(backbone)
        check_class("rpn_anchor_generator", rpn_anchor_generator, AnchorGenerator)
        check_class("box_roi_pool", box_roi_pool, MultiScaleRoIAlign)
        if num_classes is not None and box_predictor is not None:
            raise ValueError("num_classes should be None when box_predictor is specified")
        if rpn_anchor_generator is None:
            rpn_anchor_generator = default_anchors()
        if rpn_head is None:
            rpn_head = RPNHead(channels, rpn_anchor_generator.num_anchors_per_location()[0])
        rpn = RegionProposalNetwork(
            rpn_anchor_generator,
            rpn_head,
            rpn_fg_iou_thresh,
            rpn_bg_iou_thresh,
            rpn_batch_size_per_image,
            rpn_positive_fraction,
            {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            rpn_nms_thresh,
            rpn_score_thresh,
        )
        if box_roi_pool is None:
            box_roi_pool = default_roi_pool(7)
        if box_head is None:
            bins = box_roi_pool.output_size[0] ** 2
            box_head = TwoMLPHead(channels * bins, _REPRESENTATION)
        if box_predictor is None:
            if num_classes is None:
                raise ValueError(
                    "num_classes should not be None when box_predictor is not specified"
                )
            box_predictor = FastRCNNPredictor(_REPRESENTATION, num_classes)
        roi_heads = RoIHeads(
            box_roi_pool,
            box_head,
            box_predictor,
            box_fg_iou_thresh,
            box_bg_iou_thresh,
            box_batch_size_per_image,
            box_positive_fraction,
            bbox_reg_weights,
            box_score_thresh,
            box_nms_thresh,
            box_detections_per_img,
        )
        transform = GeneralizedRCNNTransform(
            min_size,
            max_size,
            image_mean,
            image_std,
            **kwargs,
        )
        super().__init__(backbone, rpn, roi_heads, transform)


class TwoMLPHead(nn.Module):
    """Two linear layers with ReLU on the features of a box.

    Args:
        in_channels: numbers of a box, channels times bins.
        representation_size: outputs of both layers.
    """

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_channels, representation_size)
        self.fc7 = nn.Linear(representation_size, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        """[n, representation_size] of [n, C, h, w]."""
        return run_layers((self.fc7, _RELU), linear_relu_of_maps(x, self.fc6))


class FastRCNNConvFCHead(Sequential):
    """3x3 convolutions with normalization and ReLU, and linear layers with ReLU, on the features of
    a box.

    Args:
        input_size: (channels, height, width).
        conv_layers: outputs of each convolution.
        fc_layers: outputs of each linear layer.
        norm_layer: called with a number of channels.
    """

    def __init__(
        self,
        input_size: tuple[int, int, int],
        conv_layers: Sequence[int],
        fc_layers: Sequence[int],
        norm_layer: Norm | None = None,
    ) -> None:
        width, height, columns = input_size
        layers: list[nn.Module] = []
        for outputs in conv_layers:
            layers.append(Conv2dNormActivation(width, outputs, norm_layer=norm_layer))
            width = outputs
        layers.append(nn.Flatten())
        width *= height * columns
        for outputs in fc_layers:
            layers += [nn.Linear(width, outputs), nn.ReLU(inplace=True)]
            width = outputs
        super().__init__(*layers)
        initialize_convolutions(self)

    def forward(self, input: Tensor) -> Tensor:
        """[n, outputs of the last layer] of [n, C, h, w]."""
        layers = list(self)
        end = next((i for i, layer in enumerate(layers) if type(layer) is nn.Flatten), len(layers))
        if [type(layer) for layer in layers[end + 1 : end + 3]] != [nn.Linear, nn.ReLU]:
            return super().forward(input)
        linear: Any = layers[end + 1]
        return run_layers(
            layers[end + 3 :], linear_relu_of_maps(run_layers(layers[:end], input), linear)
        )


class FastRCNNPredictor(nn.Module):
    """A linear layer each for the classes and the offsets of a box.

    Args:
        in_channels: numbers that describe a box.
        num_classes: background included.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes)
        self.bbox_pred = nn.Linear(in_channels, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, num_classes] and offsets [n, 4 num_classes] of [n, C] or [n, C, 1, 1].

        Raises:
            AssertionError: ``x`` has more than one pixel (torchvision's error type).
        """
        if x.dim() == 4 and x.shape[2:] != (1, 1):
            raise AssertionError(
                f"x has the wrong shape, expecting the last two dimensions to be [1,1] "
                f"instead of {list(x.shape[2:])}"
            )
        x = x.flatten(1)
        return run_layers((self.cls_score,), x), run_layers((self.bbox_pred,), x)


def linear_relu_of_maps(x: Tensor, linear: nn.Linear) -> Tensor:
    """relu(linear(x.flatten(1))) [n, K] of maps [n, C, h, w].

    Maps in channels_last would have to be copied to be flattened; a convolution that covers them
    takes them as they are.
    """
    if (
        x.is_cpu
        and x.dtype == torch.float32
        and is_channels_last(x)
        and x[0].numel() == linear.in_features
        and may_rearrange(x, linear)
    ):
        filters = linear.weight.view(-1, *x.shape[1:])
        return conv_bn_relu(x, filters, linear.bias).flatten(1)
    return run_layers((linear, _RELU), x.flatten(1))


def initialize_convolutions(module: nn.Module) -> None:
    """Normal weights, of the variance that keeps gradients' magnitude (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def default_roi_pool(output_size: int) -> MultiScaleRoIAlign:
    """From the four levels of the backbone."""
    return MultiScaleRoIAlign(["0", "1", "2", "3"], output_size, 2)


def classes_of(state: Mapping[str, Tensor]) -> int:
    """How many a state dict was made for, background included."""
    return len(state["roi_heads.box_predictor.cls_score.bias"])


def on_resnet50(begin: Start, progress: bool) -> nn.Module:
    """ResNet-50 with a feature pyramid."""
    resnet = resnet50(
        weights=begin.weights_backbone, progress=progress, norm_layer=begin.norm_layer
    )
    return resnet_pyramid(resnet, begin.trainable_layers)


def on_resnet50_v2(begin: Start, progress: bool) -> tuple[nn.Module, dict[str, Any]]:
    """ResNet-50 with a feature pyramid, all normalizations trained; and the heads on it."""
    resnet = resnet50(weights=begin.weights_backbone, progress=progress)
    backbone = resnet_pyramid(resnet, begin.trainable_layers, norm_layer=nn.BatchNorm2d)
    anchors, channels = default_anchors(), backbone.out_channels
    return backbone, {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "box_head": FastRCNNConvFCHead(
            (channels, 7, 7), [256] * 4, [_REPRESENTATION], nn.BatchNorm2d
        ),
    }


@register("detection")
def fasterrcnn_resnet50_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN on ResNet-50 with a feature pyramid: 41,755,286 parameters for COCO's classes,
    53,120 more without any weights, since the normalizations are trained then.

    Args:
        weights: of the whole model; they replace ``weights_backbone``, and decide over
            ``num_classes``.
        progress: whether a download shows its progress.
        num_classes: background included; 91 if None.
        weights_backbone: of :func:`~fastvision.models.resnet50`; None starts at random.
        trainable_backbone_layers: number of the backbone's stages that are trained, counted from
            the last, 0 to 5; 3 if None, and all without weights.
        kwargs: of :class:`FasterRCNN`.

    Raises:
        ValueError: ``num_classes`` is not the weights' own, or a number is out of range.
    """
    name = "fasterrcnn_resnet50_fpn"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    begin = start(name, *arguments, classes_of=classes_of)
    return begin.load(FasterRCNN(on_resnet50(begin, progress), begin.num_classes, **kwargs))


@register("detection")
def fasterrcnn_resnet50_fpn_v2(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = None,
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN with normalizations that are trained, a deeper proposal network and convolutions
    in the head (Li et al. 2021): 43,712,278 parameters for COCO's classes. The arguments are those
    of :func:`fasterrcnn_resnet50_fpn`."""
    name = "fasterrcnn_resnet50_fpn_v2"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    begin = start(name, *arguments, classes_of=classes_of)
    backbone, heads = on_resnet50_v2(begin, progress)
    return begin.load(FasterRCNN(backbone, begin.num_classes, **{**heads, **kwargs}))


@register("detection")
def fasterrcnn_mobilenet_v3_large_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN on MobileNetV3-Large with a feature pyramid of three levels: 19,386,354
    parameters for COCO's classes. The arguments are those of :func:`fasterrcnn_resnet50_fpn`; the
    backbone has 6 stages."""
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    return _on_mobilenet(name, arguments, {"rpn_score_thresh": 0.05, **kwargs})


@register("detection")
def fasterrcnn_mobilenet_v3_large_320_fpn(
    *,
    weights: Any = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: Any = "IMAGENET1K_V1",
    trainable_backbone_layers: int | None = None,
    **kwargs: Any,
) -> FasterRCNN:
    """:func:`fasterrcnn_mobilenet_v3_large_fpn` for images of 320 pixels, with at most 150
    proposals."""
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    arguments = (weights, progress, num_classes, weights_backbone, trainable_backbone_layers)
    options = {
        "min_size": 320,
        "max_size": 640,
        "rpn_pre_nms_top_n_test": 150,
        "rpn_post_nms_top_n_test": 150,
        "rpn_score_thresh": 0.05,
    }
    return _on_mobilenet(name, arguments, {**options, **kwargs})


def _on_mobilenet(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> FasterRCNN:
    begin = start(name, *arguments, classes_of=classes_of, stages=6)
    mobilenet = mobilenet_v3_large(
        weights=begin.weights_backbone, progress=arguments[1], norm_layer=begin.norm_layer
    )
    backbone = mobilenet_features(mobilenet, True, begin.trainable_layers)
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, (0.5, 1.0, 2.0))
    options = {"rpn_anchor_generator": anchors, **options}
    return begin.load(FasterRCNN(backbone, begin.num_classes, **options))
