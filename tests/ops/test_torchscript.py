"""torch.jit.trace records and saves every op; torch.jit.script says what to do instead."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvision import ops
from fastvision.testing import numerics

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Call(nn.Module):
    """A function behind a parameter, so that there is a gradient."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.function(x * self.factor, *rest)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.pool = ops.MultiScaleRoIAlign(["fine", "coarse"], 3, 2)

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        maps = {"fine": self.conv(x), "coarse": nn.functional.avg_pool2d(x, 2)}
        return self.pool(maps, [rois[:, 1:]], [(16, 16)])


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pyramid = ops.FeaturePyramidNetwork([8, 8], 8)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.pyramid({"fine": x, "coarse": x[..., ::2, ::2]}).values()
        return fine + coarse.mean()


def image(N: int = 1) -> Tensor:
    return torch.randn(N, 8, 16, 16, generator=torch.Generator().manual_seed(N))


def offsets(N: int = 1) -> Tensor:
    return torch.randn(N, 18, 16, 16, generator=torch.Generator().manual_seed(N))


def rois(count: int) -> Tensor:
    corners = torch.rand(count, 2, generator=torch.Generator().manual_seed(count)) * 8
    return torch.cat([torch.zeros(count, 1), corners, corners + 6], 1)


def labels(N: int) -> Tensor:
    return torch.arange(N * 8 * 16).view(N, 8, 16) % 16


def solid(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :3], boxes[:, 1:] / 2 + 1, boxes[:, :1]], 1)


Inputs = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # to trace with, and of other sizes
IMAGES: Inputs = ((image(1),), (image(3),))
ROIS: Inputs = ((image(), rois(2)), (image(), rois(5)))
BOXES: Inputs = ((rois(2)[:, 1:],), (rois(5)[:, 1:],))
W = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
C = torch.linspace(0.5, 1.5, 8)
CASES: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "Conv2dNormActivation": (lambda: ops.Conv2dNormActivation(8, 8), IMAGES),
    "Conv2dNormActivation, frozen": (
        lambda: ops.Conv2dNormActivation(8, 8, norm_layer=ops.FrozenBatchNorm2d),
        IMAGES,
    ),
    "ConvBNReLU2d": (lambda: ops.ConvBNReLU2d(8, 8, 3, padding="same"), IMAGES),
    "ConvTranspose2dNormActivation": (lambda: ops.ConvTranspose2dNormActivation(8, 4), IMAGES),
    "Conv3dNormActivation": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), ops.Conv3dNormActivation(2, 4)),
        IMAGES,
    ),
    "FeaturePyramidNetwork": (Levels, IMAGES),
    "FrozenBatchNorm2d": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3), ops.FrozenBatchNorm2d(8)),
        IMAGES,
    ),
    "MLP": (lambda: ops.MLP(16, [8, 4]), IMAGES),
    "PSRoIAlign": (lambda: Call(ops.PSRoIAlign(2, 1.0, 2)), ROIS),
    "PSRoIPool": (lambda: Call(ops.PSRoIPool((4, 2), 1.0)), ROIS),
    "RoIAlign": (lambda: Call(ops.RoIAlign(3, 1.0, 2)), ROIS),
    "MultiScaleRoIAlign": (Pyramid, ROIS),
    "RoIAlign, maximum": (lambda: Call(ops.RoIAlign(3, 1.0, 2, pool_mode="max")), ROIS),
    "RoIAlignRotated": (
        lambda: Call(lambda x, r: ops.roi_align_rotated(x, torch.cat([r, r[:, :1] + 20], 1), 3)),
        ROIS,
    ),
    "RoIPool": (lambda: Call(ops.RoIPool(3, 1.0)), ROIS),
    "SigmoidFocalLoss": (
        lambda: Call(ops.SigmoidFocalLoss()),
        ((image(), image().sigmoid()), (image(3), image(3).sigmoid())),
    ),
    "SigmoidFocalLoss, labels": (
        lambda: Call(ops.SigmoidFocalLoss(reduction="sum")),
        ((image(), labels(1)), (image(3), labels(3))),
    ),
    "SoftmaxFocalLoss": (
        lambda: Call(ops.SoftmaxFocalLoss(alpha=torch.ones(16))),
        ((image(), labels(1)), (image(3), labels(3))),
    ),
    "roi_align, boxes of an image": (
        lambda: Call(lambda x, r: ops.roi_align(x, [r[:, 1:]], 3, aligned=True)),
        ROIS,
    ),
    "multiscale_roi_align": (
        lambda: Call(
            lambda x, r: ops.multiscale_roi_align(
                [x, x[..., ::2, ::2]], r, 3, [1, 0.5], canonical_scale=6
            )
        ),
        ROIS,
    ),
    "box_iou": (lambda: Call(lambda b: ops.box_iou(b, b.detach() + 1)), BOXES),
    "box_iou_3d": (
        lambda: Call(lambda b: ops.box_iou_3d(solid(b), solid(b).flip(0))),
        BOXES,
    ),
    "box_iou_rotated": (
        lambda: Call(lambda b: ops.box_iou(b, b.flip(0), "xywhr")),
        ((rois(2).flip(1),), (rois(5).flip(1),)),
    ),
    "complete_box_iou": (lambda: Call(lambda b: ops.complete_box_iou(b, b.detach() + 1)), BOXES),
    "complete_box_iou_loss": (
        lambda: Call(lambda b: ops.complete_box_iou_loss(b, b.flip(0))),
        BOXES,
    ),
    "distance_box_iou": (lambda: Call(lambda b: ops.distance_box_iou(b, b.detach() + 1)), BOXES),
    "distance_box_iou_loss": (
        lambda: Call(lambda b: ops.distance_box_iou_loss(b, b.flip(0))),
        BOXES,
    ),
    "generalized_box_iou": (
        lambda: Call(lambda b: ops.generalized_box_iou(b, b.detach() + 1)),
        BOXES,
    ),
    "generalized_box_iou_loss": (
        lambda: Call(lambda b: ops.generalized_box_iou_loss(b, b.flip(0))),
        BOXES,
    ),
    "masks_to_boxes": (
        lambda: Call(lambda x: ops.masks_to_boxes(x[:, 0] > 2) * x.sum()),
        IMAGES,
    ),
    "conv_bn_relu": (lambda: Call(lambda x: ops.conv_bn_relu(x, W, padding=1, residual=x)), IMAGES),
    "conv_transpose2d": (lambda: Call(lambda x: ops.conv_transpose2d(x, W, stride=2)), IMAGES),
    "conv_transpose2d_bn_relu": (
        lambda: Call(
            lambda x: ops.conv_transpose2d_bn_relu(x, W, running_mean=C, running_var=C, stride=2)
        ),
        IMAGES,
    ),
    "batch_norm_relu": (lambda: Call(lambda x: ops.batch_norm_relu(x, C, C, C, C)), IMAGES),
    "deform_conv2d": (
        lambda: Call(lambda x, o: ops.deform_conv2d(x, o, W, C, padding=1, mask=o[:, :9])),
        ((image(), offsets()), (image(3), offsets(3))),
    ),
    "squeeze_excitation": (
        lambda: Call(lambda x: ops.squeeze_excitation(x, W[:, :, 0, 0], None, W[:, :, 0, 0], C)),
        IMAGES,
    ),
    "SqueezeExcitation": (lambda: ops.SqueezeExcitation(8, 4), IMAGES),
    "max_pool2d_with_indices": (
        lambda: Call(lambda x: ops.max_pool2d_with_indices(x, 2)[0]),
        IMAGES,
    ),
    "max_unpool2d": (
        lambda: Call(lambda x: ops.max_unpool2d(*ops.max_pool2d_with_indices(x, 2), 2)),
        IMAGES,
    ),
    "linear_act": (lambda: Call(lambda x: ops.linear_act(x, torch.eye(16, 16))), IMAGES),
    "softmax_focal_loss": (
        lambda: Call(lambda x, t: ops.softmax_focal_loss(x, t.softmax(-1), reduction="mean")),
        ((image(), image()), (image(3), image(3))),
    ),
}


def saved_and_loaded(traced: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_trace_and_save(case: str, training: bool):
    make, (first, second) = CASES[case]
    torch.manual_seed(0)
    module = make().train(training)
    # traced in training it would have to be compared after an update of the running statistics
    traced = torch.jit.trace(module, first, check_trace=not training)
    loaded = saved_and_loaded(traced)
    module = copy.deepcopy(module)
    loaded.load_state_dict(module.state_dict())
    for inputs in (first, second):
        expected, actual = module(*inputs), loaded(*inputs)
        numerics.assert_matches(actual, expected)
        for a, b in zip(
            torch.autograd.grad(actual.square().sum(), loaded.parameters()),
            torch.autograd.grad(expected.square().sum(), module.parameters()),
            strict=True,
        ):
            numerics.assert_matches(a, b)
    for name, buffer in module.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], buffer), name


@pytest.mark.parametrize(
    "case",
    ["Conv2dNormActivation", "ConvTranspose2dNormActivation", "SigmoidFocalLoss", "conv_bn_relu"],
)
def test_a_trace_keeps_autocast(case: str):
    make, (first, second) = CASES[case]
    module = make().eval()
    # a convolution makes its input bfloat16, a loss its result float32
    dtype = torch.bfloat16 if case == "SigmoidFocalLoss" else torch.float32
    (x, *rest), (y, *others) = first, second
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        traced = torch.jit.trace(module, (x.to(dtype), *rest))
        expected = module(y.to(dtype), *others)
    with torch.no_grad():
        actual = traced(y.to(dtype), *others)
    assert actual.dtype == expected.dtype != dtype
    numerics.assert_matches(actual, expected)


def test_trace_without_gradients_records_the_same():
    module = ops.Conv2dNormActivation(8, 8).eval()
    traced = torch.jit.trace(module, image())
    with torch.no_grad():
        again = torch.jit.trace(module, image())
    kinds = [[node.kind() for node in t.inlined_graph.nodes()] for t in (traced, again)]
    assert kinds[0] == kinds[1] and "fastvision::conv_bn_relu_traced" in kinds[0]


def test_trace_nms():
    boxes, scores = rois(30)[:, 1:], torch.rand(30)
    classes = torch.arange(30) % 3

    def keep(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        padded, _ = ops.batched_nms_padded(
            boxes[None], scores[None], classes[None].float(), 0.5, max_output=9
        )
        kept = ops.batched_nms(boxes, scores, classes, 0.5, score_threshold=0.2, max_output=9)
        return ops.nms(boxes, scores, 0.5), kept, padded

    traced = torch.jit.trace(keep, (boxes[:0], scores[:0], classes[:0]))
    assert all(map(torch.equal, traced(boxes, scores, classes), keep(boxes, scores, classes)))


@pytest.mark.parametrize(
    "function",
    [
        lambda b, s, c: (ops.matrix_nms(b, s, idxs=c),),
        lambda b, s, c: ops.nms_match(b, s, 0.5, idxs=c),
        lambda b, s, c: ops.soft_nms(b, s, 0.5, idxs=c.float()),
    ],
    ids=["matrix_nms", "nms_match", "soft_nms"],
)
def test_trace_results_of_any_size(function: Callable[..., tuple[Tensor, ...]]):
    inputs = rois(30)[:, 1:], torch.rand(30), torch.arange(30) % 3
    traced = torch.jit.trace(function, tuple(x[:0] for x in inputs))
    assert all(map(torch.equal, traced(*inputs), function(*inputs)))


def test_trace_masks():
    def overlap(masks: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        iou = ops.mask_iou(masks, masks)
        return iou, ops.mask_nms(masks, scores, 0.5), ops.mask_matrix_nms(masks, scores)

    inputs = image()[0] > 0.5, torch.rand(8)
    traced = torch.jit.trace(overlap, tuple(x[:0] for x in inputs))
    assert all(map(torch.equal, traced(*inputs), overlap(*inputs)))


def test_trace_nms_rotated():
    boxes, scores, classes = rois(30).flip(1), torch.rand(30), torch.arange(30) % 3

    def keep(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = ops.batched_nms_rotated(boxes, scores, classes, 0.3)
        in_space = ops.nms_3d(solid(boxes[:, :4]), scores, 0.1, idxs=classes)
        return ops.nms_rotated(boxes, scores, 0.3), kept, in_space

    traced = torch.jit.trace(keep, (boxes[:0], scores[:0], classes[:0]))
    assert all(map(torch.equal, traced(boxes, scores, classes), keep(boxes, scores, classes)))


def test_trace_weighted_boxes_fusion():
    def fuse(boxes: Tensor, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lists = [boxes, boxes.flip(0)], [scores, scores], [classes, classes.flip(0)]
        return ops.weighted_boxes_fusion(*lists)

    first, second = (
        (rois(count)[:, 1:], torch.rand(count), torch.arange(count) % 3) for count in (5, 30)
    )
    traced = torch.jit.trace(fuse, first, check_trace=False)
    assert all(map(torch.equal, traced(*second), fuse(*second)))


def test_tracing_finds_no_sizes_that_become_constants(recwarn: pytest.WarningsRecorder):
    for case in ("Conv2dNormActivation", "RoIAlign", "SigmoidFocalLoss", "batch_norm_relu"):
        make, (first, _) = CASES[case]
        torch.jit.trace(make().eval(), first)
    assert not [w for w in recwarn if issubclass(w.category, torch.jit.TracerWarning)]


def test_what_is_wrong_is_an_error_of_the_trace():
    with pytest.raises(ValueError, match="activation must be one of"):
        torch.jit.trace(lambda x: ops.conv_bn_relu(x, W, activation="tanh"), image())


MODULES: dict[str, Callable[[], nn.Module]] = {
    "Conv2dNormActivation": lambda: ops.Conv2dNormActivation(8, 8),
    "Conv3dNormActivation": lambda: ops.Conv3dNormActivation(8, 8),
    "ConvBNReLU2d": lambda: ops.ConvBNReLU2d(8, 8, 3),
    "ConvTranspose2dNormActivation": lambda: ops.ConvTranspose2dNormActivation(8, 8),
    "DropBlock2d": lambda: ops.DropBlock2d(0.1, 3),
    "DropBlock3d": lambda: ops.DropBlock3d(0.1, 3),
    "FeaturePyramidNetwork": lambda: ops.FeaturePyramidNetwork([8], 8),
    "DeformConv2d": lambda: ops.DeformConv2d(8, 8, 3),
    "FrozenBatchNorm2d": lambda: ops.FrozenBatchNorm2d(8),
    "MLP": lambda: ops.MLP(8, [8]),
    "MultiScaleRoIAlign": lambda: ops.MultiScaleRoIAlign(["0"], 7, 2),
    "Permute": lambda: ops.Permute([0, 2, 1]),
    "PSRoIAlign": lambda: ops.PSRoIAlign(7, 1.0, 2),
    "PSRoIPool": lambda: ops.PSRoIPool(7, 1.0),
    "RoIAlign": lambda: ops.RoIAlign(7, 1.0, 2),
    "RoIAlignRotated": lambda: ops.RoIAlignRotated(7, 1.0),
    "RoIPool": lambda: ops.RoIPool(7, 1.0),
    "SigmoidFocalLoss": ops.SigmoidFocalLoss,
    "SoftmaxFocalLoss": ops.SoftmaxFocalLoss,
    "StochasticDepth": lambda: ops.StochasticDepth(0.1, "row"),
}


def refusal(name: str) -> str:
    return (
        rf"^torch\.jit\.script cannot compile fastvision\.ops\.{name}: use torch\.jit\.trace, or "
        r"torchvision's own functions and modules after fastvision\.enable\(\)$"
    )


@pytest.mark.parametrize("name", ops.__all__)
def test_script(name: str):
    public: Any = MODULES[name]() if name in MODULES else getattr(ops, name)
    with pytest.raises(RuntimeError, match=refusal(name)):
        torch.jit.script(public)
    if isinstance(public, nn.Module):
        with pytest.raises(RuntimeError, match=refusal(name)):
            torch.jit.script(nn.Sequential(nn.ReLU(), public))


def uses_nms(boxes: Tensor, scores: Tensor) -> Tensor:
    return ops.nms(boxes, scores, 0.5)


def test_script_of_a_caller():
    with pytest.raises(RuntimeError, match="use torch.jit.trace, or torchvision's own"):
        torch.jit.script(uses_nms)
