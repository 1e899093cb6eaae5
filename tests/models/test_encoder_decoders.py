"""FCN, SegNet and U-Net: the papers' sizes and geometry, and the layers one by one."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastvision
from fastvision import models
from fastvision.models import segmentation
from fastvision.models.segmentation.fcn_vgg import bilinear_filter
from fastvision.testing.models import images
from fastvision.testing.numerics import assert_matches
from fastvision.testing.segmentation import SMALL, small

COUNTS = [
    ("fcn32s_vgg16", {}, 136_152_917),
    ("fcn16s_vgg16", {}, 134_815_994),
    ("fcn8s_vgg16", {}, 134_489_759),
    ("segnet", {}, 29_449_932),
    ("segnet", {"num_classes": 21}, 29_455_125),
    ("unet", {}, 31_033_045),
    ("unet", {"in_channels": 1, "num_classes": 2}, 31_030_658),
]
# of activations that differ in rounding only, through up to 27 layers
LAYERS = 10


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


def layer_by_layer(model):
    """A copy that runs torch's layers, since each of them has a hook."""
    model = copy.deepcopy(model)
    if isinstance(model, segmentation.SegNet):
        model.pool, model.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(("name", "options", "count"), COUNTS)
def test_parameters(name, options, count):
    with torch.device("meta"):
        model = models.get_model(name, **options)
    assert name in models.list_models("segmentation")
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("size", [(64, 64), (45, 70)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_forward(name, size, channels_last):
    model = small(name)
    x = images(80)[:, :, : size[0], : size[1]].contiguous()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        out = model(x)["out"]
        expected = layer_by_layer(model).double()(x.double())["out"]
        assert out.shape == (2, 3, *size) and out.is_contiguous() != channels_last
        assert expected.std() > 0.01
        scale = LAYERS * float(expected.abs().max())
        assert_matches(out, expected, scale=scale)
        assert_matches(fastvision.fuse(model)(x)["out"], expected, scale=scale)


def test_gradients(name):
    model = small(name).double()
    plain = layer_by_layer(model)
    gradients = []
    for each in (model, plain):
        each.train()
        torch.manual_seed(1)  # of dropout
        out = each(images(40).double())["out"]
        F.cross_entropy(out, torch.arange(40 * 40 * 2).view(2, 40, 40) % 3).backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-6 * b.abs().max() + 1e-12


def test_half_precision(name):
    model = small(name)
    x = images(48)
    with torch.no_grad():
        expected = model(x)["out"]
        out = model.bfloat16()(x.bfloat16())["out"]
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    assert (out - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_copies_and_programs(name):
    model = small(name)
    x = images(48)
    with torch.no_grad():
        expected = model(x)["out"]
        for other in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.fx.symbolic_trace(model),
            torch.export.export(model, (x,)).module(),
        ):
            assert_matches(other(x)["out"], expected, scale=LAYERS)


@pytest.mark.parametrize("border", [True, False])
@pytest.mark.parametrize("name", ["fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16"])
def test_crops_are_centred(name, border):
    """With symmetric filters a mirrored image has mirrored scores. Every pooling halves 64 pixels,
    and 58 and the border, which are 256."""
    model = small(name, border=border)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter += parameter.flip(2)
                parameter += parameter.flip(3)
                parameter /= 4
        x = images(58 if border else 64)
        out = model(x)["out"]
        assert out.std() > 0
        for flipped in ((2,), (3,), (2, 3)):
            assert_matches(model(x.flip(flipped))["out"], out.flip(flipped), scale=LAYERS)


def test_upsampling_begins_bilinear():
    model = segmentation.fcn8s_vgg16(num_classes=2, base_width=1)
    assert bilinear_filter(4)[1].tolist() == [0.1875, 0.5625, 0.5625, 0.1875]
    scores = torch.randn(1, 2, 6, 7)
    for layer, factor in ((model.upscore2, 2), (model.upscore8, 8)):
        assert layer.weight.requires_grad and layer.bias is None
        edge = factor // 2
        up = layer(scores)[:, :, edge:-edge, edge:-edge]
        expected = F.interpolate(scores, scale_factor=factor, mode="bilinear")
        # at the border interpolation repeats pixels, and the transposed convolution adds zeros
        inner = (..., slice(factor, -factor), slice(factor, -factor))
        assert_matches(up[inner], expected[inner])


def test_width_of_the_linear_layers():
    widths = [
        models.get_model("fcn8s_vgg16", base_width=1, fc_width=width).fc7.out_channels
        for width in (None, 3)
    ]
    assert widths == [64, 3]
    assert small("fcn32s_vgg16", fc_width=3)(images(40))["out"].shape[2:] == (40, 40)


def test_scores_begin_as_zero():
    assert not segmentation.fcn16s_vgg16(base_width=1)(images(32))["out"].any()


def test_unet_of_the_paper():
    """Table of the paper's figure 1: 572 pixels give 388."""
    with torch.device("meta"):
        model = segmentation.unet(in_channels=1, num_classes=2, padded=False)
        assert model(torch.empty(1, 1, 572, 572))["out"].shape == (1, 2, 388, 388)
    model = segmentation.unet(base_width=2, num_classes=2, padded=False, dropout=0.0).eval()
    x = images(204)
    out = model(x)["out"]
    assert out.shape == (2, 2, 20, 20)
    # without padding each score depends on its surroundings alone: shifts of 16 pixels commute
    shifted = model(F.pad(x, (16, 0, 16, 0))[..., :204, :204])["out"]
    assert_matches(shifted[..., 16:, 16:], out[..., :4, :4], scale=LAYERS)


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    model = segmentation.segnet(num_classes=2, base_width=4)
    x = images(32)
    target = (x.mean(1) > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x)["out"], target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
