"""Our layers are torchvision's where code asks isinstance()."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

from fastvision import ops
from fastvision.integrations.torchvision import classes
from fastvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

pytest.importorskip("torchvision.ops")
from torchvision import ops as theirs  # noqa: E402
from torchvision.models import detection  # noqa: E402

PAIRS = [
    (ours, getattr(sys.modules[module], name))
    for module, types in classes._TYPES.items()
    for ours, name in types
]


def layers() -> list[nn.Module]:
    return [
        ops.FrozenBatchNorm2d(3),
        ops.Conv2dNormActivation(3, 4, norm_layer=ops.FrozenBatchNorm2d),
        ops.ConvTranspose2dNormActivation(3, 4),
        ops.RoIAlign(2, 1.0, 2),
        ops.MultiScaleRoIAlign(["0"], 2, 2),
        ops.RoIPool(2, 1.0),
        ops.PSRoIAlign(2, 1.0, 2),
        ops.PSRoIPool(2, 1.0),
        ops.SqueezeExcitation(4, 2),
        ops.Conv3dNormActivation(3, 4),
        ops.DropBlock2d(0.1, 3),
        ops.DropBlock3d(0.1, 3),
        ops.FeaturePyramidNetwork([4, 8], 4, LastLevelMaxPool()),
        LastLevelMaxPool(),
        LastLevelP6P7(4, 4),
        ops.MLP(4, [8, 4]),
        ops.Permute([1, 0]),
        ops.StochasticDepth(0.1, "row"),
        ops.DeformConv2d(4, 2, 3),
    ]


def test_isinstance():
    frozen, conv, transposed, pool, pyramid, maxima, samples, means, gate, *others = layers()
    for layer in others:
        (stock,) = (c for c in type(layer).__bases__ if c.__module__.startswith("torchvision."))
        assert stock.__name__ == type(layer).__name__
    assert isinstance(frozen, theirs.misc.FrozenBatchNorm2d)
    assert isinstance(gate, theirs.misc.SqueezeExcitation)
    assert isinstance(conv, theirs.misc.Conv2dNormActivation)
    assert isinstance(conv, theirs.misc.ConvNormActivation) and isinstance(conv, nn.Sequential)
    assert isinstance(transposed, theirs.misc.ConvNormActivation)
    assert not isinstance(transposed, theirs.misc.Conv2dNormActivation)
    assert isinstance(pool, theirs.RoIAlign) and isinstance(pyramid, theirs.MultiScaleRoIAlign)
    assert isinstance(maxima, theirs.RoIPool)
    assert isinstance(samples, theirs.PSRoIAlign) and isinstance(means, theirs.PSRoIPool)
    assert not isinstance(theirs.FrozenBatchNorm2d(3), ops.FrozenBatchNorm2d)


@pytest.mark.parametrize(("ours", "stock"), PAIRS)
def test_nothing_else_is_inherited(ours, stock):
    """What torchvision's class overrides of torch's, ours overrides, too."""
    for name in vars(stock):
        if callable(getattr(nn.Sequential, name, None)) and name not in ("__class__", "__doc__"):
            defined = any(name in vars(c) for c in ours.__mro__ if "fastvision" in c.__module__)
            assert defined, name


def test_layers_work_as_before():
    x = torch.rand(2, 3, 8, 8)
    for layer in layers()[:3]:
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), expected)
            other.load_state_dict(layer.state_dict())
        assert type(layer).__module__ == "fastvision.ops.misc"
    ops.FrozenBatchNorm2d(3).load_state_dict(nn.BatchNorm2d(3).state_dict())


def test_torchvision_takes_them():
    theirs.FeaturePyramidNetwork([4], 4, LastLevelMaxPool())
    model = nn.Sequential(ops.FrozenBatchNorm2d(3))
    detection._utils.overwrite_eps(model, 0.5)
    assert model[0].eps == 0.5
    backbone = nn.Conv2d(3, 8, 3)
    backbone.out_channels = 8
    pooler = ops.MultiScaleRoIAlign(["0"], 2, 2)
    anchors = detection.rpn.AnchorGenerator(((16,),), ((1.0,),))
    model = detection.FasterRCNN(backbone, 3, rpn_anchor_generator=anchors, box_roi_pool=pooler)
    assert model.roi_heads.box_roi_pool is pooler


@pytest.mark.parametrize(
    "order",
    [
        "import torchvision; import fastvision; m = build()",
        "import fastvision; import torchvision; m = build()",
        "import fastvision; m = build(); import torchvision",
        "import fastvision; m = build(); fastvision.enable(); import torchvision",
    ],
)
def test_any_order_of_imports(order, run_python):
    run_python(
        f"""
        import sys
        def build():
            return fastvision.ops.FrozenBatchNorm2d(3)
        for line in {order.split("; ")!r}:
            exec(line)
        assert isinstance(m, torchvision.ops.FrozenBatchNorm2d)
        assert issubclass(fastvision.ops.RoIAlign, torchvision.ops.RoIAlign)
        import torch
        m(torch.rand(1, 3, 2, 2))
        """
    )


def test_does_not_import_torchvision(run_python):
    run_python("import sys, fastvision; assert 'torchvision' not in sys.modules")
