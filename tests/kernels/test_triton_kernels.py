"""The Triton kernels against the reference, in Triton's interpreter if there is no device."""

import pytest
import torch
from torch.library import opcheck

from fastvision import _device, ops, reference
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.nms import ROTATED, chain_boxes, grid_boxes, turned_boxes
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.roi_align import EMPTY, ODD_ROIS, UNUSABLE_ROIS

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not _device.triton_interpreted(), reason="needs CUDA or TRITON_INTERPRET=1"
)
HEIGHT, WIDTH = 52, 72  # those of ODD_ROIS
# the interpreter computes with infinities and NaN as they come
pytestmark = [
    pytestmark,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("poisoned_memory"),
]


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks and tiles from few boxes."""
    from fastvision.kernels import nms

    monkeypatch.setattr(nms, "BLOCK", 64)
    monkeypatch.setattr(nms, "TILE", 16)
    monkeypatch.setattr(nms, "ROTATED_BLOCK", 32)
    monkeypatch.setattr(nms, "ROTATED_TILE", 16)


def pyramid(dtype, channels_last, levels=3, images=2, channels=3):
    maps, scales = cases.pyramid(
        images, channels, height=HEIGHT, width=WIDTH, levels=levels, dtype=dtype,
        channels_last=channels_last,
    )  # fmt: skip
    return [x.to(DEVICE) for x in maps], scales


def make_rois(count, images=2, max_size=24):
    return cases.rois(count, images, height=HEIGHT, width=WIDTH, min_size=4, max_size=max_size).to(
        DEVICE
    )


def check_roi_align(maps, rois, size, scales, *args, **kwargs):
    """Forward and backward of the Triton kernels against autograd of the reference in float64."""
    maps = [x.detach().requires_grad_() for x in maps]
    exact = [x.detach().double().requires_grad_() for x in maps]
    output = ops.multiscale_roi_align(maps, rois, size, scales, *args, backend="triton", **kwargs)
    # the reference refuses a batch index out of range on the CPU, the kernels give zeros
    known = (rois[:, 0] >= 0) & (rois[:, 0] < maps[0].shape[0])
    expected = ops.multiscale_roi_align(
        exact, rois[known].double(), size, scales, *args, backend="reference", **kwargs
    )
    assert output.dtype == maps[0].dtype
    assert_matches(output[known], expected)
    assert not output[~known].any()

    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad[known].double())
    for x, y in zip(maps, exact, strict=True):
        assert x.grad.stride() == x.stride()
        # a pixel's gradient sums over the rois, each term in float32
        assert_matches(x.grad, y.grad, scale=2)
    return output


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_roi_align(dtype, channels_last):
    maps, scales = pyramid(dtype, channels_last)
    rois = make_rois(4, max_size=32)
    output = check_roi_align(maps, rois, (2, 3), scales, 2, True, canonical_scale=32)
    assert output.is_contiguous(memory_format=memory_format(channels_last))


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 3])
def test_roi_align_sampling(sampling_ratio, aligned):
    maps, scales = pyramid(torch.float32, False, levels=1)
    rois = make_rois(3, max_size=40)
    check_roi_align(maps, rois, 2, scales, sampling_ratio, aligned)


def test_roi_align_scale_is_a_double():
    maps, _ = pyramid(torch.float64, False, levels=1)
    rois = make_rois(3)
    check_roi_align(maps, rois, 2, [1 / 3], 2, True)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@LAYOUTS
def test_roi_align_odd_rois(channels_last, sampling_ratio):
    rois = torch.cat([ODD_ROIS, UNUSABLE_ROIS]).to(DEVICE)
    if sampling_ratio == 0:
        rois = rois[:-2]  # beyond 2**20 samples: refused by the reference, see below
    maps, scales = pyramid(torch.float32, channels_last, levels=2)
    check_roi_align(maps, rois, 2, scales, sampling_ratio, True, canonical_scale=16)


def test_roi_align_too_many_samples_gives_zeros():
    maps, scales = pyramid(torch.float32, True, levels=1)
    rois = torch.tensor([[0, -1e30, 0, 1e30, 20], [0, 0, 0, 1e9, 1e9]], device=DEVICE)
    x = maps[0].requires_grad_()
    output = ops.roi_align(x, rois, 2, scales[0], 0, True, backend="triton")
    output.sum().backward()
    assert not output.any() and not x.grad.any()


def test_roi_align_leaves_out_what_has_no_weight():
    x = torch.arange(64.0, device=DEVICE).view(1, 1, 8, 8)
    x[..., 4:] = float("nan")
    rois = torch.tensor([[0, 2.0, 0, 5, 4], [0, 4, 4, 8, 8]], device=DEVICE)
    output = ops.roi_align(x, rois, 1, 1.0, 1, True, backend="triton")
    # one sample at (1.5, 3), between two rows and on the last column before the NaN
    assert output[0].item() == 15.0
    assert output[1].isnan().all()

    x = x.detach().requires_grad_()
    output = ops.roi_align(x, rois, 1, 1.0, 1, True, backend="triton")
    output.backward(torch.tensor([1.0, float("inf")], device=DEVICE).view(2, 1, 1, 1))
    assert x.grad[..., :4, :4].isfinite().all()
    assert x.grad.isinf().sum() == 4


def test_roi_align_backward_is_deterministic_and_takes_any_strides():
    maps, scales = pyramid(torch.float32, True, levels=1)
    rois = make_rois(4)
    x = maps[0].requires_grad_()
    output = ops.roi_align(x, rois, 2, scales[0], 2, backend="triton")
    grad = torch.randn_like(output)
    first = torch.autograd.grad(output, x, grad, retain_graph=True)[0]
    second = torch.autograd.grad(output, x, grad.contiguous(), retain_graph=True)[0]
    assert torch.equal(first, second)
    expanded = torch.autograd.grad(output, x, grad[:1, :1, :1, :1].expand_as(output))[0]
    assert expanded.isfinite().all()


@pytest.mark.parametrize(("shape", "count", "bins"), [*EMPTY, ((0, 3, 8, 8), 2, (2, 2))])
def test_roi_align_empty(shape, count, bins):
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 4, 4]], device=DEVICE).expand(count, 5)
    output = ops.roi_align(x, rois, bins, backend="triton")
    assert output.shape == (count, shape[1], *bins) and not output.any()
    output.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any()


def test_roi_align_opcheck_and_compile():
    maps, scales = pyramid(torch.float32, False, levels=2, images=1)
    rois = make_rois(2, images=1)
    options = (scales, 2, 2, 2, True, 16.0, 4.0, 2)
    opcheck(torch.ops.fastvision.roi_align_triton.default, (maps, rois, *options))
    grad = torch.randn(2, 3, 2, 2, device=DEVICE)
    sizes = [1, *maps[0].shape[2:], *maps[1].shape[2:]]
    opcheck(
        torch.ops.fastvision.roi_align_backward_triton.default,
        (grad, rois, sizes, scales, 2, True, 16.0, 4.0, 2, True),
    )

    def pool(x, rois):
        return ops.roi_align(x, rois, 2, scales[0], 2, backend="triton")

    x, y = maps[0].requires_grad_(), maps[0].detach().requires_grad_()
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")(x, rois)
    expected = pool(y, rois)
    assert torch.equal(compiled, expected)
    compiled.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad, y.grad)


def check_nms(boxes, scores, idxs, iou_threshold):
    boxes, scores = boxes.to(DEVICE), scores.to(DEVICE)
    idxs = None if idxs is None else idxs.to(DEVICE)
    expected = reference.nms(boxes, scores, idxs, iou_threshold)
    if idxs is None:
        kept = ops.nms(boxes, scores, iou_threshold, backend="triton")
    else:
        kept = ops.batched_nms(boxes, scores, idxs, iou_threshold, backend="triton")
    assert kept.tolist() == expected.tolist()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_classes", [None, 2, 30])
@pytest.mark.parametrize("make", [cases.clustered_boxes, grid_boxes, chain_boxes])
def test_nms(make, num_classes):
    boxes, scores = make(150), cases.scores(150)
    if make is chain_boxes:
        scores = scores.sort(descending=True).values
    idxs = None if num_classes is None else cases.classes(150, num_classes) - 1
    check_nms(boxes, scores, idxs, 0.4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_classes", [None, 2, 30])
def test_nms_rotated(num_classes):
    """Chains and clusters over several blocks."""
    from fastvision.kernels import nms

    chain = turned_boxes(chain_boxes(60), 0)
    chain[:, 4] = 180.0
    boxes = torch.cat([chain, ROTATED["clustered"](60, 1)]).to(DEVICE)
    scores = torch.linspace(1, 0, 120, device=DEVICE)
    idxs = None if num_classes is None else cases.classes(120, num_classes).to(DEVICE)
    kept = ops.nms_rotated(boxes, scores, 0.4, idxs=idxs, backend="triton")
    expected = ops.nms_rotated(
        boxes.cpu(),
        scores.cpu(),
        0.4,
        idxs=None if idxs is None else idxs.cpu(),
        backend="reference",
    )
    assert kept.tolist() == expected.tolist()
    for most in (5, 40):  # the op has no limit, but its kernels do
        kept = nms.launch_nms(boxes, scores, idxs, 0.4, None, most)
        assert kept.tolist() == expected[:most].tolist()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("iou_threshold", [-0.5, 0.0, 1 / 3, 0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nms_thresholds(dtype, iou_threshold):
    check_nms(grid_boxes(90).to(dtype), cases.scores(90).to(dtype), None, iou_threshold)


@pytest.mark.usefixtures("small_blocks")
def test_nms_ties_and_bad_boxes():
    boxes = grid_boxes(100)
    boxes[10, 0] = boxes[20, 3] = float("nan")
    boxes[30, 2] = float("inf")
    boxes[40] = float("inf")
    boxes[50] = torch.tensor([10, 10, 5, 5])
    scores = torch.randint(0, 4, (100,), generator=cases.generator(9)).float()
    scores[60] = scores[70] = float("nan")
    scores[80] = -0.0
    check_nms(boxes, scores, None, 0.3)
    check_nms(boxes, scores, torch.arange(100) % 3 * 2**40 - 2**62, 0.3)


@pytest.mark.parametrize("count", [0, 1, 2, 600])
def test_nms_sizes(count):
    boxes, scores = cases.clustered_boxes(count), cases.scores(count)
    check_nms(boxes, scores, None, 0.5)
    check_nms(boxes, scores, torch.zeros(count, dtype=torch.int32), 0.5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("max_output", [0, 5, 100])
@pytest.mark.parametrize("score_threshold", [None, 0.4, 2.0])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_nms_padded(num_classes, score_threshold, max_output):
    boxes = torch.stack([cases.clustered_boxes(90, seed=seed, objects=5) for seed in (0, 1)])
    scores = torch.stack([cases.scores(90, seed=seed) for seed in (2, 3)])
    scores[1, 3] = float("nan")
    idxs = None if num_classes is None else cases.classes(180, num_classes).view(2, 90).to(DEVICE)
    args = (boxes.to(DEVICE), scores.to(DEVICE), idxs, 0.5)
    options = {"score_threshold": score_threshold, "max_output": max_output}
    indices, counts = ops.batched_nms_padded(*args, **options, backend="triton")
    expected = reference.nms_padded(*args, **options)
    assert torch.equal(indices, expected[0])
    assert torch.equal(counts, expected[1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("max_output", [0, 5, 70, 100])
@pytest.mark.parametrize("num_classes", [None, 2])
def test_nms_ends_with_the_last_box_kept(num_classes, max_output):
    boxes, scores = cases.uniform_boxes(200, max_size=40).to(DEVICE), cases.scores(200).to(DEVICE)
    idxs = None if num_classes is None else cases.classes(200, num_classes).to(DEVICE)
    kept = torch.ops.fastvision.nms_triton(boxes, scores, idxs, 0.1, 0.05, max_output)
    assert torch.equal(kept, reference.nms(boxes, scores, idxs, 0.1, 0.05, max_output))


def test_nms_opcheck_and_compile():
    boxes, scores = cases.clustered_boxes(40).to(DEVICE), cases.scores(40).to(DEVICE)
    idxs = cases.classes(40, 3).to(DEVICE)
    opcheck(torch.ops.fastvision.nms_triton.default, (boxes, scores, idxs, 0.5))
    padded = (boxes[None], scores[None], None, 0.5, 0.1, 20)
    opcheck(torch.ops.fastvision.nms_padded_triton.default, padded)

    def suppress(boxes, scores, idxs):
        return ops.batched_nms(boxes, scores, idxs, 0.5, backend="triton") + 0

    compiled = torch.compile(suppress, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(boxes, scores, idxs), suppress(boxes, scores, idxs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "numbers", "softmax"])
def test_focal_loss(kind, dtype, monkeypatch):
    """Several programs, whose number is not a multiple of what the last one adds up at once."""
    from fastvision.kernels import focal_loss
    from fastvision.kernels.configs import focal_loss as config

    monkeypatch.setattr(focal_loss, "SUM_BLOCK", 2)
    monkeypatch.setattr(config, "BLOCK_ROWS", 16)
    monkeypatch.setattr(config, "BLOCK_NUMBERS", 256)
    monkeypatch.setattr(config, "softmax_tile", lambda classes: (16, 32, 4))
    x = (4 * cases.feature_map(45, 37)).to(dtype).to(DEVICE)
    targets = cases.classes(45, 37).to(DEVICE)
    targets[::4] = -100
    if kind == "numbers":
        targets = (targets[:, None] == torch.arange(37, device=DEVICE)).to(dtype)
        targets[30:] *= 0.75
    op = ops.softmax_focal_loss if kind == "softmax" else ops.sigmoid_focal_loss
    for gamma, reduction in ((2, "sum"), (1.5, "none")):
        leaf, exact = x.clone().requires_grad_(), x.double().clone().requires_grad_()
        wide = targets.double() if kind == "numbers" else targets
        loss = op(leaf, targets, gamma=gamma, reduction=reduction, backend="triton")
        expected = op(exact, wide, gamma=gamma, reduction=reduction, backend="reference")
        assert_matches(loss, expected)
        (loss.sum() * 3).backward()
        (expected.sum() * 3).backward()
        assert_matches(leaf.grad, exact.grad, scale=2)
