"""Numbers of parameters, of which each is what its paper's layers come to."""

import pytest
import torch

from fastvision import models

PARAMETERS = {
    "lenet5": 61_706,
    "nin_cifar10": 966_986,
    "nin_imagenet": 7_595_176,
    "plain18": 11_515_688,
    "plain34": 21_623_848,
    "plain50": 22_780_456,
    "plain101": 41_772_584,
    "plain152": 57_416_232,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "plain20": 269_722,
    "plain56": 853_018,
    "extraction": 23_428_136,
    "darknet19": 20_842_376,
    "darknet53": 41_609_928,
    "xception": 22_855_952,
    "inception_resnet_v2": 55_843_464,
    "mobilenet_v1_x1_0": 4_231_976,
    "mobilenet_v1_x0_75": 2_585_560,
    "mobilenet_v1_x0_5": 1_331_592,
    "mobilenet_v1_x0_25": 470_072,
    "shufflenet_v1_g1": 1_531_936,
    "shufflenet_v1_g2": 1_733_848,
    "shufflenet_v1_g3": 1_865_728,
    "shufflenet_v1_g4": 1_968_344,
    "shufflenet_v1_g8": 2_434_768,
    "fast_rcnn_vgg16": 134_690_729,
    "faster_rcnn_vgg16": 134_690_729 + 2_387_510,
}


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        assert parameters(models.get_model(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name, classifier", [("rcnn_alexnet", 57_089_877), ("rcnn_vgg16", 134_346_581)]
)
def test_parameters_of_rcnn(name, classifier):
    with torch.device("meta"):
        model = models.get_model(name)
    assert parameters(model.network) == classifier
    assert parameters(model.svms) == 20 * 4097


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_a_plain_network_lacks_the_projections_of_its_resnet(depth):
    with torch.device("meta"):
        plain, residual = (models.get_model(f"{kind}{depth}") for kind in ("plain", "resnet"))
    projections = [m for n, m in residual.named_modules() if n.endswith("downsample")]
    assert parameters(residual) == parameters(plain) + sum(map(parameters, projections))
