"""Videos and cameras."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvision.cli import main

cv2 = pytest.importorskip("cv2")

SIZE = (64, 48)


def frame(i: int) -> np.ndarray:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[16:32, 16 + 8 * i : 24 + 8 * i] = 255
    return pixels


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Four frames in which a rectangle moves to the right."""
    path = tmp_path / "größe 1.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, SIZE)
    assert writer.isOpened()
    for i in range(4):
        writer.write(frame(i))
    writer.release()
    return path


def detect(*arguments: Any) -> int:
    return main(["detect", "--device", "cpu", "--quiet", *map(str, arguments)])


def found(out: Path) -> list[tuple[int, float]]:
    """Frame and left side of each box."""
    images = json.loads((out / "images.json").read_text())["images"]
    frames = {image["id"]: image["frame"] for image in images}
    results = json.loads((out / "results.json").read_text())
    return [(frames[result["image_id"]], result["bbox"][0]) for result in results]


def test_frames_are_done_and_drawn(video: Path, detector: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert detect(video, *detector, "--out", out, "--score", 0.7, "--batch-size", 3) == 0
    frames, sides = zip(*found(out), strict=True)
    assert frames == (0, 1, 2, 3)
    assert sides == pytest.approx((16, 24, 32, 40), abs=2)

    capture = cv2.VideoCapture(str(out / video.name))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    _, drawn = capture.read()
    assert drawn.shape == (240, 320, 3)  # enlarged
    assert np.ptp(drawn.astype(int), axis=2).max() > 100  # the color of a class on grey
    capture.release()


def test_limit(video: Path, detector: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert detect(video, *detector, "--out", out, "--score", 0.7, "--frames", 2) == 0
    assert [number for number, _ in found(out)] == [0, 1]


def test_a_broken_video_is_named(video: Path, detector: list[str], tmp_path: Path, capsys) -> None:
    video.write_bytes(video.read_bytes()[:100])
    assert detect(video, *detector, "--out", tmp_path / "out") == 1
    assert f"not done: {video} cannot be opened as a video" in capsys.readouterr().err


class Camera:
    """Two frames, after which it is unplugged."""

    def __init__(self, number: int) -> None:
        assert number == 3
        self._frames = [frame(0), frame(1)]

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def get(self, what: int) -> float:
        return -1.0

    def read(self) -> tuple[bool, Any]:
        return (True, self._frames.pop(0)) if self._frames else (False, None)

    def release(self) -> None:
        pass


def test_camera(detector: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    out = tmp_path / "out"
    options = (*detector, "--out", out, "--score", 0.7)
    assert detect("camera:3", *options, "--frames", 2) == 0
    assert found(out) == [(0, 16.0), (1, 24.0)]
    assert (out / "camera-3.mp4").exists()
    assert detect("camera:3", *options) == 1
    assert "camera:3 ended after 2 frames" in capsys.readouterr().err
    assert found(out) == [(0, 16.0), (1, 24.0)]


def test_opencv_may_be_missing(video: Path, detector: list[str], tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert detect(video, *detector, "--out", tmp_path / "out") == 1
    assert "cv2 is not installed: pip install 'fastvision[detect]'" in capsys.readouterr().err
