"""A classifier of patches, at each pixel and in one pass: the scores are the same."""

import pytest
import torch
from torch import nn

from fastvision import models
from fastvision.models.segmentation import fully_convolutional, sliding_window
from fastvision.testing.models import images, randomize

CLASSIFIERS = {
    "patch_classifier": (15, lambda: models.get_model("patch_classifier", num_classes=5)),
    # an even window, two strides behind one another, a dilation, and a map of one pixel
    "strides": (
        16,
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
            nn.MaxPool2d(2),  # 7 to 3: the last row and column of a patch do not count
            nn.Conv2d(4, 6, 2, dilation=2, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6, 3, bias=False),
        ),
    ),
    "linear": (
        5,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(75, 8), nn.ReLU(), nn.Linear(8, 2)),
    ),
}


@pytest.fixture(params=CLASSIFIERS)
def classifier(request):
    window, make = CLASSIFIERS[request.param]
    torch.manual_seed(0)
    return randomize(make()).eval(), window


@torch.no_grad()
def test_one_pass_gives_the_scores_of_the_patches(classifier):
    model, window = classifier
    x = images(18)[:, :, :11]
    expected = sliding_window(model, x, window, batch_size=100)
    assert expected.shape[2:] == x.shape[2:]
    actual = fully_convolutional(model, window)(x)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_the_patch_is_around_its_pixel(classifier):
    model, window = classifier
    x = images(20)
    scores = sliding_window(model, x, window)
    top, left = 10 - window // 2, 12 - window // 2
    patch = x[:, :, max(top, 0) : top + window, left : left + window]
    if patch.shape[2:] == (window, window):
        torch.testing.assert_close(scores[:, :, 10, 12], model(patch))
    corner = nn.functional.pad(x, (window, 0, window, 0))[
        :, :, window - window // 2 :, window - window // 2 :
    ][:, :, :window, :window]
    torch.testing.assert_close(scores[:, :, 0, 0], model(corner))


def test_gradients_reach_the_classifier():
    model = models.get_model("patch_classifier").train()
    sliding_window(model, images(6), 15).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_classifier_stays_as_it_is():
    model = models.get_model("patch_classifier").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dense = fully_convolutional(model, 15)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[6].stride == 2


@pytest.mark.parametrize(
    "layers, window, error, message",
    [
        ([nn.Conv2d(3, 4, 3, padding=1)], 5, ValueError, "padding"),
        ([nn.Conv2d(3, 4, (1, 3))], 5, ValueError, "kernel_size"),
        ([nn.MaxPool2d(2, ceil_mode=True)], 5, ValueError, "padding"),
        ([nn.Conv2d(3, 4, 7)], 5, ValueError, "window=5"),
        ([nn.Flatten(), nn.Linear(70, 2)], 5, ValueError, "5x5"),
        ([nn.AvgPool2d(2)], 5, TypeError, "AvgPool2d"),
        ([nn.Linear(3, 2)], 5, TypeError, "Linear"),
    ],
)
def test_layers_that_cannot_be_turned(layers, window, error, message):
    with pytest.raises(error, match=message):
        fully_convolutional(nn.Sequential(*layers), window)


@pytest.mark.parametrize(
    "x, window, batch_size", [(images(4)[0], 3, 1), (images(4)[:0], 3, 1), (images(4), 0, 1)]
)
def test_bad_arguments(x, window, batch_size):
    with pytest.raises(ValueError, match="images|window"):
        sliding_window(nn.Flatten(), x, window, batch_size)


@torch.no_grad()
def test_full_resolution_sees_depth_pixels_in_each_direction():
    torch.manual_seed(0)
    model = randomize(models.get_model("fcn_full_resolution", width=8, depth=2)).eval()
    x = images(12, batch=1)
    scores = model(x)["out"]
    assert scores.shape == (1, 21, 12, 12)
    x[0, :, 6, 6] += 10
    changed = (model(x)["out"] - scores).abs().amax(1)[0] > 1e-6
    assert changed[4:9, 4:9].any() and changed.sum() == changed[4:9, 4:9].sum()
