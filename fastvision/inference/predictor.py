"""A trained model that takes pictures and answers in their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .findings import Findings, from_class_map, from_class_scores, from_detection

Prepare = Callable[[Tensor], Tensor]
BACKGROUND = ("background", "__background__", "no person")

# what models of each task can be asked for
COMMANDS = {
    "detection": ("detection", "instance_segmentation", "keypoints", "localization"),
    "segmentation": ("segmentation",),
    "classification": ("classification",),
}


class Predictor:
    """Finds objects, regions or classes in pictures.

    Args:
        model: in evaluation. Of the task "detection" (as well as "instance_segmentation" and
            "keypoints") it takes a list of images [3, H, W] and returns a list of dictionaries with
            "boxes", "labels" and "scores", as torchvision's; of the others it takes [N, C, H, W]
            and returns scores, of "segmentation" [N, classes, H, W] under "out", of "localization"
            after boxes [N, 4] in units of the image.
        task: one of those.
        classes: names by label; labels beyond them are written as numbers.
        category_ids: of the labels' categories in COCO's results; empty if labels are these ids.
        prepare: what turns a uint8 image [3, H, W] into the model's input; None for values from 0
            to 1.
        device: of the model.
        bf16: whether to run under autocast to bfloat16.
        score: least score of what is found; None for 0.5 of objects and 0 of regions, so that every
            pixel has a class. Classification gives its best classes whatever they score.
        top: number of classes that classification gives.

    Raises:
        ValueError: an unknown task, a score that is not from 0 to 1, or not as many category ids as
            classes.
    """

    def __init__(
        self,
        model: nn.Module,
        task: str,
        classes: Sequence[str] = (),
        *,
        category_ids: Sequence[int] = (),
        prepare: Prepare | None = None,
        device: str | torch.device = "cpu",
        bf16: bool = False,
        score: float | None = None,
        top: int = 5,
    ) -> None:
        known = [name for names in COMMANDS.values() for name in names]
        if task not in known:
            raise ValueError(f"task must be one of {', '.join(known)}, got {task!r}")
        if score is None:
            score = 0.0 if task in COMMANDS["segmentation"] else 0.5
        check_share(score, "score")
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.task = task
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise ValueError(
                f"category_ids must be as many as the {len(self.classes)} classes, "
                f"got {len(self.category_ids)}"
            )
        self.bf16 = bf16
        self.score = score
        self.top = top
        self._prepare = prepare or _from_0_to_1

    def name(self, label: int) -> str:
        """The class of a label."""
        return name_of(self.classes, label)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[Findings]:
        """What is in each of the pictures.

        Args:
            pictures: in RGB. Those of one size run as one batch, in which none is padded, so that
                the result for a picture does not depend on the others.

        Raises:
            ValueError: the model's answer is not finite, has not the size of the image, or has a
                label without a category.
        """
        images = [self._prepare(_to_tensor(picture)).to(self.device) for picture in pictures]
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(i)
        findings: dict[int, Findings] = {}
        for group in groups.values():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                answers = self._answers([images[i] for i in group])
            for i, answer in zip(group, answers, strict=True):
                height, width = images[i].shape[-2:]
                findings[i] = self._found(answer, pictures[i].size, (width, height))
                self._check_labels(findings[i])
        return [findings[i] for i in range(len(pictures))]

    def _check_labels(self, findings: Findings) -> None:
        largest = int(findings.labels.max()) if len(findings) else 0
        if self.category_ids and largest >= len(self.category_ids):
            raise ValueError(
                f"the model found a label {largest}, but there are categories for labels up to "
                f"{len(self.category_ids) - 1}"
            )

    def _answers(self, images: list[Tensor]) -> list[Any]:
        """The model's answer for each image of a batch."""
        if self.task in ("detection", "instance_segmentation", "keypoints"):
            answers: list[Any] = self.model(images)
            return answers
        outputs = self.model(torch.stack(images))
        if self.task == "localization":
            return list(zip(*outputs, strict=True))
        if self.task == "segmentation":
            outputs = outputs["out"]
            if outputs.shape[-2:] != images[0].shape[-2:]:  # as U-Net's without padding
                raise ValueError(
                    f"the model's answer must have the image's size, got {list(outputs.shape[-2:])}"
                    f" for {list(images[0].shape[-2:])}"
                )
        return list(outputs)

    def _found(self, answer: Any, size: tuple[int, int], seen: tuple[int, int]) -> Findings:
        """The findings in an answer, for a picture of ``size`` (W, H) that the model saw as one of
        ``seen``."""
        width, height = size
        if self.task == "classification":
            return from_class_scores(answer, self.top)
        if self.task == "segmentation":
            scores = F.interpolate(answer[None].float(), (height, width), mode="bilinear")
            first = self.classes[0] if self.classes else ""
            return from_class_map(scores[0], 0 if first in BACKGROUND else None).above(self.score)
        if self.task == "localization":
            box, scores = answer
            best = scores.float().softmax(0).max(0)
            answer = {"boxes": box[None], "scores": best.values[None], "labels": best.indices[None]}
            return from_detection(answer, (width, height)).above(self.score)
        scale = (width / seen[0], height / seen[1])
        findings = from_detection(answer, scale).above(self.score)
        if findings.masks is None or findings.masks.shape[1:] == (height, width):
            return findings
        masks = F.interpolate(findings.masks[:, None].float(), (height, width))[:, 0] > 0
        return Findings(findings.labels, findings.scores, findings.boxes, masks, findings.keypoints)


def name_of(classes: Sequence[str], label: int) -> str:
    """The name of a label, its number where it has none."""
    return classes[label] if 0 <= label < len(classes) else str(label)


def check_share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")


def _to_tensor(picture: Image.Image) -> Tensor:
    if picture.mode != "RGB":
        raise ValueError(f"pictures must be in RGB, got mode {picture.mode}")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _from_0_to_1(image: Tensor) -> Tensor:
    return image.float() / 255
