"""Boxes around masks: every backend against torchvision, and by hand."""

import pytest
import torch

from fastvision import ops
from fastvision.testing.cases import generator
from fastvision.testing.tensors import dtype_id

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# rows shorter than a word, a vector, four vectors, and longer than a tile
SIZES = [(1, 1), (4, 3), (9, 33), (20, 70), (6, 300), (3, 1100)]


def masks(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """From empty over a few pixels to full."""
    g = generator(seed)
    share = torch.linspace(0, 1, count).view(-1, 1, 1) ** 4
    return torch.rand(count, height, width, generator=g) < share


@pytest.mark.parametrize("dtype", [torch.bool, *INTEGERS, *FLOATS, torch.complex64], ids=dtype_id)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.only(
    lambda backend, size, dtype: (
        not backend.interpreted or size[0] == 9 or (size[1] > 999 and dtype == torch.bool)
    )
)
def test_matches_torchvision(backend, size, dtype, torchvision):
    m = masks(9, *size).to(dtype)
    expected = torchvision.ops.masks_to_boxes(m)
    boxes = ops.masks_to_boxes(m.to(backend.device), backend=backend.name)
    assert boxes.dtype == torch.float32 and torch.equal(boxes.cpu(), expected)


def test_every_pixel(backend):
    """Alone and as one of two corners of a box."""
    height, width = (2, 7) if backend.interpreted else (5, 150)
    pixels = height * width
    m = torch.zeros(pixels, pixels, dtype=torch.uint8)
    m.fill_diagonal_(128)
    m = m.view(pixels, height, width).to(backend.device)
    y, x = (
        t.flatten()
        for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    boxes = ops.masks_to_boxes(m, backend=backend.name).cpu()
    assert torch.equal(boxes, torch.stack([x, y, x, y], 1).float())
    m[:, height // 2, width // 3] = 1
    boxes = ops.masks_to_boxes(m, backend=backend.name).cpu()
    low = torch.stack([x.clamp(max=width // 3), y.clamp(max=height // 2)], 1)
    high = torch.stack([x.clamp(min=width // 3), y.clamp(min=height // 2)], 1)
    assert torch.equal(boxes, torch.cat([low, high], 1).float())


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_id)
def test_zeros_with_a_sign(backend, dtype):
    m = torch.full((2, 3, 70), -0.0, dtype=dtype)
    m[1, 1, 4] = float("nan")
    m[1, 2, 69] = torch.finfo(dtype).smallest_normal / 2  # a subnormal number
    boxes = ops.masks_to_boxes(m.to(backend.device), backend=backend.name)
    assert boxes.tolist() == [[0, 0, 0, 0], [4, 1, 69, 2]]


def test_strides(backend, torchvision):
    m = masks(8, 12, 40).to(backend.device)
    for view in (m[::2, 1:9, 3:37], m[:, :, ::2], m.mT, m[:1].expand(3, -1, -1), m[:, :, 5:6]):
        expected = torchvision.ops.masks_to_boxes(view.cpu())
        boxes = ops.masks_to_boxes(view, backend=backend.name)
        assert torch.equal(boxes.cpu(), expected)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0), (0,)], ids=str)
def test_empty(backend, shape, torchvision):
    m = torch.zeros(shape, dtype=torch.bool)
    boxes = ops.masks_to_boxes(m.to(backend.device), backend=backend.name)
    assert boxes.shape == torchvision.ops.masks_to_boxes(m).shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3)], ids=str)
def test_operator_without_pixels(shape):
    """With the strides of an expanded tensor too, which may be 0."""
    one = torch.empty([min(size, 1) for size in shape])
    for m in (torch.empty(shape), one.expand(shape)):
        boxes = torch.ops.fastvision.masks_to_boxes(m)
        assert torch.equal(boxes, torch.zeros(2, 4))


def test_programs():
    """torch.compile, torch.export, torch.jit.trace, torch.func and opcheck."""

    class Model(torch.nn.Module):
        def forward(self, m):
            return ops.masks_to_boxes(m)

    m = masks(5, 9, 30)
    expected = ops.masks_to_boxes(m)
    compiled = torch.compile(Model(), backend="aot_eager", fullgraph=True)
    for program in (
        compiled,
        torch.export.export(Model(), (m,)).module(),
        torch.jit.trace(Model(), (m,)),
    ):
        assert torch.equal(program(m), expected)
    assert torch.equal(torch.vmap(ops.masks_to_boxes)(m[None])[0], expected)
    torch.library.opcheck(torch.ops.fastvision.masks_to_boxes.default, (m,))


def test_no_derivative():
    assert not ops.masks_to_boxes(torch.rand(2, 3, 4, requires_grad=True)).requires_grad


def test_errors():
    with pytest.raises(ValueError, match=r"masks must have shape \[N, H, W\], got \[3, 4\]"):
        ops.masks_to_boxes(torch.ones(3, 4))
    with pytest.raises(TypeError, match="masks must be a Tensor, got list"):
        ops.masks_to_boxes([torch.ones(3, 4)])
    with pytest.raises(RuntimeError, match="masks must be of a boolean"):
        torch.ops.fastvision.masks_to_boxes(torch.ones(1, 3, 4, dtype=torch.complex64))
