"""Darknet's .cfg and .weights files, and the layers that only Darknet has."""

import struct

import pytest
import torch
import torch.nn.functional as F

from fastvision import models
from fastvision.models.darknet import (
    ConfigError,
    Darknet,
    load_darknet_weights,
    parse_config,
    save_darknet_weights,
)
from fastvision.models.darknet.layers import Local, MaxPool, Reorg
from fastvision.models.darknet.weights import _stored
from fastvision.testing.models import assert_same, images, randomize

# every section that is a layer, and both kinds of numbers in [route]
EVERYTHING = """
[net]
# a comment
width=16
height=12
channels=3
learning_rate = 0.001   ; of training
batch=1
batch=64

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[conv]
filters=8
size=3
pad=1
groups=2
activation=linear

[shortcut]
from=-2
activation=relu

[upsample]
stride=2

[route]
layers=-1,0

[reorg]
stride=2

[route]
layers=6
groups=2
group_id=1

[local]
filters=2
size=3
stride=2
pad=1
activation=logistic

[dropout]
probability=.5

[connected]
output=6
batch_normalize=1
activation=leaky

[connected]
output=4
activation=linear

[softmax]
groups=2

[cost]
type=sse
"""
CONVOLUTION = "[net]\nwidth=8\nheight=8\n[convolutional]\nfilters=4\nsize=3\n"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomize(Darknet(parse_config(EVERYTHING))).eval()


def test_layers_in_turn(network):
    """The same by the layers' parts, called one by one."""
    x = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    conv = network.layers[0]
    first = F.leaky_relu(conv[1](conv[0](x)), 0.1)
    pooled = F.max_pool2d(first, 2)
    added = F.relu(network.layers[2][0](pooled) + pooled)
    joined = torch.cat((added.repeat_interleave(2, 2).repeat_interleave(2, 3), first), 1)
    half = network.layers[6](joined).chunk(2, 1)[1]
    flat = network.layers[8](half).flatten(1)
    linear, norm, activation = network.layers[10]
    scores = network.layers[11][0](activation(norm(linear(flat))))
    expected = scores.view(2, 2, 2).softmax(2).view(2, 4)
    with torch.no_grad():
        result = network(x)
    assert_same(result, expected)
    assert (result[0] - result[1]).abs().max() > 1e-4


def test_reorg_is_the_loop_of_darknet():
    stride, (n, c, h, w) = 2, (2, 8, 6, 4)
    x = torch.randn(n, c, h, w)
    flat, expected = x.flatten(1), torch.empty(n, c * h * w)
    for k in range(c):
        offset, channel = divmod(k, c // stride**2)
        for j in range(h):
            for i in range(w):
                row, column = j * stride + offset // stride, i * stride + offset % stride
                source = column + w * stride * (row + h * stride * channel)
                expected[:, i + w * (j + h * k)] = flat[:, source]
    result = Reorg(stride)(x)
    assert result.shape == (n, 32, 3, 2)
    assert torch.equal(result.flatten(1), expected)
    assert torch.equal(Reorg(stride)(x.contiguous(memory_format=torch.channels_last)), result)


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 1), (2, 1, 1), (3, 2, 2), (5, 1, 4)]
)
def test_windows_of_max_pooling(size, stride, padding, side):
    x = torch.randn(1, 2, side, side)
    layer = MaxPool(size, stride, padding)
    result = layer(x)
    assert result.shape[2] == result.shape[3] == layer.rows(side)
    for i in range(result.shape[2]):
        for j in range(result.shape[3]):
            top, left = i * stride - padding // 2, j * stride - padding // 2
            window = x[..., max(top, 0) : top + size, max(left, 0) : left + size]
            assert torch.equal(result[..., i, j], window.amax((2, 3)))


def test_local_with_equal_weights_is_a_convolution():
    layer, conv = Local((3, 7, 6), 4, 3, 2, 1, None), torch.nn.Conv2d(3, 4, 3, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(conv.weight.flatten(1).expand_as(layer.weight))
        layer.bias.copy_(conv.bias[:, None].expand_as(layer.bias))
        x = torch.randn(2, 3, 7, 6)
        assert_same(layer(x), conv(x), strides=False)


def test_configuration_of_a_network_builds_it_again(network):
    other = Darknet(parse_config(network.config))
    other.load_state_dict(network.state_dict())
    x = torch.rand(1, 3, 12, 16)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), network(x))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width=3", r"net\.cfg, line 1: expected \[section\]"),
        ("[convolutional]\nfilters=3", r"net\.cfg: a configuration begins with \[net\]"),
        ("[net]\nwidth=8\n[conv]\nsize=1", r"net\.cfg, line 1: \[net\] has no height"),
        ("[net]\nwidth=8\nheight=8", r"net\.cfg, line 1: \[net\] is followed by no layer"),
        ("[net]\nwidth=8\nwidth=9", r"net\.cfg, line 2: \[net\] width is given twice"),
        (CONVOLUTION + "pad", r"net\.cfg, line 7: expected .* got 'pad'"),
        (CONVOLUTION + "stride=x", r"line 7: \[convolutional\] stride must be an integer, got 'x'"),
        (CONVOLUTION + "stride=0", r"line 7: \[convolutional\] stride must be 1 or more, got 0"),
        (CONVOLUTION + "groups=99999999999", r"groups must be 16,777,216 or less, got 99,999"),
        (
            CONVOLUTION + "[route]\nlayers=nan",
            r"line 8: .* layers must be between .* got nan",
        ),
        (
            CONVOLUTION + "[route]\nlayers=inf",
            r"line 8: .* layers must be between .* got inf",
        ),
        (CONVOLUTION + "[route]\nlayers=0.5", r"line 8: \[route\] layers must be integers"),
        (CONVOLUTION + "groups=2", r"line 7: \[convolutional\] groups must divide 3 and 4"),
        (CONVOLUTION + "xnor=1", r"line 7: \[convolutional\] has an unknown option xnor"),
        (CONVOLUTION + "activation=loggy", r"line 7: \[convolutional\] activation must be one of"),
        (CONVOLUTION + "[lstm]", r"line 7: \[lstm\] is not one of the sections"),
        (CONVOLUTION + "[route]", r"line 7: \[route\] has no layers"),
        (CONVOLUTION + "[route]\nlayers=-2", r"line 8: \[route\] layers -2 is no layer before"),
        (CONVOLUTION + "[route]\nlayers=1", r"line 8: \[route\] layers 1 is no layer before"),
        (CONVOLUTION + "[reorg]\nstride=4", r"line 8: \[reorg\] a stride of 4 does not divide"),
        (CONVOLUTION + "[maxpool]\nstride=2\n[shortcut]\nfrom=-2", "line 10: .* different shapes"),
        (CONVOLUTION + "[maxpool]\nstride=2\n[route]\nlayers=0,1", "line 10: .* different sizes"),
        (CONVOLUTION + "[convolutional]\nsize=9", r"line 7: \[convolutional\] leaves nothing"),
        (CONVOLUTION + "[dropout]\nprobability=2", r"line 8: \[dropout\] probability must be"),
        (CONVOLUTION + "[yolo]\nscale_x_y=1.1", r"line 8: \[yolo\] scale_x_y must be 1.0"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    file = tmp_path / "net.cfg"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Darknet(file)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.cfg"):
        Darknet(tmp_path / "missing.cfg")
    (tmp_path / "picture.cfg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match="picture.cfg is not a text file"):
        Darknet(str(tmp_path / "picture.cfg"))


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 5)])
def test_weights_bit_for_bit(network, tmp_path, version):
    file, again = tmp_path / "a.weights", tmp_path / "b.weights"
    save_darknet_weights(network, file, seen=77, version=version)
    numbers = sum(p.numel() for p in network.parameters()) + 2 * (8 + 6)  # running statistics
    assert file.stat().st_size == (16 if version == (0, 1, 0) else 20) + 4 * numbers
    other = Darknet(parse_config(EVERYTHING))
    assert load_darknet_weights(other, file) == 77
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    save_darknet_weights(other, again, seen=77, version=version)
    assert file.read_bytes() == again.read_bytes()


def test_order_of_the_numbers(tmp_path):
    """Bias, scale, mean, variance, weights; of a linear layer the weights before the scale."""
    text = "[net]\nwidth=1\nheight=1\nchannels=2\n"
    text += "[conv]\nfilters=1\nbatch_normalize=1\n[connected]\noutput=2\nbatch_normalize=1\n"
    file = tmp_path / "a.weights"
    file.write_bytes(struct.pack("<3ii16f", 0, 1, 0, 5, *range(16)))
    network = Darknet(parse_config(text))
    assert load_darknet_weights(network, file) == 5
    conv, norm = network.layers[0][0], network.layers[0][1]
    order = [norm.bias, norm.weight, norm.running_mean, norm.running_var, conv.weight]
    linear, norm = network.layers[1][0], network.layers[1][1]
    order += [norm.bias, linear.weight, norm.weight, norm.running_mean, norm.running_var]
    assert torch.cat([t.detach().flatten() for t in order]).tolist() == list(range(16))


def test_weights_of_the_first_layers(network, tmp_path):
    file = tmp_path / "a.weights"
    save_darknet_weights(network, file, layers=3)
    torch.manual_seed(1)
    other = Darknet(parse_config(EVERYTHING))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    load_darknet_weights(other, file, layers=3)
    for name, value in other.state_dict().items():
        from_file = int(name.split(".")[1]) < 3
        assert torch.equal(value, (network.state_dict() if from_file else before)[name]), name
    with pytest.raises(ValueError, match=r"layers must be from 0 to 14, got 15"):
        load_darknet_weights(other, file, layers=15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"a\.weights has [\d,]+ bytes, but the network takes [\d,]+"),
        (lambda data: data + b"\0\0\0\0", r"a\.weights has [\d,]+ bytes, but the network takes"),
        (lambda data: data[:10], r"a\.weights has 10 bytes, less than a header"),
        (lambda data: data[:18], r"a\.weights has 18 bytes, less than a header"),
        (lambda data: b"", r"a\.weights has 0 bytes, less than a header"),
    ],
)
def test_files_that_do_not_fit_change_nothing(network, tmp_path, change, message):
    file = tmp_path / "a.weights"
    save_darknet_weights(network, file)
    file.write_bytes(change(file.read_bytes()))
    other = Darknet(parse_config(EVERYTHING))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_darknet_weights(other, file)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(FileNotFoundError, match="missing"):
        load_darknet_weights(other, tmp_path / "missing.weights")
    with pytest.raises(ValueError, match="version"):
        save_darknet_weights(other, file, version=(1000, 0, 0))


def test_classifier_from_a_file_of_darknet(tmp_path):
    options = {"num_classes": 5, "width_mult": 1 / 8}
    model = randomize(models.darknet19(**options)).eval()
    save_darknet_weights(model, tmp_path / "a.weights")
    loaded = models.darknet19(weights=tmp_path / "a.weights", **options).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images(64)), model(images(64)))


def test_files_with_transposed_matrices(tmp_path):
    """Of old files: the matrices of linear layers alone."""
    text = "[net]\nwidth=3\nheight=2\nchannels=2\n"
    text += "[local]\nsize=1\nfilters=3\n[connected]\noutput=5\n"
    network, other = Darknet(parse_config(text)), Darknet(parse_config(text))
    local, linear = network.layers[0], network.layers[1][0]
    local.bias.data.normal_()
    stored = (local.bias, local.weight, linear.bias, linear.weight.t())
    numbers = torch.cat([tensor.detach().flatten() for tensor in stored])
    file = tmp_path / "a.weights"
    file.write_bytes(struct.pack("<3ii", 1001, 1, 0, 7) + numbers.numpy().tobytes())
    assert load_darknet_weights(other, file) == 7
    for name, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_size_of_the_file_of_the_body():
    """darknet53.conv.74, with which the training of YOLOv3 begins."""
    with torch.device("meta"):
        network = models.get_model("yolov3").network
    assert 20 + 4 * sum(tensor.numel() for tensor in _stored(network, 74)) == 162_482_580
