"""fuse() on models that nobody wrote for it: each keeps its results, classes and attributes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .checks import assert_same, check_fuse, share_of_convolutions

os.environ.setdefault("YOLO_VERBOSE", "false")

# convolutions whose weight is computed in each call, so that nothing can be packed
COMPUTED_WEIGHTS = {"nfnet", "vision_transformer_hybrid"}
# that amplify rounding: in float32 their own results are off by more than the tolerance
FLOAT64 = {"gemma4_vit"}
SMALLEST: dict[str, str] = json.loads(Path(__file__).with_name("timm_models.json").read_text())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def image(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0))


def timm_modules() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return timm.list_modules()


def smallest_of(module: str) -> str:
    """Of a module that the table does not know, the one with the fewest parameters."""
    import timm

    def size(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())

    return SMALLEST.get(module) or min(timm.list_models(module=module), key=size)


@pytest.mark.parametrize("module", timm_modules())
def test_timm(module: str) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(smallest_of(module), pretrained=False)
    options = model.pretrained_cfg
    channels, *sizes = options.get("input_size", (3, 224, 224))
    height, width = (size if options.get("fixed_input_size") else min(size, 224) for size in sizes)
    images = [image(1, channels, height, width), image(2, channels, height + 32, width + 64)]
    if module in FLOAT64:
        model, images = model.double(), [x.double() for x in images]
    fused = check_fuse(model, images[0], others=[(images[1],)])
    done, total = share_of_convolutions(fused)
    if module not in COMPUTED_WEIGHTS:
        assert done >= 0.9 * total


YOLO = [
    *("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n"),
    *(
        f"{name}-{task}"
        for name in ("yolov8n", "yolo11n")
        for task in ("seg", "pose", "obb", "cls")
    ),
]


@pytest.mark.parametrize("name", YOLO)
def test_ultralytics(name: str) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"{name}.yaml").model
    fused = check_fuse(model, image(1, 3, 128, 160), others=[(image(2, 3, 96, 96),)])
    done, total = share_of_convolutions(fused)
    assert done == total


def test_rtdetr() -> None:
    """In double precision: it sorts queries, of which random weights make many nearly equal."""
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    model = ultralytics.RTDETR("rtdetr-l.yaml").model.double()
    fused = check_fuse(model, image(1, 3, 128, 160).double())
    done, total = share_of_convolutions(fused)
    assert done == total


ARCHITECTURES = [
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3"),
    *("DeepLabV3Plus", "UPerNet", "Segformer"),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_segmentation_models(name: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, name)(encoder_name="resnet18", encoder_weights=None)
    fused = check_fuse(model, image(1, 3, 128, 128), others=[(image(2, 3, 64, 96),)])
    done, total = share_of_convolutions(fused)
    assert done == total


@pytest.mark.parametrize("name", ["efficientdet_d0", "tf_efficientdet_d0"])
def test_effdet(name: str) -> None:
    effdet = pytest.importorskip("effdet")
    torch.manual_seed(0)
    model = effdet.create_model(name, pretrained=False, pretrained_backbone=False)
    fused = check_fuse(model, image(1, 3, 512, 512))
    done, total = share_of_convolutions(fused)
    assert done >= 0.9 * total


def torchvision_models() -> list[tuple[str, str]]:
    models = pytest.importorskip("torchvision.models")
    groups = {
        "classification": models,
        "segmentation": models.segmentation,
        "video": models.video,
    }
    return [
        (group, name) for group, module in groups.items() for name in models.list_models(module)
    ]


# of the sizes of one architecture, which differ in depth and width only, the smaller ones do
LARGE = ("vit_h", "vit_l", "_128gf", "_32gf", "_16gf", "convnext_l", "swin_b", "efficientnet_v2_l",
         "swin3d_b", "swin3d_s", "efficientnet_b7", "efficientnet_b6", "mvit_v1")  # fmt: skip


@pytest.mark.parametrize(
    "group, name",
    [(g, n) for g, n in torchvision_models() if not any(large in n for large in LARGE)],
)
def test_torchvision(group: str, name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    if group == "segmentation":
        options |= {"weights_backbone": None, "num_classes": 5}
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    size = 64
    if name.startswith(("vit", "maxvit", "mvit", "s3d")):
        size = 224
    elif name.startswith("inception"):
        size = 299
    frames = (16,) if group == "video" else ()
    model = models.get_model(name, **options)
    others = [] if group == "video" else [(image(2, 3, size + 32, size),)]
    fused = check_fuse(model, image(1, 3, *frames, size, size), others=others)
    done, total = share_of_convolutions(fused)
    assert done == total


@pytest.fixture
def astronaut() -> Any:
    data = pytest.importorskip("skimage.data")
    pil = pytest.importorskip("PIL.Image")
    return pil.fromarray(data.astronaut())


def mtcnn() -> nn.Module:
    return pytest.importorskip("facenet_pytorch").MTCNN(keep_all=True, device="cpu").eval()


def detected(model: nn.Module, picture: Any) -> list[Any]:
    with torch.no_grad():
        return list(model.detect(picture, landmarks=True))


def test_mtcnn_finds_the_same_faces_when_enabled(astronaut) -> None:
    import fastvision

    model = mtcnn()
    expected = detected(model, astronaut)
    with fastvision.enabled():
        actual = detected(model, astronaut)
    for a, e in zip(actual, expected, strict=True):
        assert (a == e).all()
    assert len(expected[0]) > 0


def test_mtcnn_finds_the_same_faces_when_fused(astronaut) -> None:
    import fastvision

    model = mtcnn()
    fused = fastvision.fuse(model)
    run: Callable[..., list[Any]] = detected
    expected, actual = run(model, astronaut), run(fused, astronaut)
    for a, e in zip(actual, expected, strict=True):
        assert_same(torch.tensor(a.tolist()), torch.tensor(e.tolist()))
    done, total = share_of_convolutions(fused)
    assert done == total > 0
