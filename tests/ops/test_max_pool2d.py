"""Max pooling with indices: every backend against torch's op, and what torch leaves open."""

import itertools
from math import inf, nan

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from fastvision import ops
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES, assert_matches
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# shape, and kernel size, stride, padding, dilation, ceil_mode: rows above and below a vector,
# channels of several vectors and a rest, strides that split rows into 1, 2 and 3 phases
CASES = [
    ((2, 3, 8, 10), (2, None, 0, 1, False)),
    ((1, 2, 5, 83), (2, 2, 0, 1, True)),
    ((2, 70, 9, 11), (3, 2, 1, 1, False)),
    ((1, 37, 12, 40), ((3, 2), 1, (1, 0), 1, False)),
    ((1, 5, 17, 41), ((2, 5), (1, 3), (1, 2), (2, 1), True)),
    ((1, 3, 3, 70), ((1, 3), (1, 2), 0, (1, 3), False)),
    ((2, 4, 6, 6), (6, 1, 3, 1, True)),
    ((2, 3, 9, 37), ((9, 37), None, 0, 1, False)),
    ((1, 2, 20, 50), (2, (7, 9), 1, (1, 3), False)),
    ((1, 21, 7, 75), (2, None, 0, 1, False)),
    ((1, 17, 10, 11), (2, 3, 1, 1, True)),
]
IDS = [f"{shape}-{window}" for shape, window in CASES]
# Triton's interpreter is slow
SOME = pytest.mark.only(
    lambda backend, shape, dtype: (
        not backend.interpreted or (shape[1] < 40 and dtype == torch.float32)
    )
)


def ties(*shape, dtype=torch.float32, channels_last=False):
    """Few different values, so that windows have equal maxima."""
    x = cases.feature_map(*shape).mul_(2).round_().to(dtype)
    return x.contiguous(memory_format=memory_format(channels_last))


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize(("shape", "window"), CASES, ids=IDS)
@SOME
def test_forward_and_backward(backend, channels_last, dtype, shape, window):
    x = leaf(ties(*shape, dtype=dtype, channels_last=channels_last).to(backend.device))
    values, indices = ops.max_pool2d_with_indices(x, *window, backend=backend.name)
    exact = leaf(x.double())
    expected, places = F.max_pool2d(exact, *window, return_indices=True)
    assert values.dtype == dtype and torch.equal(values.double(), expected)
    assert indices.dtype == torch.int64 and torch.equal(indices, places)
    for result in (values, indices):
        assert result.is_contiguous(memory_format=memory_format(channels_last))
    grad = cases.feature_map(*values.shape, seed=6).to(values)
    values.backward(grad)
    expected.backward(grad.double())
    assert x.grad.is_contiguous(memory_format=memory_format(channels_last))
    assert_matches(x.grad, exact.grad, scale=4)


def test_hand_checked(backend):
    x = torch.tensor([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])
    args = (x[None].to(backend.device), 2)
    values, indices = ops.max_pool2d_with_indices(*args, backend=backend.name)
    assert values.tolist() == [[[5, 6], [7, 8]]] and indices.tolist() == [[[5, 2], [12, 15]]]


@LAYOUTS
def test_ties_and_special_values(backend, channels_last):
    """The first of equal maxima, the last NaN, and the first pixel where all are -inf."""
    rows = torch.tensor(
        [
            [1.0, 3, 3, 2],
            [nan, 5, nan, 7],
            [-inf, -inf, -inf, -inf],
            [-inf, inf, inf, 0],
            [0, -0.0, 0, 0],
        ]
    )
    x = rows.expand(1, 21, 5, 4).contiguous(memory_format=memory_format(channels_last))
    args = (x.to(backend.device), (1, 4))
    values, indices = ops.max_pool2d_with_indices(*args, backend=backend.name)
    assert indices[0].flatten(1).cpu().eq(torch.tensor([1, 6, 8, 13, 16])).all()
    expected = torch.tensor([3, nan, -inf, inf, 0]).expand(1, 21, 5)
    assert_matches(values.cpu().flatten(2), expected)
    padded = ops.max_pool2d_with_indices(x.to(backend.device), 3, 1, 1, backend=backend.name)
    theirs = F.max_pool2d(x, 3, 1, 1, return_indices=True)
    assert_matches(padded[0].cpu(), theirs[0])
    assert torch.equal(padded[1].cpu(), theirs[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_one_special_value_among_channels(backend, size, dtype):
    """A NaN or infinities in one channel, whose window is in the middle of the map."""
    for special in ((nan,), (inf, -inf), (-inf,) * size**2):
        x = cases.feature_map(1, 40, 7, 8).to(dtype)
        for tap, value in enumerate(special):
            x[0, 17, 2 + tap // size, 2 + tap % size] = value
        x = x.contiguous(memory_format=torch.channels_last).to(backend.device)
        values, indices = ops.max_pool2d_with_indices(x, size, backend=backend.name)
        expected, places = F.max_pool2d(x.double(), size, return_indices=True)
        assert_matches(values, expected)
        assert torch.equal(indices, places)


@LAYOUTS
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_huge_windows(backend, channels_last):
    x = leaf(ties(1, 5, 6, 7, channels_last=channels_last))
    for window in ((2**40, 2**61, 2**39), (3, 2**61, 1), (2**31, 2**31, 2**30), (2, 1, 1, 2**61)):
        try:
            values, indices = ops.max_pool2d_with_indices(x, *window, backend=backend.name)
        except (ValueError, RuntimeError) as error:
            assert window[-1] == 2**61 or "less than 2^31 pixels" in str(error)
            continue
        places = indices.flatten(2)
        assert torch.equal(x.flatten(2).gather(2, places), values.flatten(2))
        corner = x[:, :, :2, :2] if window[0] == 3 else x
        assert torch.equal(values[:, :, 0, 0], corner.amax((2, 3)))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)], ids=str)
def test_empty(backend, shape):
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    values, indices = ops.max_pool2d_with_indices(x, 2, backend=backend.name)
    assert values.shape == indices.shape == (*shape[:2], 2, 2)
    values.sum().backward()
    assert x.grad.shape == shape


# torch sums in the type of the gradient, and Triton's interpreter is slow
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_sums_in_float32(backend):
    """A pixel is the maximum of 2500 windows: in float16 a sum of ones would end at 2048, in
    bfloat16 at 256."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.zeros(1, 1, 80, 80, dtype=dtype)
        x[0, 0, 40, 40] = 1
        x.requires_grad_()
        ops.max_pool2d_with_indices(x, 50, 1, 25, backend=backend.name)[0].sum().backward()
        assert x.grad[0, 0, 40, 40] == torch.tensor(2500.0).to(dtype)


def test_second_derivatives(backend):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow")
    x = torch.randperm(2 * 5 * 6, generator=cases.generator(1)).double().view(1, 2, 5, 6)
    x = leaf(x.to(backend.device))

    def pool(x):
        return ops.max_pool2d_with_indices(x, 3, 2, 1, backend=backend.name)[0].square()

    assert gradcheck(pool, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(pool, x)


def test_transforms():
    x = cases.feature_map(3, 2, 6, 6)
    expected, places = ops.max_pool2d_with_indices(x, 2)
    values, indices = torch.vmap(lambda x: ops.max_pool2d_with_indices(x, 2))(x)
    assert torch.equal(values, expected) and torch.equal(indices, places)
    grad = torch.func.grad(lambda x: ops.max_pool2d_with_indices(x, 2)[0].sum())(x)
    assert grad.sum() == expected.numel()


def test_programs():
    """torch.compile, torch.export, torch.jit.trace and torch.fx."""
    module = ops.MaxPool2d(3, 2, 1, return_indices=True)
    x = leaf(cases.feature_map(2, 3, 9, 9))
    expected = module(x)
    (grad,) = torch.autograd.grad(expected[0].sum(), x, retain_graph=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    values, indices = compiled(x)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])
    assert torch.equal(torch.autograd.grad(values.sum(), x)[0], grad)
    x = x.detach()
    for program in (
        torch.export.export(module, (x,)).module(),
        torch.jit.trace(module, (x,)),
        torch.fx.symbolic_trace(module),
    ):
        values, indices = program(x)
        assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])
    operator = torch.ops.fastvision.max_pool2d_with_indices.default
    torch.library.opcheck(operator, (x, 3, 3, 2, 2, 1, 1, 1, 1, 5, 5))
    backward = torch.ops.fastvision.max_pool2d_with_indices_backward.default
    window = (2, 2, 2, 2, 0, 0, 1, 1, 9, 9)
    torch.library.opcheck(backward, (*ops.max_pool2d_with_indices(x, 2), *window))


def test_module():
    x = cases.feature_map(2, 3, 9, 9)
    ours, theirs = ops.MaxPool2d, nn.MaxPool2d
    assert isinstance(ours(2), theirs) and repr(ours(2, 1)) == repr(theirs(2, 1))
    assert torch.equal(ours(3, 2)(x), theirs(3, 2)(x))
    for a, b in zip(*(m(3, 2, 1, return_indices=True)(x) for m in (ours, theirs)), strict=True):
        assert torch.equal(a, b)


def test_other_types_and_layouts(backend):
    x = torch.randint(0, 9, (1, 2, 6, 6), device=backend.device)
    values, indices = ops.max_pool2d_with_indices(x, 2, backend=backend.name)
    expected, places = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(values, expected) and torch.equal(indices, places)
    x = cases.feature_map(2, 6, 7, 3).to(backend.device).permute(0, 3, 1, 2)[:, :, ::2]
    values, indices = ops.max_pool2d_with_indices(x, 2, 1, backend=backend.name)
    expected, places = F.max_pool2d(x, 2, 1, return_indices=True)
    assert torch.equal(values, expected) and torch.equal(indices, places)


def test_windows_of_every_geometry():
    """Output sizes and indices as torch's, unless torch's windows leave the input."""
    x = ties(1, 1, 5, 6)
    for kernel, stride, padding, dilation in itertools.product(
        (1, 2, 3), (1, 2, 3), (0, 1), (1, 2)
    ):
        for ceil_mode in (False, True):
            window = (kernel, stride, padding, dilation, ceil_mode)
            try:
                expected, places = F.max_pool2d(x, *window, return_indices=True)
            except RuntimeError:
                with pytest.raises(ValueError):
                    ops.max_pool2d_with_indices(x, *window)
                continue
            values, indices = ops.max_pool2d_with_indices(x, *window)
            assert torch.equal(values, expected) and torch.equal(indices, places), window


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, r"kernel_size must be at least 1, got \(0, 0\)"),
        ({"stride": (1, 0)}, ValueError, r"stride must be at least 1, got \(1, 0\)"),
        ({"dilation": 0}, ValueError, r"dilation must be at least 1, got \(0, 0\)"),
        ({"padding": 2}, ValueError, "padding must be .* half of the kernel's size 2, got 2"),
        ({"padding": -1}, ValueError, "padding must be at least 0 .*, got -1"),
        ({"kernel_size": 5}, ValueError, "input: a kernel that spans 5 pixels .* into 4"),
        ({"kernel_size": 1.5}, TypeError, r"kernel_size must be one or two integers, got 1\.5"),
        ({"kernel_size": (1, 2, 3)}, ValueError, r"kernel_size must be .*, got \(1, 2, 3\)"),
        ({"input": torch.ones(4, 4)}, ValueError, r"input must have shape .*, got \[4, 4\]"),
        ({"input": [1]}, TypeError, "input must be a Tensor, got list"),
        ({"input": torch.ones(1, 1, 4, 4).to_sparse()}, NotImplementedError, "input must be dense"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run on cpu"),
    ],
)
def test_errors(arguments, error, message):
    arguments = {"input": torch.ones(1, 1, 4, 4), "kernel_size": 2, **arguments}
    with pytest.raises(error, match=message.replace("be dense", "be a dense")):
        ops.max_pool2d_with_indices(**arguments)


def test_window_without_a_pixel():
    """torch's index is outside of the input there."""
    with pytest.raises(ValueError, match="dilation 2: a window has none of the 1 pixels"):
        ops.max_pool2d_with_indices(torch.ones(1, 1, 1, 1), 2, 1, 1, 2)
