"""Reference models, built from :mod:`fastvision.ops`: one file per architecture."""

from . import darknet, detection, segmentation, sequence
from ._registry import get_model, get_model_builder, list_models
from ._stages import Stages
from .alexnet import AlexNet, alexnet
from .darknet import Darknet, darknet19, darknet53, extraction
from .densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from .googlenet import GoogLeNet, GoogLeNetOutputs, googlenet
from .inception import Inception3, InceptionOutputs, inception_v3
from .inception_resnet_v2 import InceptionResNetV2, inception_resnet_v2
from .lenet import LeNet5, lenet5
from .localization import LocalizationLoss, Localizer, localization_loss, localizer
from .mobilenet_v1 import (
    MobileNetV1,
    mobilenet_v1_x0_5,
    mobilenet_v1_x0_25,
    mobilenet_v1_x0_75,
    mobilenet_v1_x1_0,
)
from .mobilenetv2 import MobileNetV2, mobilenet_v2
from .mobilenetv3 import MobileNetV3, mobilenet_v3_large, mobilenet_v3_small
from .nin import NiN, nin_cifar10, nin_imagenet
from .plain import PlainNet, plain18, plain34, plain50, plain101, plain152
from .resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from .resnet_cifar import CifarResNet, plain20, plain56, resnet20, resnet56
from .shufflenet_v1 import (
    ShuffleNetV1,
    shufflenet_v1_g1,
    shufflenet_v1_g2,
    shufflenet_v1_g3,
    shufflenet_v1_g4,
    shufflenet_v1_g8,
)
from .shufflenetv2 import (
    ShuffleNetV2,
    shufflenet_v2_x0_5,
    shufflenet_v2_x1_0,
    shufflenet_v2_x1_5,
    shufflenet_v2_x2_0,
)
from .vgg import VGG, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from .xception import Xception, xception

__all__ = [
    "VGG",
    "AlexNet",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "Darknet",
    "DenseNet",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "Inception3",
    "InceptionOutputs",
    "InceptionResNetV2",
    "LeNet5",
    "LocalizationLoss",
    "Localizer",
    "MobileNetV1",
    "MobileNetV2",
    "MobileNetV3",
    "NiN",
    "PlainNet",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "Stages",
    "Xception",
    "alexnet",
    "darknet",
    "darknet19",
    "darknet53",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "detection",
    "extraction",
    "get_model",
    "get_model_builder",
    "googlenet",
    "inception_resnet_v2",
    "inception_v3",
    "lenet5",
    "list_models",
    "localization_loss",
    "localizer",
    "mobilenet_v1_x0_5",
    "mobilenet_v1_x0_25",
    "mobilenet_v1_x0_75",
    "mobilenet_v1_x1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "nin_cifar10",
    "nin_imagenet",
    "plain18",
    "plain20",
    "plain34",
    "plain50",
    "plain56",
    "plain101",
    "plain152",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "segmentation",
    "sequence",
    "shufflenet_v1_g1",
    "shufflenet_v1_g2",
    "shufflenet_v1_g3",
    "shufflenet_v1_g4",
    "shufflenet_v1_g8",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "xception",
]
