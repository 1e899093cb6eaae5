"""Models by name and weights, and by the checkpoints of fastvision.training."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data import classification_evaluation, segmentation_evaluation
from ..fusion import fuse
from ..models import get_model_builder, list_models
from ..models._urls import addresses
from ..models._weights import misfit, not_finite, trained_weights
from ..training._checkpoint import find_checkpoint, load_checkpoint
from ..training._data import transforms_of
from ..training._run import model_of
from ..training.recipe import call, recipe_of
from .predictor import BACKGROUND, COMMANDS, Predictor, Prepare, check_share

_OTHER_FORMATS = (".safetensors", ".weights")  # which hold weights alone
SHIPPED = {"digits": "digits_detector.pt"}  # checkpoints in fastvision/models/weights


def load_predictor(
    command: str,
    model: str | None = None,
    weights: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    nms: float | None = None,
    **settings: Any,
) -> Predictor:
    """A model with its class names and the preparation of its images.

    Args:
        command: "detection", "segmentation" or "classification".
        model: name of the model; None for the checkpoint's own.
        weights: a checkpoint that ``fastvision train`` wrote or the folder of its run; "digits" for
            the detector of digits that the package ships; else the path of a state dict or a name
            of torchvision's weights, which need ``model``.
        options: of the model's builder, such as ``num_classes``, where it is not a checkpoint.
        classes: names in the order of the labels; by default the checkpoint's, else those of
            torchvision's weights, else numbers. Detectors' labels begin at 1, and a name for the
            background may be left out.
        category_ids: with ``classes``, the ids of their categories, in COCO's results; by default
            the checkpoint's, else the labels.
        nms: intersection over union of which the detector keeps the better box only; None for its
            own.
        settings: ``device``, ``bf16``, ``score`` and ``top`` of :class:`Predictor`.

    Raises:
        ValueError: there is no such model or weights; they do not fit, are not finite, or are for
            another command; ``category_ids`` are not those of all labels.
        FileNotFoundError: there is no such file.
        ConnectionError: weights could not be downloaded.
    """
    if command not in COMMANDS:
        raise ValueError(f"command must be one of {', '.join(COMMANDS)}, got {command!r}")
    checkpoint = None if weights is None else _checkpoint(weights)
    if checkpoint is not None:
        loaded = _from_checkpoint(checkpoint, str(weights), model, options or {})
    else:
        loaded = _from_name(command, model, weights, options or {})
    network, task, names, prepare, ids = loaded
    if task not in COMMANDS[command]:
        raise ValueError(f"a model for {command} is needed, got one for {task}")
    broken = not_finite(network.state_dict())
    if broken:  # with which a detector finds nothing, as if nothing were there
        raise ValueError(f"weights {weights} are not finite, such as {broken[0]}")
    if classes is not None:
        names, ids = _by_label(names, classes, category_ids, task)
    fused = fuse(network.eval())
    predictor = Predictor(fused, task, names, category_ids=ids, prepare=prepare, **settings)
    if command == "detection" and task != "localization":
        _set_thresholds(predictor.model, predictor.score, nms)
    elif nms is not None:
        raise ValueError(f"nms is for detectors, the model is for {task}")
    return predictor


class _Loaded(NamedTuple):
    """A model with its task, what names its labels, and the preparation of its images."""

    network: nn.Module
    task: str
    names: tuple[str, ...]
    prepare: Prepare | None = None
    category_ids: tuple[int, ...] = ()


def _checkpoint(weights: str) -> dict[str, Any] | None:
    """The checkpoint of fastvision.training, if it is one."""
    if weights in SHIPPED:
        shipped = importlib.resources.files("fastvision.models") / "weights" / SHIPPED[weights]
        with importlib.resources.as_file(shipped) as path:
            return load_checkpoint(path)
    path = Path(weights).expanduser()
    if path.is_dir():
        return load_checkpoint(find_checkpoint(path))
    if path.suffix in _OTHER_FORMATS or not path.is_file():
        return None
    try:
        return load_checkpoint(path)
    except ValueError:  # a state dict, or damaged, which reading it as weights will say
        return None


def _from_checkpoint(
    checkpoint: Mapping[str, Any], weights: str, model: str | None, options: Mapping[str, Any]
) -> _Loaded:
    recipe = recipe_of(checkpoint["recipe"])
    trained = recipe.model.get("name")
    if model not in (None, trained):
        raise ValueError(f"the weights are of the model {trained}, got model {model!r}")
    if options:
        raise ValueError(f"the checkpoint has the model's options, got {', '.join(options)}")
    # weights that training began with are replaced, and need not be there
    given: dict[str, Any] = {
        key: None for key in ("weights", "weights_backbone") if key in recipe.model
    }
    network = model_of(dataclasses.replace(recipe, model={**recipe.model, **given}))
    try:
        network.load_state_dict(trained_weights(checkpoint))
    except RuntimeError as error:
        raise ValueError(
            f"weights {weights} do not fit the model of their recipe, {trained}: {misfit(error)}"
        ) from error
    names, ids = (tuple(checkpoint.get(name, ())) for name in ("classes", "category_ids"))
    if recipe.task == "localization":
        names, ids = names[1:], ids[1:]  # there is always an object, so no background
    transforms = transforms_of(recipe.preparation, "preparation", recipe.data.get("rgb", False))
    grey = _channels(network) == 1
    prepare = functools.partial(_prepared, transforms, grey)
    return _Loaded(network, recipe.task, names, prepare, ids)


def _from_name(
    command: str, model: str | None, weights: str | None, options: Mapping[str, Any]
) -> _Loaded:
    known = {name: task for task in COMMANDS[command] for name in _models(task)}
    if model is None:
        wanted = f"one of {', '.join(known)}"
        if weights is None:
            raise ValueError(f"a model is missing: {wanted}, or weights of a checkpoint")
        if not Path(weights).expanduser().exists():
            raise FileNotFoundError(f"weights: there is no file or folder {weights}")
        raise ValueError(
            f"a model is missing, since {weights} is no checkpoint of fastvision train: {wanted}"
        )
    if model not in known:
        raise ValueError(f"model must be one of {', '.join(known)}, got {model!r}")
    if weights is None:
        others = "".join(f", or {name}" for name in addresses(model))
        raise ValueError(f"weights of {model} are missing: a file{others}")
    official = _official(model, weights)
    names: tuple[str, ...] = ()
    if official is not None and "num_classes" not in options:
        names = tuple(official.meta.get("categories", ()))
    network = None
    if command == "detection" and names:
        # detectors take the number of classes from weights, which may be of other classes
        with contextlib.suppress(ValueError):
            network = _built(model, weights, {**options, "num_classes": len(names)})
        names = () if network is None else names
    if network is None:
        network = _built(model, weights, options)
    if command == "detection":
        return _Loaded(network, known[model], names)
    if official is not None:
        return _Loaded(network, known[model], names, official.transforms())
    evaluation = (
        classification_evaluation if command == "classification" else segmentation_evaluation
    )
    prepare = functools.partial(_prepared, evaluation(), False)
    return _Loaded(network, known[model], names, prepare)


def _built(model: str, weights: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        network: nn.Module = call(
            get_model_builder(model), model, {"name": model, **options, "weights": weights}
        )
    except RuntimeError as error:
        raise ValueError(f"weights {weights} do not fit {model}: {misfit(error)}") from error
    return network


def _models(task: str) -> list[str]:
    try:
        return list_models(task)
    except ValueError:  # no model has this task
        return []


def _official(model: str, weights: str) -> Any:
    """torchvision's weights of this name, or its default ones; None where it has none."""
    try:
        from torchvision.models import get_model_weights

        members = get_model_weights(model)
    except (ImportError, ValueError):
        return None
    return members[weights] if weights in members.__members__ else members.DEFAULT


def _by_label(
    known: Sequence[str], classes: Sequence[str], category_ids: Sequence[int] | None, task: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of labels.

    Args:
        known: names that the weights have, or none.
        classes, category_ids: that are given in their place, with or without the background.
        task: of the model, which decides whether the background has a label.
    """
    names, ids = tuple(classes), tuple(category_ids or ())
    has_background = bool(names) and names[0] in BACKGROUND
    if task == "localization" or (task == "classification" and ids):
        if has_background:
            names, ids = names[1:], ids[1:]
    elif task in COMMANDS["detection"] and not has_background:
        names, ids = (BACKGROUND[0], *names), (0, *ids) if ids else ()
    if known and len(names) != len(known):  # of other weights, or without the background
        raise ValueError(
            f"classes must name all {len(known)} labels of the weights, got {len(names)} names"
        )
    return names, ids


def _set_thresholds(model: nn.Module, score: float, nms: float | None) -> None:
    """Puts thresholds into the part of a detector that selects its boxes."""
    if nms is not None:
        check_share(nms, "nms")
    parts = [
        part
        for part in model.modules()
        if all(hasattr(part, name) for name in ("score_thresh", "nms_thresh", "detections_per_img"))
    ]
    if nms is not None and not parts:
        raise ValueError(f"{type(model).__name__} has no threshold of non-maximum suppression")
    for part in parts:
        part.score_thresh = score  # type: ignore[assignment]
        if nms is not None:
            part.nms_thresh = nms  # type: ignore[assignment]


def _channels(model: nn.Module) -> int:
    """Of the images that the first convolution takes."""
    weights = (parameter for parameter in model.parameters() if parameter.dim() == 4)
    first = next(weights, None)
    return 3 if first is None else int(first.shape[1])


def _prepared(transforms: Any, grey: bool, image: Tensor) -> Tensor:
    """An image after the transforms of a data set, which take a target, too."""
    from torchvision.transforms.v2 import functional
    from torchvision.tv_tensors import Image, Mask

    image = functional.rgb_to_grayscale(image) if grey else image
    target = {"class_map": Mask(torch.zeros(image.shape[-2:], dtype=torch.int64))}
    prepared: Tensor = Image(image) if transforms is None else transforms(Image(image), target)[0]
    return prepared.as_subclass(Tensor)
