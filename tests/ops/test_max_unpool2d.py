"""Max unpooling: every backend against the rule that the last value with an index is kept."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from fastvision import ops
from fastvision._memory_format import memory_format
from fastvision.testing import cases
from fastvision.testing.marks import LAYOUTS
from fastvision.testing.numerics import DTYPES
from fastvision.testing.tensors import dtype_id, leaf

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# channels of less than, exactly and more than a cache line
SHAPES = [(2, 3, 5, 6), (1, 16, 4, 4), (1, 70, 3, 5)]
SOME = pytest.mark.only(
    lambda backend, shape, dtype: (
        not backend.interpreted or (shape[1] < 70 and dtype in (torch.float32, torch.float16))
    )
)


def inputs(shape, *, dtype, device, channels_last, pixels, distinct):
    """Values, and indices below ``pixels``: each once, or some of them several times."""
    x = cases.feature_map(*shape, dtype=dtype).to(device)
    positions = shape[2] * shape[3]
    g = cases.generator(8)
    if distinct:
        planes = shape[0] * shape[1]
        places = torch.stack([torch.randperm(pixels, generator=g) for _ in range(planes)])
        places = places[:, :positions].reshape(shape)
    else:
        places = torch.randint(0, pixels, shape, generator=g)
    form = {"memory_format": memory_format(channels_last)}
    return x.contiguous(**form), places.to(device).contiguous(**form)


def one_by_one(x, indices, pixels):
    """The rule, and the position that each pixel was taken from."""
    plane = torch.zeros(*x.shape[:2], pixels, dtype=x.dtype)
    origin = torch.full(plane.shape, -1)
    for n, c in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])):
        for position, index in enumerate(indices[n, c].flatten().tolist()):
            plane[n, c, index] = x[n, c].flatten()[position]
            origin[n, c, index] = position
    return plane, origin


@LAYOUTS
@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "overlapping"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@SOME
def test_forward_and_backward(backend, channels_last, dtype, shape, distinct):
    size = (2 * shape[2] + 1, 2 * shape[3])
    pixels = size[0] * size[1]
    x, indices = inputs(
        shape, dtype=dtype, device=backend.device, channels_last=channels_last, pixels=pixels,
        distinct=distinct,
    )  # fmt: skip
    x.requires_grad_()
    plane = ops.max_unpool2d(x, indices, 2, output_size=size, backend=backend.name)
    expected, origin = one_by_one(x.detach().cpu(), indices.cpu(), pixels)
    assert plane.dtype == dtype and torch.equal(plane.cpu().flatten(2), expected)
    assert plane.is_contiguous(memory_format=memory_format(channels_last))
    if distinct:
        theirs = F.max_unpool2d(x, indices, 2, output_size=size)
        assert torch.equal(plane, theirs)
    grad = cases.feature_map(*plane.shape, seed=6).to(plane)
    plane.backward(grad)
    wanted = torch.zeros(*shape[:2], shape[2] * shape[3] + 1, dtype=dtype)
    wanted.scatter_(2, torch.where(origin < 0, wanted.shape[2] - 1, origin), grad.cpu().flatten(2))
    assert torch.equal(x.grad.cpu().flatten(2), wanted[:, :, :-1])
    assert x.grad.is_contiguous(memory_format=memory_format(channels_last))


def test_hand_checked(backend):
    """Pooling by 2 and unpooling: each maximum is back where it was, among zeros."""
    x = torch.tensor([[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])
    x = leaf(x[None, None].to(backend.device))
    values, indices = ops.max_pool2d_with_indices(x, 2, backend=backend.name)
    plane = ops.max_unpool2d(values, indices, 2, backend=backend.name)
    expected = [[0, 0, 6, 0], [0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 8]]
    assert plane[0, 0].tolist() == expected
    plane.sum().backward()
    assert x.grad.eq(plane.gt(0)).all()
    # the values of a later layer, at the places of the pooling
    later = torch.tensor([[[[1.0, 2], [3, 4]]]], device=backend.device)
    plane = ops.max_unpool2d(later, indices, 2, backend=backend.name)
    assert plane[0, 0].tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]


# rows of several vectors and a rest; rows that share a vector, of planes with an odd number of them
@LAYOUTS
@pytest.mark.parametrize("moved", [None, 0, -1], ids=str)
@pytest.mark.parametrize("size", [(9, 74), (7, 15), (6, 14)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=dtype_id)
@pytest.mark.only(lambda backend: not backend.interpreted)
def test_indices_of_pooling(backend, channels_last, dtype, size, moved):
    """Indices in windows side by side, or one of them elsewhere in the plane."""
    pixels = size[0] * size[1]
    pooled = cases.feature_map(2, 19, *size, dtype=dtype, channels_last=channels_last)
    x, indices = F.max_pool2d(pooled, 2, return_indices=True)
    if moved is not None:
        indices[1, 7, 1, 3] = moved % pixels
    plane, origin = one_by_one(x, indices, pixels)
    x, indices = leaf(x.to(backend.device)), indices.to(backend.device)
    result = ops.max_unpool2d(x, indices, 2, output_size=size, backend=backend.name)
    assert torch.equal(result.cpu().flatten(2), plane)
    result.backward(cases.feature_map(*result.shape, dtype=dtype, seed=6).to(result))
    grad = cases.feature_map(*result.shape, dtype=dtype, seed=6).flatten(2)
    positions = x.shape[2] * x.shape[3]
    wanted = torch.zeros(2, 19, positions + 1, dtype=dtype)
    wanted.scatter_(2, torch.where(origin < 0, positions, origin), grad)
    assert torch.equal(x.grad.cpu().flatten(2), wanted[:, :, :-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.only(lambda backend: backend.name == "cpp")
def test_a_result_larger_than_caches(backend, dtype):
    """It is written past them."""
    pooled = cases.feature_map(1, 18, 512, 512, dtype=dtype)
    x, indices = F.max_pool2d(pooled, 2, return_indices=True)
    result = ops.max_unpool2d(x, indices, 2, backend=backend.name)
    assert torch.equal(result, torch.where(result == 0, result, pooled))
    assert torch.equal(result.flatten(2).gather(2, indices.flatten(2)), x.flatten(2))
    assert result.count_nonzero() == x.count_nonzero()


def test_the_last_value_is_kept(backend):
    x = torch.tensor([[[[1.0, 2], [3, 4]]]], device=backend.device, requires_grad=True)
    indices = torch.tensor([[[[0, 3], [0, 0]]]], device=backend.device)
    plane = ops.max_unpool2d(x, indices, 1, output_size=(2, 2), backend=backend.name)
    assert plane.flatten().tolist() == [4, 0, 0, 2]
    (plane * torch.tensor([10.0, 20, 30, 40], device=backend.device).view(2, 2)).sum().backward()
    assert x.grad.flatten().tolist() == [0, 40, 0, 10]


@LAYOUTS
@pytest.mark.parametrize("bad", [-1, 16, 2**62, -(2**63)])
def test_index_out_of_range(backend, channels_last, bad):
    x = cases.feature_map(2, 20, 2, 2, channels_last=channels_last).to(backend.device)
    x.requires_grad_()
    indices = torch.arange(4, device=backend.device).view(2, 2).repeat(2, 20, 1, 1)
    indices = indices.contiguous(memory_format=memory_format(channels_last))
    indices[1, 7, 1, 0] = bad
    if backend.device == "cpu" and not backend.interpreted:
        with pytest.raises(RuntimeError, match="indices must be at least 0 and below 16"):
            ops.max_unpool2d(x, indices, 2, backend=backend.name)
        return
    plane = ops.max_unpool2d(x, indices, 2, backend=backend.name)
    expected = x.detach().clone()
    expected[1, 7, 1, 0] = 0
    assert torch.equal(plane.flatten(2)[..., :4], expected.flatten(2))
    plane.sum().backward()
    assert x.grad[1, 7, 1, 0] == 0 and x.grad.sum() == x.numel() - 1


def test_operators_check_indices():
    x, indices = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 99)
    operators, window = torch.ops.fastvision, (2, 2, 2, 2, 0, 0, 1, 1)
    with pytest.raises(RuntimeError, match="indices must be at least 0 and below 16"):
        operators.max_unpool2d(x, indices, 4, 4)
    with pytest.raises(RuntimeError, match="indices must be at least 0 and below 16"):
        operators.max_pool2d_with_indices_backward(x, indices, *window, 4, 4)
    for stride in ((2, 2), (1, 1), (2**62, 2**62), (0, -1)):
        for bad in (99, -1, -(2**63), 2**63 - 1):
            with pytest.raises(RuntimeError, match="indices must be at least 0 and below 4"):
                operators.max_unpool2d_backward(x, torch.full_like(indices, bad), *stride)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2)], ids=str)
def test_empty(backend, shape):
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    indices = torch.empty(shape, dtype=torch.int64, device=backend.device)
    plane = ops.max_unpool2d(x, indices, 2, backend=backend.name)
    assert plane.shape == (*shape[:2], 4, 4)
    plane.sum().backward()
    assert x.grad.shape == shape


def test_derivatives(backend):
    if backend.interpreted:
        pytest.skip("Triton's interpreter is slow")
    g = cases.generator(1)
    x = leaf(torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=g).to(backend.device))
    indices = torch.randint(0, 12, x.shape, generator=g).to(backend.device)  # some overlap

    def unpool(x):
        return ops.max_unpool2d(x, indices, 1, output_size=(3, 3), backend=backend.name).square()

    indices %= 9
    assert gradcheck(unpool, x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(unpool, x)


def test_output_sizes():
    """As torch's: the default, and sizes that differ by less than the stride."""
    x = cases.feature_map(1, 2, 3, 4)
    indices = torch.arange(12).view(1, 1, 3, 4).expand(1, 2, 3, 4)
    for kernel, stride, padding in ((2, None, 0), (3, 2, 1), ((2, 3), (2, 1), (0, 1)), (2, 3, 0)):
        expected = F.max_unpool2d(x, indices, kernel, stride, padding)
        ours = ops.max_unpool2d(x, indices, kernel, stride, padding)
        assert torch.equal(ours, expected)
        assert torch.equal(ops.max_unpool2d(x[0], indices[0], kernel, stride, padding), ours[0])
    for size in ((7, 9), (5, 8), torch.Size((1, 2, 7, 7))):
        expected = F.max_unpool2d(x, indices, 2, output_size=size)
        assert torch.equal(ops.max_unpool2d(x, indices, 2, output_size=size), expected)
        assert torch.equal(ops.MaxUnpool2d(2)(x, indices, size), expected)
    assert isinstance(ops.MaxUnpool2d(2), nn.MaxUnpool2d)


def test_programs():
    """torch.compile, torch.export, torch.jit.trace, torch.fx and torch.func."""
    module = ops.MaxUnpool2d(2)
    x = leaf(cases.feature_map(2, 3, 4, 4))
    indices = F.max_pool2d(cases.feature_map(2, 3, 8, 8, seed=9), 2, return_indices=True)[1]
    expected = module(x, indices)
    weights = cases.feature_map(*expected.shape)
    (grad,) = torch.autograd.grad((expected * weights).sum(), x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    plane = compiled(x, indices)
    assert torch.equal(plane, expected)
    assert torch.equal(torch.autograd.grad((plane * weights).sum(), x)[0], grad)
    x = x.detach()
    for program in (
        torch.export.export(module, (x, indices)).module(),
        torch.jit.trace(module, (x, indices)),
        torch.fx.symbolic_trace(module),
        torch.vmap(module),
    ):
        assert torch.equal(program(x, indices), expected)
    torch.library.opcheck(torch.ops.fastvision.max_unpool2d.default, (x, indices, 8, 8))
    backward = torch.ops.fastvision.max_unpool2d_backward.default
    torch.library.opcheck(backward, (weights, indices, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indices": torch.zeros(1, 1, 2, 2)}, TypeError, "indices must be int64, got torch.float"),
        ({"indices": torch.zeros(1, 1, 2, 3).long()}, ValueError, "indices must have the shape"),
        ({"input": torch.zeros(1, 1, 2, 2).long()}, TypeError, "input must be float16, .*int64"),
        ({"kernel_size": "2"}, TypeError, "kernel_size must be one or two integers, got '2'"),
        ({"output_size": (9, 4)}, ValueError, r"output_size must differ .*, got \(9, 4\)"),
        ({"output_size": (4,)}, ValueError, r"output_size must be .*, got \(4,\)"),
        ({"padding": 2}, ValueError, r"output_size must be at least 1, got \[0, 0\]"),
        ({"backend": "cuda"}, ValueError, "backend='cuda' cannot run on cpu"),
    ],
)
def test_errors(arguments, error, message):
    x = torch.zeros(1, 1, 2, 2)
    arguments = {"input": x, "indices": x.long(), "kernel_size": 2, **arguments}
    with pytest.raises(error, match=message):
        ops.max_unpool2d(**arguments)
