"""Weights from files, from torchvision's names, and from its server."""

from __future__ import annotations

import functools
import os
import re
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._urls import addresses

Model = TypeVar("Model", bound=nn.Module)

_LISTED = 3  # keys that a message gives of each kind that does not fit
# what a wrapper puts in front of the keys of its model
_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
}
_QUOTED = re.compile(r'"([^"]*)"').findall
_MISMATCH = (
    r"^\s*size mismatch for (\S+): copying a param with shape torch\.Size\((\[.*?\])\) from "
    r"checkpoint, the shape in current model is torch\.Size\((\[.*?\])\)"
)


def load_weights(model: Model, name: str, weights: Any, progress: bool = True) -> Model:
    """``model`` with the weights loaded strictly; ``name``: of its builder.

    Args:
        weights: None, a state dict, the path of a .pth, .pt or .safetensors file, a name such as
            "IMAGENET1K_V1" or "DEFAULT", or a member of one of torchvision's weights enums.
        progress: whether a download shows a progress bar.

    Raises:
        ValueError: there are no weights of this name for the model, or the weights are those of a
            wrapper such as DataParallel.
        TypeError: weights is of another type.
        FileNotFoundError: there is no file at the path.
        ValueError: the file does not hold a state dict that can be read without running code.
        ImportError: a .safetensors file, and the package safetensors is not installed.
        ConnectionError: the download failed; the message says where to put the file.
        RuntimeError: the weights do not fit the model, or a download has another checksum.
    """
    if weights is not None:
        model.load_state_dict(read_weights(name, weights, progress))
    return model


def read_weights(name: str, weights: Any, progress: bool = True) -> Mapping[str, Tensor]:
    """The state dict that :func:`load_weights` loads."""
    state = _find(name, weights, progress)
    for prefix, wrapper in _WRAPPERS.items():
        if state and all(isinstance(key, str) and key.startswith(prefix) for key in state):
            raise ValueError(
                f"weights must have the keys of the model itself, got {next(iter(state))!r} and "
                f"others of {wrapper}: save wrapper.{prefix}state_dict(), or take {prefix!r} "
                "from the front of every key"
            )
    return state


def _find(name: str, weights: Any, progress: bool) -> Mapping[str, Tensor]:
    if isinstance(weights, Mapping):
        return weights
    if isinstance(weights, (str, os.PathLike)):
        known = addresses(name)
        if isinstance(weights, str) and weights in known:
            return _download(known[weights], progress)
        if not isinstance(weights, str) or os.sep in weights or Path(weights).suffix:
            return read_file(Path(weights).expanduser())
        names = ", ".join(known) if known else "none"
        raise ValueError(
            f"weights must be a path with a folder or suffix, or one of the names that {name} has "
            f"({names}), got {weights!r}"
        )
    if isinstance(getattr(weights, "url", None), str):
        return _download(weights.url, progress)
    raise TypeError(
        "weights must be None, a state dict, a path, a name or one of torchvision's weights, "
        f"got {type(weights).__name__}"
    )


def read_file(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a .safetensors file or one that torch.save wrote; runs no code of it."""
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    if not path.stat().st_size:
        raise ValueError(f"weights: {path} is empty")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"reading {path} needs the package safetensors") from error
        load: Callable[[Path], Any] = load_file
    else:
        load = functools.partial(torch.load, map_location="cpu", weights_only=True)
    try:
        content = load(path)
    except Exception as error:  # of the library that reads the format
        raise ValueError(
            f"weights: {path} does not hold a state dict that can be read without running code "
            f"({reason_of(error)})"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("average"), Mapping):
        return trained_weights(content)
    for key in ("model", "state_dict"):  # of a checkpoint with the optimizer's state
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"weights: {path} holds an object of type {type(content).__name__}, not a state dict"
        )
    return content


def reason_of(error: Exception) -> str:
    """The type and first sentence of an error, of which torch's go on over many lines."""
    sentence = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def trained_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state dict to evaluate of a checkpoint of :mod:`fastvision.training`: the averaged one,
    if there is one."""
    average = checkpoint.get("average")
    if average is None:
        weights: Mapping[str, Tensor] = checkpoint["model"]
        return weights
    prefix = "module."  # of AveragedModel
    return {k.removeprefix(prefix): v for k, v in average.items() if k.startswith(prefix)}


def misfit(error: RuntimeError) -> str:
    """What does not fit, of the error of ``load_state_dict``: the first few of each kind."""
    text = str(error)
    missing, unknown = (
        [key for line in re.findall(rf"^\s*{kind} key.*", text, re.M) for key in _QUOTED(line)]
        for kind in ("Missing", "Unexpected")
    )
    shapes = [
        f"{name} {file} for {model}" for name, file, model in re.findall(_MISMATCH, text, re.M)
    ]
    kinds = {"missing": missing, "unknown to the model": unknown, "of another shape": shapes}
    parts = [
        f"{kind}: {len(found)} ({', '.join(found[:_LISTED])}{', ...' * (len(found) > _LISTED)})"
        for kind, found in kinds.items()
        if found
    ]
    return "; ".join(parts) or text.split("\n\t")[-1].strip()


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors of a state dict that hold NaN or an infinity.

    Modules may add states of other types.
    """
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    finite = [value.isfinite().all() for value in tensors.values()]
    if not finite or torch.stack(finite).all():  # which waits for a GPU once
        return []
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]


def _download(url: str, progress: bool) -> Mapping[str, Tensor]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / url.rpartition("/")[2]
    if file.exists():
        return read_file(file)  # torch.hub would not name a damaged one
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=progress, check_hash=True, weights_only=True
        )
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"weights could not be downloaded from {url} ({error}); download the file elsewhere "
            f"and put it into {folder}, or pass its path as weights"
        ) from error
