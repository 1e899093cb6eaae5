"""Overlaps of masks and suppression by them: every comparison is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastvision import reference
from fastvision._device import triton_missing
from fastvision.ops import mask_iou, mask_matrix_nms, mask_nms, matrix_nms
from fastvision.testing import cases
from fastvision.testing.marks import needs_library
from fastvision.testing.nms import expect, scores_for
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id
from fastvision.testing.threads import same_for_threads

pytestmark = pytest.mark.usefixtures("poisoned_memory")
IOU, NMS = torch.ops.fastvision.mask_iou.default, torch.ops.fastvision.mask_nms.default
# rows shorter and longer than a word, of several words, and without a pixel
SIZES = [(1, 1), (5, 31), (7, 64), (3, 65), (20, 200), (0, 5), (4, 0)]


def rectangles(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[count, height, width] masks of boxes with a few holes, among them empty and full ones."""
    g = cases.generator(seed)
    row = torch.rand(count, 2, generator=g).sort(1)[0][..., None, None] * (height + 1)
    column = torch.rand(count, 2, generator=g).sort(1)[0][..., None, None] * (width + 1)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    masks = (y >= row[:, 0]) & (y < row[:, 1]) & (x >= column[:, 0]) & (x < column[:, 1])
    masks &= torch.rand(count, height, width, generator=g) < 0.9
    masks[::7], masks[1::7] = False, True
    return masks


def test_known_numbers(backend):
    masks = torch.zeros(4, 4, 6, dtype=torch.bool, device=backend.device)
    masks[0, :2, :4] = True  # 8 pixels
    masks[1, 1:, 2:] = True  # 12 pixels, 2 of them shared
    masks[2, 3, :2] = True
    iou = mask_iou(masks, masks[:3], backend=backend.name)
    expected = [[1, 2 / 18, 0], [2 / 18, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert torch.equal(iou.cpu(), torch.tensor(expected))
    scores = torch.tensor([0.5, 0.9, 0.7, 0.1], device=backend.device)
    kept = {
        t: mask_nms(masks, scores, t, backend=backend.name).tolist() for t in (0.1, 2 / 18, 0.5)
    }
    assert kept == {0.1: [1, 2, 3], 2 / 18: [1, 2, 0, 3], 0.5: [1, 2, 0, 3]}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_iou(backend, size):
    masks1, masks2 = rectangles(9, *size), rectangles(20, *size, seed=1)
    expected = reference.mask_iou(masks1, masks2)
    on_device = masks1.to(backend.device), masks2.to(backend.device)
    iou = mask_iou(*on_device, backend=backend.name)
    assert iou.dtype == torch.float32 and torch.equal(iou.cpu(), expected)
    for masks in (masks1, masks2):  # an odd number, an even one
        on_device = masks.to(backend.device)
        iou = mask_iou(on_device, on_device, backend=backend.name)
        assert torch.equal(iou.cpu(), reference.mask_iou(masks, masks))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.only(
    # kernels get scores as an order, so that one size shows their dtypes
    lambda backend, size, dtype: (
        backend.name != "reference"
        and (not backend.interpreted or dtype == torch.float32 or size == SIZES[1])
    )
)
def test_nms(backend, size, dtype):
    count = 24 if backend.interpreted else 60
    masks = rectangles(count, *size)
    for seed in range(2):
        scores, idxs = scores_for(count, seed).to(dtype), cases.classes(count, 3) * 2**40
        for iou_threshold in (0.0, 0.3, 0.7):
            for classes in (None, idxs):
                kept = mask_nms(
                    masks.to(backend.device),
                    scores.to(backend.device),
                    iou_threshold,
                    idxs=None if classes is None else classes.to(backend.device),
                    backend=backend.name,
                )
                expect(kept.cpu(), reference.mask_nms(masks, scores, classes, iou_threshold))


@pytest.mark.parametrize("iou_threshold", [-1.0, -0.0, 0.5, 1.0, math.nan, math.inf])
def test_thresholds(backend, iou_threshold):
    masks, scores = rectangles(20, 8, 40), cases.scores(20)
    masks[5] = masks[6]
    kept = mask_nms(
        masks.to(backend.device), scores.to(backend.device), iou_threshold, backend=backend.name
    )
    expect(kept.cpu(), reference.mask_nms(masks, scores, None, iou_threshold))


def test_reference_against_a_count():
    masks = rectangles(12, 9, 11)
    for one in masks:
        for other in masks:
            union = int((one | other).sum())
            expected = int((one & other).sum()) / union if union else 0.0
            iou = reference.mask_iou(one[None], other[None])
            assert iou.item() == torch.tensor(expected).item()


def test_an_intersection_at_every_pixel(backend):
    height, width = (2, 35) if backend.interpreted else (3, 130)
    pixels = height * width
    single = torch.eye(pixels, dtype=torch.bool).view(pixels, height, width).to(backend.device)
    whole = torch.ones(1, height, width, dtype=torch.bool, device=backend.device)
    iou = mask_iou(single, whole, backend=backend.name)
    assert torch.equal(iou.cpu(), torch.full((pixels, 1), 1 / pixels))
    if not backend.interpreted:
        iou = mask_iou(single, single, backend=backend.name)
        assert torch.equal(iou.cpu(), torch.eye(pixels))


@pytest.mark.parametrize("masks", [(0, 3), (3, 0), (0, 0)])
def test_empty(backend, masks):
    sets = [rectangles(count, 4, 5).to(backend.device) for count in masks]
    assert mask_iou(*sets, backend=backend.name).shape == masks
    kept = mask_nms(sets[0][:0], torch.zeros(0, device=backend.device), 0.5, backend=backend.name)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def test_any_strides_and_bytes(backend):
    masks = rectangles(16, 10, 70)
    expected = reference.mask_iou(masks[::2], masks[1::2])
    scattered = masks.permute(1, 2, 0).contiguous().permute(2, 0, 1).to(backend.device)
    iou = mask_iou(scattered[::2], scattered[1::2], backend=backend.name)
    assert torch.equal(iou.cpu(), expected)
    same = mask_iou(scattered, scattered, backend=backend.name)
    assert torch.equal(same.cpu(), reference.mask_iou(masks, masks))
    if backend.name == "reference":
        return
    # a view of other numbers, where anything but 0 is true
    bytes_ = (masks.to(torch.uint8) * 6).to(backend.device).view(torch.bool)
    assert torch.equal(mask_iou(bytes_[::2], bytes_[1::2], backend=backend.name).cpu(), expected)


@needs_library
def test_threads_do_not_change_the_answer():
    masks, scores = rectangles(300, 40, 90), cases.scores(300)

    def run():
        kept = mask_nms(masks, scores, 0.4, idxs=cases.classes(300, 3))
        return kept, mask_iou(masks, masks[:50]), mask_iou(masks, masks)

    same_for_threads(run, (1, 2, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_of_masks_is_that_of_their_boxes(backend, kernel, dtype):
    """Of boxes on whole pixels, whose overlaps are the same numbers."""
    g = cases.generator(3)
    corner = torch.randint(0, 20, (25, 2), generator=g)
    boxes = torch.cat([corner, corner + torch.randint(1, 20, (25, 2), generator=g)], 1)
    y, x = torch.arange(40)[:, None], torch.arange(40)
    x1, y1, x2, y2 = boxes[..., None, None].unbind(1)
    masks = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    scores, idxs = cases.scores(25).to(dtype), cases.classes(25, 2)
    decayed = mask_matrix_nms(
        masks.to(backend.device),
        scores.to(backend.device),
        idxs=idxs.to(backend.device),
        kernel=kernel,
        backend=backend.name,
    )
    expected = matrix_nms(boxes.float(), scores.float(), idxs=idxs, kernel=kernel)
    assert decayed.dtype == dtype
    # the overlaps of masks are in float32, whatever the scores are in
    if dtype == torch.float64:
        decayed = decayed.float()
    assert_matches(decayed.cpu(), expected)
    assert (expected < scores.float()).any()


def test_errors():
    masks, scores = rectangles(3, 4, 5), torch.rand(3)
    with pytest.raises(TypeError, match=r"masks1 must be of type bool, got torch\.uint8"):
        mask_iou(masks.byte(), masks)
    with pytest.raises(ValueError, match=r"masks2 must have shape \[N, H, W\], got \[4, 5\]"):
        mask_iou(masks, masks[0])
    with pytest.raises(ValueError, match=r"masks2 must have the size of masks1, \[4, 5\], got"):
        mask_iou(masks, masks[:, 1:])
    with pytest.raises(ValueError, match="cuda"):
        mask_iou(masks, masks, backend="cuda")
    for function in (lambda *a, **k: mask_nms(*a, 0.5, **k), mask_matrix_nms):
        with pytest.raises(TypeError, match=r"masks must be of type bool, got torch\.float32"):
            function(masks.float(), scores)
        with pytest.raises(TypeError, match="scores must be float16, .*, got torch.int64"):
            function(masks, scores.long())
        with pytest.raises(ValueError, match=r"scores must have shape \[3\] .*, got \[2\]"):
            function(masks, scores[:2])
        with pytest.raises(ValueError, match=r"idxs must have shape \[3\] .*, got \[1\]"):
            function(masks, scores, idxs=torch.zeros(1))
    with pytest.raises(TypeError, match="iou_threshold must be a number, got"):
        mask_nms(masks, scores, "half")
    with pytest.raises(ValueError, match="kernel must be one of"):
        mask_matrix_nms(masks, scores, kernel="cosine")


@needs_library
def test_errors_of_the_ops():
    masks, scores = rectangles(3, 4, 5), torch.rand(3)
    with pytest.raises(RuntimeError, match="masks1"):
        IOU(masks.byte(), masks)
    with pytest.raises(RuntimeError, match="masks2"):
        IOU(masks, masks[:, 1:])
    with pytest.raises(RuntimeError, match="scores"):
        NMS(masks, scores[:2], None, 0.5)
    with pytest.raises(RuntimeError, match="idxs"):
        NMS(masks, scores, torch.zeros(3), 0.5)


def suppress(masks: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, ...]:
    iou = mask_iou(masks, masks[:2])
    return mask_nms(masks, scores, 0.5, idxs=idxs), iou, mask_matrix_nms(masks, scores, idxs=idxs)


@needs_library
@pytest.mark.parametrize("how", ["eager", "inductor", "export"])
def test_compile_and_export(how):
    class Module(torch.nn.Module):
        def forward(self, masks, scores, idxs):
            return suppress(masks, scores, idxs)

    torch.compiler.reset()
    inputs = rectangles(12, 6, 40), cases.scores(12), cases.classes(12, 3)
    if how == "export":
        program = torch.export.export(Module(), inputs).module()
    else:
        program = torch.compile(Module(), fullgraph=True, backend=how)
    for masks in (inputs[0], torch.ones_like(inputs[0])):  # several kept masks, and one per class
        given = masks, *inputs[1:]
        kept, iou, decayed = program(*given)
        expected = suppress(*given)
        assert torch.equal(kept, expected[0]) and torch.equal(iou, expected[1])
        assert_matches(decayed, expected[2])


@needs_library
@pytest.mark.parametrize("suffix", ["", "_triton"])
@pytest.mark.only(lambda suffix: not suffix or triton_missing() is None)
def test_opcheck(suffix):
    masks, scores = rectangles(9, 4, 40), cases.scores(9)
    if suffix and torch.cuda.is_available():
        masks, scores = masks.cuda(), scores.cuda()
    ops = torch.ops.fastvision
    torch.library.opcheck(getattr(ops, f"mask_iou{suffix}").default, (masks, masks[:4]))
    for idxs in (None, cases.classes(9, 3).to(masks.device)):
        torch.library.opcheck(getattr(ops, f"mask_nms{suffix}").default, (masks, scores, idxs, 0.3))
