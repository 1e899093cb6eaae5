"""The commands ``fastvision detect``, ``segment`` and ``classify``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvision.cli import main


def detect(*arguments: Any, command: str = "detect") -> int:
    return main([command, "--device", "cpu", "--quiet", *map(str, arguments)])


def results(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    index = json.loads((out / "images.json").read_text())
    return index, json.loads((out / "results.json").read_text())


def boxes_by_name(out: Path) -> dict[str, list[list[float]]]:
    index, found = results(out)
    names = {image["id"]: image["file_name"] for image in index["images"]}
    boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for finding in found:
        boxes[names[finding["image_id"]]].append(finding["bbox"])
    return boxes


BOX = [16.0, 8.0, 8.0, 24.0]


def test_a_folder_of_odd_pictures(
    folder: Path, detector: list[str], tmp_path: Path, capsys
) -> None:
    from PIL import Image

    out = tmp_path / "out"
    assert detect(folder, *detector, "--out", out, "--score", 0.7) == 1
    captured = capsys.readouterr()
    index, _ = results(out)
    reasons = {failed["file_name"]: failed["error"] for failed in index["failed"]}
    assert reasons.keys() == {"broken.jpg", "empty.png", "single.png"}
    assert reasons["empty.png"].endswith("empty.png is empty")
    assert "cannot be read as a picture" in reasons["broken.jpg"]
    assert "too small for this model" in reasons["single.png"]
    assert all(reason in captured.err for reason in reasons.values())

    expected = {name: [BOX] for name in ("plain.png", "wide.png", "palette.png")}
    expected["deep er/Größe 数字.png"] = [BOX]
    expected["moving.gif"] = [[x, *BOX[1:]] for x in (16.0, 24.0, 32.0)]
    expected["turned.jpg"] = [[16.0, 16.0, 24.0, 8.0]]  # 48 wide and 64 high
    expected["grey.jpg"] = expected["cmyk.jpg"] = [BOX]
    found = boxes_by_name(out)
    assert found.keys() == expected.keys()
    for name, boxes in expected.items():
        np.testing.assert_allclose(found[name], boxes, atol=1, err_msg=name)  # JPEG blurs edges
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in index["images"]}
    assert sizes["turned.jpg"] == (48, 64)

    for name in expected:
        with Image.open(out / name) as copy, Image.open(folder / name) as original:
            assert getattr(copy, "n_frames", 1) == getattr(original, "n_frames", 1), name
            assert copy.format == original.format
    assert "deep er/Größe 数字.png: 2 0.90\n" in captured.out
    assert (out / "summary.txt").read_text() in captured.out
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("lines", ["background\nnear\nfar\n", "near\nfar"])
def test_coco_reads_the_results(
    lines: str, folder: Path, detector: list[str], tmp_path: Path
) -> None:
    from pycocotools.coco import COCO

    names = tmp_path / "names.txt"
    names.write_text(lines)
    out = tmp_path / "out"
    picture = folder / "plain.png"
    assert detect(picture, *detector, "--out", out, "--score", 0.5, "--classes", names) == 0
    truth = COCO(str(out / "images.json"))
    loaded = truth.loadRes(str(out / "results.json"))
    assert [truth.cats[i]["name"] for i in (1, 2)] == ["near", "far"]
    first, second = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert (first["category_id"], second["category_id"]) == (2, 1)
    assert (first["score"], second["score"]) == pytest.approx((0.9, 0.6))
    assert first["bbox"] == BOX and first["keypoints"] == [16, 8, 1, 24, 32, 1]
    mask = loaded.annToMask(first)
    assert mask.shape == (48, 64) and mask.sum() == 8 * 24 and mask[8:32, 16:24].all()


def test_numbers_of_coco_are_kept(folder: Path, detector: list[str], tmp_path: Path) -> None:
    files = [folder / "000000000012.png", folder / "000000000007.png"]
    (folder / "plain.png").rename(files[0])
    (folder / "wide.png").rename(files[1])
    assert detect(*files, *detector, "--out", tmp_path / "out") == 0
    index, found = results(tmp_path / "out")
    assert [image["id"] for image in index["images"]] == [12, 7]
    assert [finding["image_id"] for finding in found] == [12, 12, 7, 7]


def test_thresholds_reach_the_model(detector: list[str]) -> None:
    from fastvision.inference import load_predictor

    _, name, _, path = detector
    predictor = load_predictor("detection", name, path, score=0.3, nms=0.7)
    assert (predictor.model.score_thresh, predictor.model.nms_thresh) == (0.3, 0.7)
    assert load_predictor("detection", name, path).model.nms_thresh == 0.5


def test_batches_change_nothing(folder: Path, checkpoint: str, tmp_path: Path) -> None:
    options = (folder, "--weights", checkpoint, "--score", 0, "--no-pictures")
    for size in (1, 4):
        assert detect(*options, "--out", tmp_path / str(size), "--batch-size", size) == 1
    one, four = (results(tmp_path / str(size)) for size in (1, 4))
    assert one[0] == four[0] and len(one[1]) == len(four[1]) == 11
    for a, b in zip(one[1], four[1], strict=True):
        assert a["category_id"] == b["category_id"]
        np.testing.assert_allclose(a["bbox"], b["bbox"], rtol=1e-3, atol=1e-2)
    assert not list((tmp_path / "1").rglob("*.png"))


def test_a_checkpoint_brings_model_and_classes(
    folder: Path, checkpoint: str, tmp_path: Path, capsys
) -> None:
    from fastvision.inference import load_predictor, read_picture

    out = tmp_path / "out"
    picture = folder / "plain.png"
    assert detect(picture, "--weights", checkpoint, "--out", out, "--score", 0) == 0
    index, (found,) = results(out)
    assert [category["name"] for category in index["categories"]] == list("0123456789")

    predictor = load_predictor("detection", weights=checkpoint, score=0)
    image = torch.from_numpy(np.array(read_picture(picture))).permute(2, 0, 1).float() / 255
    small = torch.nn.functional.interpolate(
        image[None], (32, 32), mode="bilinear", antialias=True, align_corners=False
    )
    box, scores = predictor.model(small)
    x1, y1, x2, y2 = (box[0] * torch.tensor([64, 48, 64, 48])).tolist()
    assert found["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.5)
    assert found["category_id"] == scores.argmax()
    assert found["score"] == pytest.approx(float(scores.softmax(1).max()), abs=0.01)


def test_bf16_is_close(folder: Path, checkpoint: str, tmp_path: Path) -> None:
    options = (folder / "plain.png", "--weights", checkpoint, "--score", 0, "--no-pictures")
    assert detect(*options, "--out", tmp_path / "a") == 0
    assert detect(*options, "--out", tmp_path / "b", "--bf16") == 0
    (full,), (half,) = (results(tmp_path / name)[1] for name in "ab")
    assert half["bbox"] == pytest.approx(full["bbox"], abs=5)
    assert half["bbox"] != full["bbox"]


def test_classification(folder: Path, tmp_path: Path, capsys) -> None:
    from PIL import Image

    from fastvision import models
    from fastvision.data import classification_evaluation

    torch.manual_seed(0)
    model = models.mobilenet_v3_small(num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "small.pth")
    options = ("--model", "mobilenet_v3_small", "--weights", tmp_path / "small.pth", "--top", 3)
    options += ("--set", "num_classes=7")
    out = tmp_path / "out"
    picture = folder / "plain.png"
    assert detect(picture, *options, "--out", out, command="classify") == 0
    _, found = results(out)
    image = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)
    best = model(classification_evaluation(crop=224 / 256)(image)[None]).softmax(1)[0].topk(3)
    assert [finding["category_id"] for finding in found] == best.indices.tolist()
    assert [finding["score"] for finding in found] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert f"{best.indices[0]} " in capsys.readouterr().out


def test_segmentation(folder: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    from fastvision.models import segmentation

    torch.manual_seed(0)
    model = segmentation.unet(num_classes=3, base_width=4)
    torch.save(model.state_dict(), tmp_path / "unet.pth")
    values = ("num_classes=3", "base_width=4")
    options = ("--model", "unet", "--weights", tmp_path / "unet.pth", "--set", *values)
    out = tmp_path / "out"
    picture = folder / "plain.png"
    assert detect(picture, *options, "--out", out, command="segment") == 0
    truth = COCO(str(out / "images.json"))
    loaded = truth.loadRes(str(out / "results.json"))
    masks = [loaded.annToMask(finding) for finding in loaded.anns.values()]
    assert (sum(masks) == 1).all()  # each pixel has a class


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no pictures are given"),
        (("nowhere.png",), "there is no file or folder nowhere.png"),
        (("*.jpg",), "no file matches *.jpg"),
        (("camera:front",), "a camera must be camera: and a number, got 'camera:front'"),
        ((".",), "the folder . has no pictures"),
        (("a.gif", "--score", "2"), "score must be from 0 to 1, got 2.0"),
        (("a.gif", "--device", "gpu"), "device must be such as cpu, cuda or cuda:1, got 'gpu'"),
        (("a.gif", "--nms", "-1"), "nms must be from 0 to 1, got -1.0"),
        (("a.gif", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("a.gif", "--frames", "0"), "--frames must be at least 1, got 0"),
        (("a.gif", "--model", "resnet18"), "model must be one of bright_rectangle"),
        (("a.gif", "--weights", "none.pth"), "none.pth"),
        (("a.gif", "--set", "depth=3"), "unknown key bright_rectangle.depth; known: "),
        (("a.gif", "--demo"), "--demo makes its own picture, got a.gif"),
        (("a.gif", "--out", "."), "would replace a.gif; choose another folder"),
        (("a.gif", "--out", "a.gif"), "--out must be a folder, but a.gif is a file"),
        (("a.gif", "--classes", "none.txt"), "--classes: there is no file none.txt"),
        (("a.gif", "--classes", "a.gif"), "--classes: a.gif is no text in UTF-8"),
        (("a.gif", "--classes", "empty.txt"), "--classes: empty.txt has no names"),
    ],
)
def test_errors(arguments, message, detector, tmp_path, monkeypatch, capsys) -> None:
    from PIL import Image

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if "a.gif" in arguments:
        Image.new("RGB", (8, 8), "white").save("a.gif")
        Path("empty.txt").write_text("\n")
    assert detect(*detector, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastvision detect: error: ") and message in error


def test_missing_names(folder: Path, checkpoint: str, capsys) -> None:
    picture = folder / "plain.png"
    assert detect(picture) == 1
    assert "a model is missing: one of " in capsys.readouterr().err
    assert detect(picture, "--model", "resnet18", command="classify") == 1
    assert "weights of resnet18 are missing" in capsys.readouterr().err
    assert detect(picture, "--weights", checkpoint, command="classify") == 1
    assert "a model for classification is needed, got one for loc" in capsys.readouterr().err
    assert detect(picture, "--weights", checkpoint, "--model", "unet") == 1
    assert "the weights are of the model localizer, got model 'unet'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", "weights: there is no file or folder none.pth"),
        ("empty.pth", "a model is missing, since empty.pth is no checkpoint of fastvision train"),
        ("run", "the folder run has no best.pt or last.pt"),
    ],
)
def test_weights_that_name_no_model(name, message, folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("empty.pth").touch()
    for command in ("detect", "segment", "classify"):
        assert detect(folder / "plain.png", "--weights", name, command=command) == 1
        assert message in capsys.readouterr().err


def test_empty_weights(folder: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "empty.pth"
    path.touch()
    assert detect(folder / "plain.png", "--model", "small_ssd", "--weights", path) == 1
    assert capsys.readouterr().err == (
        f"fastvision detect: error: small_ssd: weights: {path} is empty\n"
    )
    assert main(["evaluate", str(path)]) == 1
    assert f"{path} is not a checkpoint (it is empty)" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "none")]) == 1
    assert f"error: no file {tmp_path / 'none'}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 9, 11])
def test_names_for_other_weights(
    count: int, folder: Path, checkpoint: str, tmp_path: Path, capsys
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name {i}" for i in range(count)))
    assert detect(folder / "plain.png", "--weights", checkpoint, "--classes", names) == 1
    message = f"classes must name all 10 labels of the weights, got {count} names"
    assert message in capsys.readouterr().err


def test_a_signal_keeps_what_is_done(
    folder: Path, detector: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    from fastvision.inference import output

    add = output.Output.add

    def add_and_stop(self, frame, findings) -> None:
        add(self, frame, findings)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(output.Output, "add", add_and_stop)
    assert detect(folder, *detector, "--out", tmp_path / "out") == 128 + signal.SIGINT
    index, found = results(tmp_path / "out")
    assert len(index["images"]) == 1 and len(found) == 2
    assert "what was done is kept" in capsys.readouterr().out


def test_broken_answers_are_named(
    folder: Path, detector: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    from fastvision.models import get_model

    scores = torch.tensor([float("nan"), 0.5])
    kind = type(get_model("bright_rectangle", weights=detector[-1]))
    found = kind._found
    monkeypatch.setattr(kind, "_found", lambda self, image: found(self, image) | {"scores": scores})
    assert detect(folder / "plain.png", *detector, "--out", tmp_path / "out") == 1
    assert "the model's boxes or scores are not finite" in capsys.readouterr().err


def test_broken_weights_are_named(
    folder: Path, detector: list[str], tmp_path: Path, capsys
) -> None:
    torch.save({"scores": torch.tensor([float("nan"), 0.5])}, detector[-1])
    assert detect(folder / "plain.png", *detector, "--out", tmp_path / "out") == 1
    assert "are not finite, such as scores" in capsys.readouterr().err


def test_copies_of_one_name_are_numbered(folder: Path, detector: list[str], tmp_path: Path) -> None:
    (folder / "plain.png").rename(folder / "deep er" / "grey.png")
    out = tmp_path / "out"
    files = (folder / "grey.jpg", folder / "deep er" / "grey.png")
    assert detect(*files, files[0], *detector, "--out", out) == 0
    assert {path.name for path in out.iterdir()} >= {"grey.jpg", "grey-2.png"}
    images = results(out)[0]["images"]
    assert [image["path"] for image in images] == [str(path) for path in files]


def test_names_that_are_no_text(detector: list[str], tmp_path: Path, capsys) -> None:
    from PIL import Image

    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    name = os.fsdecode(b"odd \xff.png")
    Image.new("RGB", (8, 8)).save(folder / name)
    (folder / os.fsdecode(b"empty \xfe.png")).touch()
    assert detect(folder, *detector, "--out", out) == 1
    assert [image["file_name"] for image in results(out)[0]["images"]] == [name]
    captured = capsys.readouterr()
    assert "odd \\udcff.png: nothing" in captured.out
    assert "empty \\udcfe.png is empty" in captured.err
    assert (out / name).exists()


def test_a_pattern_of_folders_matches_nothing(
    folder: Path, detector: list[str], tmp_path: Path, capsys
) -> None:
    assert detect(folder / "deep*", *detector, "--out", tmp_path / "out") == 1
    assert "no file matches" in capsys.readouterr().err


def test_names_of_other_classes_are_not_taken(tmp_path: Path) -> None:
    """A file of weights decides over the number of classes, and COCO's have 91 with gaps."""
    from fastvision import models
    from fastvision.inference import load_predictor

    name, path = "ssdlite320_mobilenet_v3_large", str(tmp_path / "weights.pth")
    for count, person in ((4, "1"), (91, "person")):
        model = models.get_model(name, weights_backbone=None, num_classes=count)
        torch.save(model.state_dict(), path)
        assert load_predictor("detection", name, path).name(1) == person


def test_links_to_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    from fastvision.inference.sources import find_sources

    inside, outside = folder / "deep er", tmp_path / "else where"
    (folder / "wide.png").rename(tmp_path / "wide.png")
    outside.mkdir()
    (tmp_path / "wide.png").rename(outside / "wide.png")
    (folder / "linked").symlink_to(outside)
    (inside / "back").symlink_to(folder)
    (outside / "again").symlink_to(outside)
    (folder / "a link").symlink_to(inside)
    names = [source.name for source in find_sources([str(folder)], tmp_path / "out")]
    assert "linked/wide.png" in names and "deep er/Größe 数字.png" in names
    assert len(names) == len({Path(name).name for name in names}) == 11
