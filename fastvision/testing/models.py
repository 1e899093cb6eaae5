"""Models to test, and what tests of whole models share: weights, images, comparisons."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvision.testing import cases


class Case(NamedTuple):
    """A model, the images' size, and options of its builder."""

    name: str
    size: int = 64
    options: dict[str, object] = {}  # noqa: RUF012  (never written to)
    channels: int = 3


# models that torchvision has too
TORCHVISION = (
    Case("alexnet", 63),
    Case("densenet121"),
    Case("densenet121", 64, {"memory_efficient": True}),
    Case("googlenet"),
    Case("googlenet", 64, {"aux_logits": False, "transform_input": True}),
    Case("inception_v3", 107, {"aux_logits": False}),
    Case("mobilenet_v2", 32),
    Case("mobilenet_v3_large", 33),
    Case("mobilenet_v3_small", 33),
    Case("mobilenet_v3_small", 40, {"reduced_tail": True, "dilated": True}),
    Case("resnet18"),
    Case("resnet34"),
    Case("resnet50"),
    Case("resnet101"),
    Case("resnet152", 40),
    Case("resnext50_32x4d"),
    Case("resnext101_32x8d", 40),
    Case("resnext101_64x4d", 40),
    Case("vgg11", 32),
    Case("vgg13_bn", 32),
    Case("wide_resnet50_2"),
    Case("wide_resnet101_2", 40),
    Case("shufflenet_v2_x0_5", 33),
    Case("shufflenet_v2_x1_0", 33),
    Case("shufflenet_v2_x1_5", 33),
    Case("shufflenet_v2_x2_0", 33),
    Case("fcn_resnet50", 33, {"weights_backbone": None}),
    Case("fcn_resnet50", 24, {"weights_backbone": None, "aux_loss": True, "num_classes": 5}),
    Case("fcn_resnet101", 17, {"weights_backbone": None}),
    Case("deeplabv3_resnet50", 33, {"weights_backbone": None, "aux_loss": True}),
    Case("deeplabv3_resnet101", 17, {"weights_backbone": None}),
    Case("deeplabv3_mobilenet_v3_large", 33, {"weights_backbone": None}),
    Case(
        "deeplabv3_mobilenet_v3_large",
        40,
        {"weights_backbone": None, "aux_loss": True, "num_classes": 5},
    ),
    Case("lraspp_mobilenet_v3_large", 40, {"weights_backbone": None}),
)

# models that torchvision does not have, of each architecture those that differ in more than size
OTHERS = (
    Case("lenet5", 28, channels=1),
    Case("nin_cifar10", 32),
    Case("nin_imagenet", 95),
    Case("plain18"),
    *(Case(name, 32) for name in ("resnet20", "plain20")),
    *(Case(f"mobilenet_v1_x{width}") for width in ("1_0", "0_25")),
    *(Case(f"shufflenet_v1_g{groups}") for groups in (1, 3, 8)),
    Case("xception", 71),
    Case("inception_resnet_v2", 75),
    Case("localizer", 32, {"backbone": "mobilenet_v1_x0_25"}),
    *(Case(name, 64, {"width_mult": 0.125}) for name in ("extraction", "darknet19", "darknet53")),
    Case("patch_classifier", 15),
    Case("fcn_full_resolution", 16, {"width": 16}),
)


def randomize(model: nn.Module, seed: int = 0, *, frozen: bool = False) -> nn.Module:
    """Gives the normalizations random statistics and affine parameters, so that none of them is
    the identity; activations keep their magnitude.

    ``frozen``: those whose statistics are constants too, which some models scale residuals with.
    """
    generator = cases.generator(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).mul_(high - low).add_(low)

    module: Any
    with torch.no_grad():
        for module in model.modules():
            others = frozen and getattr(module, "running_mean", None) is not None
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or others:
                for values, low, high in (
                    (module.weight, 0.5, 1.0),
                    (module.bias, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    if values is not None:
                        values.copy_(uniform(values, low, high))
    return model


def images(size: int, batch: int = 2, seed: int = 0, channels: int = 3) -> Tensor:
    """Normal noise [batch, channels, size, size]."""
    return cases.feature_map(batch, channels, size, size, seed=seed)


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors in a model's result, in order, leaving out None and text."""
    if isinstance(result, Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    return [t for x in items if not (x is None or isinstance(x, str)) for t in tensors_of(x)]


def assert_same(
    actual: Any, expected: Any, tolerance: float = 1e-4, *, strides: bool = True
) -> None:
    """Each tensor to within ``tolerance`` of its largest value.

    ``strides``: whether they have to be equal too.
    """
    actual, expected = tensors_of(actual), tensors_of(expected)
    assert len(actual) == len(expected) > 0
    for a, e in zip(actual, expected, strict=True):
        assert torch.isfinite(e).all()
        limit = tolerance * e.abs().max().item()
        torch.testing.assert_close(a, e, rtol=0, atol=limit, check_stride=strides)
