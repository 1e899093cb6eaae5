"""Fast R-CNN and Faster R-CNN on VGG-16: torchvision's results for the same layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastvision
from fastvision.models.detection import fast_rcnn_vgg16, faster_rcnn_vgg16
from fastvision.models.detection.faster_rcnn_vgg import SoftmaxRPNHead
from fastvision.models.detection.vgg_parts import truncated_svd

SIZES = (70, 90), (96, 64)


def inputs(dtype=torch.double):
    """Images of two sizes, an object in the first, and proposals."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator, dtype=dtype) for size in SIZES]
    box = torch.tensor([[12.0, 20, 40, 52], [50, 8, 80, 44]], dtype=dtype)
    targets = [
        {"boxes": box, "labels": torch.tensor((2, 3))},
        {"boxes": box[:0], "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    proposals = []
    for height, width in SIZES:
        corners = torch.rand(30, 2, 2, generator=generator, dtype=dtype).sort(1).values
        proposals.append((corners * torch.tensor((width, height), dtype=dtype)).flatten(1))
    proposals[0] = torch.cat((proposals[0], box + 2))
    return images, targets, proposals


def small(builder, **options):
    torch.manual_seed(0)
    defaults = {"base_width": 2, "num_classes": 4, "min_size": 100, "max_size": 140}
    if builder is faster_rcnn_vgg16:
        defaults |= {
            "anchor_sizes": (16, 32, 64),
            "post_nms_top_n": {"training": 50, "testing": 30},
        }
    # weights with which scores and offsets differ
    model = builder(**(defaults | {"score_thresh": 0.2, "dropout": 0.0} | options)).double()
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        nn.init.normal_(layer.weight, std=0.5)
    return model


def losses_and_gradients(model, *arguments):
    torch.manual_seed(1)  # of the samples
    losses = model.train()(*arguments)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(
        sum(losses.values()), list(parameters.values()), allow_unused=True
    )
    return losses, dict(zip(parameters, gradients, strict=True))


class TheirPool(nn.Module):
    def forward(self, features, boxes, sizes):
        ops = pytest.importorskip("torchvision.ops")
        return ops.roi_pool(features["0"], list(boxes), 7, 1 / 16)


def their_heads(heads):
    """torchvision's RoIHeads of the same layers."""
    module = pytest.importorskip("torchvision.models.detection.roi_heads")
    sampler = heads.fg_bg_sampler
    return module.RoIHeads(
        *(TheirPool(), heads.box_head, heads.box_predictor, 0.5, 0.5),
        *(sampler.batch_size_per_image, sampler.positive_fraction, None),
        *(heads.score_thresh, heads.nms_thresh, heads.detections_per_img),
    )


def test_fast_rcnn_is_torchvisions_heads_on_resized_proposals():
    transform = pytest.importorskip("torchvision.models.detection.transform")
    model = small(fast_rcnn_vgg16)
    images, targets, proposals = inputs()
    heads = their_heads(model.roi_heads)
    theirs = transform.GeneralizedRCNNTransform(
        100, 140, model.transform.image_mean, model.transform.image_std
    )
    batch, scaled = theirs(images, targets)
    resized = [
        transform.resize_boxes(boxes, size, new)
        for boxes, size, new in zip(proposals, SIZES, batch.image_sizes, strict=True)
    ]
    losses, gradients = losses_and_gradients(model, images, targets, proposals)
    torch.manual_seed(1)
    _, expected = heads.train()(
        {"0": model.backbone(batch.tensors)}, resized, batch.image_sizes, scaled
    )
    torch.testing.assert_close(losses, expected)
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(sum(expected.values()), list(parameters.values()))
    for name, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(gradients[name], gradient)
    with torch.no_grad():
        found = model.eval()(images, proposals=proposals)
        features = {"0": model.backbone(batch.tensors)}
        answers, _ = heads.eval()(features, resized, batch.image_sizes)
        answers = theirs.eval().postprocess(answers, batch.image_sizes, list(SIZES))
    assert sum(len(one["boxes"]) for one in found) > 10
    torch.testing.assert_close(found, answers)


def test_faster_rcnn_is_torchvisions_with_the_difference_of_two_scores():
    theirs = pytest.importorskip("torchvision.models.detection")
    model = small(faster_rcnn_vgg16)
    images, targets, _ = inputs()
    anchors = theirs.anchor_utils.AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
    head = theirs.rpn.RPNHead(model.backbone.out_channels, 9).double()
    ours = model.rpn.head
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    for name in ("cls_logits.weight", "cls_logits.bias"):
        state[name] = state[name][1::2] - state[name][::2]
    head.load_state_dict(state)
    rpn = theirs.rpn.RegionProposalNetwork(
        *(anchors, head, 0.7, 0.3, 256, 0.5),
        *({"training": 12_000, "testing": 6000}, {"training": 50, "testing": 30}, 0.7),
    )
    transform = theirs.transform.GeneralizedRCNNTransform(
        100, 140, model.transform.image_mean, model.transform.image_std
    )
    reference = theirs.generalized_rcnn.GeneralizedRCNN(
        model.backbone, rpn, their_heads(model.roi_heads), transform
    )
    losses, gradients = losses_and_gradients(model, images, targets)
    expected, wanted = losses_and_gradients(reference, images, targets)
    assert set(losses) == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg",
    }  # fmt: skip
    # torchvision's objectness is float32 there
    torch.testing.assert_close(losses, expected, check_dtype=False)
    for name, gradient in gradients.items():
        if not name.startswith("rpn.head.cls_logits"):
            torch.testing.assert_close(gradient, wanted[name])
        else:  # of the object's score; of the background's the negative
            torch.testing.assert_close(gradient[1::2], wanted[name])
            torch.testing.assert_close(gradient[::2], -wanted[name])
    with torch.no_grad():
        found, answers = model.eval()(images), reference.eval()(images)
    assert sum(len(one["boxes"]) for one in found) > 10
    torch.testing.assert_close(found, answers)


def test_two_scores_are_a_softmax():
    torch.manual_seed(0)
    head = SoftmaxRPNHead(4, 3)
    x = torch.randn(2, 4, 5, 6)
    (logits,), _ = head([x])
    assert logits.shape == (2, 3, 5, 6)
    pairs = head.cls_logits(head.conv(x)).unflatten(1, (3, 2))
    labels = torch.randint(0, 2, logits.shape)
    torch.testing.assert_close(
        F.binary_cross_entropy_with_logits(logits, labels.float()),
        F.cross_entropy(pairs.transpose(1, 2), labels),
    )


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_truncated_svd_is_the_closest_of_its_rank(rank):
    torch.manual_seed(0)
    linear = nn.Linear(20, 12).double()
    layers = truncated_svd(linear, rank)
    product = layers[1].weight @ layers[0].weight
    rest = torch.linalg.svdvals(linear.weight)[rank:]
    torch.testing.assert_close(torch.linalg.norm(product - linear.weight), rest.norm())
    x = torch.randn(3, 20).double()
    torch.testing.assert_close(layers(x), F.linear(x, product, linear.bias))
    for wrong in (0, 13):
        with pytest.raises(ValueError, match="rank must be from 1 to 12"):
            truncated_svd(linear, wrong)


def test_compressed_heads():
    images, _, proposals = inputs()
    model = small(fast_rcnn_vgg16).eval()
    full = copy.deepcopy(model).compress(128, 128)  # all singular values
    half = copy.deepcopy(model).compress(64, 32)
    with torch.no_grad():
        expected = model(images, proposals=proposals)
        torch.testing.assert_close(full(images, proposals=proposals), expected)
        assert len(half(images, proposals=proposals)) == 2
    fc6 = half.roi_heads.box_head.fc6
    assert [layer.out_features for layer in fc6] == [64, 128]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("builder", [fast_rcnn_vgg16, faster_rcnn_vgg16])
def test_fused(builder, batch_norm):
    images, _, proposals = inputs()
    given = {"proposals": proposals} if builder is fast_rcnn_vgg16 else {}
    model = small(builder, batch_norm=batch_norm).eval()
    fused = fastvision.fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(fused(images, **given), model(images, **given))


def test_bfloat16():
    images, _, proposals = inputs(torch.bfloat16)
    model = small(fast_rcnn_vgg16).eval().bfloat16()
    with torch.no_grad():
        found = model(images, proposals=[boxes.float() for boxes in proposals])
    assert len(found[0]["boxes"]) and found[0]["boxes"].isfinite().all()


def test_proposes_by_itself():
    pytest.importorskip("cv2.ximgproc")
    images, targets, _ = inputs(torch.float)
    model = small(fast_rcnn_vgg16).float()
    assert all(loss.isfinite() for loss in model(images, targets).values())
    with torch.no_grad():
        given = model.proposals(images)
        torch.testing.assert_close(model.eval()(images), model(images, proposals=given))


def test_no_proposals():
    images, targets, proposals = inputs()
    none = [proposals[0][:0], proposals[1]]
    model = small(fast_rcnn_vgg16)
    assert all(loss.isfinite() for loss in model(images, targets, none).values())
    empty = [{key: value[:0] for key, value in target.items()} for target in targets]
    losses = model(images, empty, [boxes[:0] for boxes in proposals])
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    with torch.no_grad():
        found = model.eval()(images, proposals=none)
        nothing = model(images, proposals=[none[0]] * 2)
    assert found[0]["boxes"].shape == (0, 4) and len(found[1]["boxes"])
    assert [one["scores"].shape for one in nothing] == [(0,), (0,)]


@pytest.mark.parametrize(
    "proposals, error",
    [([torch.zeros(3, 4)], ValueError), ([torch.zeros(4)] * 2, ValueError), ([0, 0], TypeError)],
)
def test_proposals_that_do_not_fit(proposals, error):
    images, targets, _ = inputs()
    with pytest.raises(error, match="proposals"):
        small(fast_rcnn_vgg16)(images, targets, proposals)
    with pytest.raises(AssertionError, match="targets"):
        small(fast_rcnn_vgg16)(images)
