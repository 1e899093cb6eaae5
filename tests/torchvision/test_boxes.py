"""torchvision's functions on boxes under enable()."""

import pytest
import torch
import torchvision

import fastvision

PAIRWISE = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")


def boxes(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator, dtype=dtype) * 50
    sides = torch.rand(count, 2, generator=generator, dtype=dtype) * 30 + 1
    return torch.cat([corners, corners + sides], 1)


@pytest.mark.parametrize("name", (*PAIRWISE, *LOSSES))
def test_same_values_and_gradients(name):
    results = []
    for on in (False, True):
        first, second = boxes(20, 0).requires_grad_(), boxes(20, 1).requires_grad_()
        if on:
            with fastvision.enabled():
                result = getattr(torchvision.ops, name)(first, second)
        else:
            result = getattr(torchvision.ops, name)(first, second)
        assert result.dtype == torch.float64
        weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view(result.shape)
        results.append([result, *torch.autograd.grad((result * weights).sum(), [first, second])])
    for stock, ours in zip(*results, strict=True):
        assert stock.abs().max() > 0
        torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", (*PAIRWISE, *LOSSES))
@pytest.mark.usefixtures("needs_kernels")
def test_our_kernels_run(name, on, stock, our_ops):
    first, second = boxes(30, 0, torch.float32), boxes(30, 1, torch.float32)
    function = getattr(torchvision.ops, name)
    expected = stock(lambda: getattr(torchvision.ops, name)(first, second))
    torch.testing.assert_close(function(first, second), expected)
    op = "box_iou_loss" if name in LOSSES else "box_iou"
    assert our_ops(function, first, second) == {f"fastvision::{op}"}


@pytest.mark.usefixtures("needs_kernels")
def test_our_kernel_for_masks_runs(on, our_ops):
    assert our_ops(torchvision.ops.masks_to_boxes, torch.ones(2, 3, 4)) == {
        "fastvision::masks_to_boxes"
    }


def test_masks():
    masks = torch.zeros(3, 9, 11)
    masks[0, 2:5, 3:7], masks[1, 8, 10] = 1, 0.5
    expected = torchvision.ops.masks_to_boxes(masks)
    with fastvision.enabled():
        assert torch.equal(torchvision.ops.masks_to_boxes(masks), expected)
        assert torchvision.ops.masks_to_boxes(masks[:0]).shape == (0, 4)


def test_rotated_boxes_have_a_gradient():
    first = torch.cat([boxes(12, 0, torch.float32), torch.linspace(-90, 90, 12)[:, None]], 1)
    second = first.roll(1, 0)
    expected = torchvision.ops.box_iou(first, second, "cxcywhr")
    assert (expected > 0).any()
    with fastvision.enabled():
        overlap = torchvision.ops.box_iou(first.requires_grad_(), second, "cxcywhr")
        raw = torch.ops.torchvision.box_iou_rotated(first.detach(), second.detach())
    torch.testing.assert_close(overlap, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(overlap.sum(), first)
    assert gradient.abs().max() > 0 and gradient.isfinite().all()


@pytest.mark.parametrize("name", (*PAIRWISE[2:], *LOSSES))
def test_eps_may_be_a_tensor(name):
    first, second, eps = boxes(9, 0), boxes(9, 1), torch.tensor(0.5, dtype=torch.float64)
    expected = getattr(torchvision.ops, name)(first, second, eps=eps)
    with fastvision.enabled():
        actual = getattr(torchvision.ops, name)(first, second, eps=eps)
    torch.testing.assert_close(actual, expected)
    for wrong in (None, torch.ones(2), torch.tensor(1j)):
        with pytest.raises(TypeError, match="eps must be a number"):
            getattr(fastvision.ops, name)(first, second, eps=wrong)


def test_rotated_operator_refuses_as_torchvisions():
    good = torch.rand(2, 5)
    for wrong in (torch.rand(5), torch.rand(1, 2, 5), torch.rand(2, 4), torch.ones(2, 5).bool()):
        for pair in ((wrong, good), (good, wrong)):
            with pytest.raises(RuntimeError, match="boxes1|boxes2|not implemented"):
                torch.ops.torchvision.box_iou_rotated(*pair)
            with (
                fastvision.enabled(),
                pytest.raises(RuntimeError, match="boxes[12] must (have|be)"),
            ):
                torch.ops.torchvision.box_iou_rotated(*pair)


def test_what_we_do_not_take_stays():
    integers = boxes(4, 0).long()
    expected = torchvision.ops.box_iou(integers, integers)
    with fastvision.enabled():
        assert torch.equal(torchvision.ops.box_iou(integers, integers), expected)
        with pytest.raises(ValueError, match="fmt|format"):
            torchvision.ops.box_iou(boxes(2, 0), boxes(2, 0), fmt="yxyx")
        compiled = torch.compile(torchvision.ops.box_iou, backend="eager", fullgraph=True)
        torch.testing.assert_close(
            compiled(boxes(4, 0), boxes(4, 1)), torchvision.ops.box_iou(boxes(4, 0), boxes(4, 1))
        )
