"""A torchvision whose compiled library is missing or does not fit torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torchvision.ops")
import torchvision  # noqa: E402

needs_kernels = pytest.mark.usefixtures("needs_kernels")


USE_WITHOUT_LIBRARY = """
    import fastvision, torch
    if {failed_import}:
        try:
            import torchvision
        except RuntimeError as error:
            assert "does not exist" in str(error)
        else:
            raise AssertionError("this torchvision is complete")
    fastvision.enable()
    import torchvision
    from torchvision.models import detection

    assert not torchvision.extension._has_ops()
    torch.manual_seed(0)
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5)
    model = detection.MaskRCNN(
        backbone, 4, min_size=64, max_size=64, box_score_thresh=0, rpn_post_nms_top_n_test=20,
        rpn_pre_nms_top_n_test=50, box_detections_per_img=5).eval()
    with torch.no_grad():
        (result,) = model([torch.rand(3, 64, 64)])
    assert result["masks"].shape == (5, 1, 64, 64), result["masks"].shape

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [5, 5, 6, 6]])
    scores = torch.tensor([0.5, 0.7, 0.6])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    with torch.autocast("cpu", torch.bfloat16):
        assert torchvision.ops.nms(boxes, scores.bfloat16(), 0.5).tolist() == [1, 2]
    if {compile}:
        compiled = torch.compile(
            lambda b, s: torchvision.ops.nms(b, s, 0.5), fullgraph=True, backend="aot_eager")
        assert compiled(boxes[:1], scores[:1]).tolist() == [0]
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    torchvision.ops.roi_align(features, [boxes], 2).sum().backward()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(24.0))
    torchvision.ops.roi_pool(features, [boxes], 2).sum().backward()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(48.0))
    torchvision.ops.ps_roi_align(features, [boxes], 1).sum().backward()
    torchvision.ops.ps_roi_pool(features, [boxes], 1).sum().backward()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(60.0))
    zeros, ones = torch.zeros(1, 2, 8, 8), torch.ones(3, 2, 1, 1, requires_grad=True)
    torchvision.ops.deform_conv2d(features, zeros, ones).sum().backward()
    torch.testing.assert_close(ones.grad[2, :, 0, 0], features.detach().sum((0, 2, 3)))
    fastvision.disable()
    try:
        torchvision.ops.nms(boxes, scores, 0.5)
    except RuntimeError as error:
        assert "Couldn't load custom C++ ops" in str(error), error
    else:
        raise AssertionError("torchvision has no such kernel")
"""


@pytest.mark.parametrize("failed_import", [False, True])
def test_missing_library(tmp_path, failed_import, run_python):
    installed = Path(torchvision.__file__).parent
    (tmp_path / "torchvision").mkdir()
    for entry in installed.iterdir():
        if entry.suffix != ".so":
            (tmp_path / "torchvision" / entry.name).symlink_to(entry)
    code = USE_WITHOUT_LIBRARY.format(failed_import=failed_import, compile=False)
    run_python(code, path=(tmp_path,))


@pytest.mark.skipif(
    "FASTVISION_MISMATCHED_PYTHON" not in os.environ,
    reason="FASTVISION_MISMATCHED_PYTHON names no interpreter whose torchvision does not fit torch",
)
@pytest.mark.parametrize("failed_import", [False, True])
def test_mismatched_library(failed_import, run_python):
    python = os.environ["FASTVISION_MISMATCHED_PYTHON"]
    code = USE_WITHOUT_LIBRARY.format(failed_import=failed_import, compile=True)
    run_python(code, python=python)


@needs_kernels
def test_enable_before_import(run_python):
    run_python(
        """
        import sys, fastvision
        assert "torchvision" not in sys.modules
        fastvision.enable()
        import torch, torchvision
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3.9]])
        assert torchvision.extension._has_ops()
        assert torchvision.ops.nms(boxes.bfloat16(), torch.rand(2).bfloat16(), 0.5).shape == (1,)
        """
    )
