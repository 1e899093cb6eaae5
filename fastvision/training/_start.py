"""Weights that a run begins with, taken from another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models._weights import trained_weights
from ._checkpoint import BEST, load_checkpoint
from .recipe import Start


def start_from(model: nn.Module, start: Start) -> None:
    """Copies layers of a trained model into ``model``; its other layers stay as they are.

    Raises:
        FileNotFoundError: the run or file is not there.
        ValueError: a layer is in neither model, or its tensors have other names or shapes.
    """
    source = _weights(Path(start.run))
    target = model.state_dict()
    for there, here in start.layers.items():
        theirs, ours = _layer(source, there), _layer(target, here)
        if not theirs:
            raise ValueError(f"start.layers: {start.run} has no layer {there!r}")
        if not ours:
            raise ValueError(f"start.layers: the model has no layer {here!r}")
        if theirs.keys() != ours.keys():
            raise ValueError(
                f"start.layers: {there!r} has the tensors {', '.join(theirs)}, "
                f"but {here!r} has {', '.join(ours)}"
            )
        for name, tensor in ours.items():
            if tensor.shape != theirs[name].shape:
                raise ValueError(
                    f"start.layers: {there}.{name} has the shape {list(theirs[name].shape)}, "
                    f"but {here}.{name} {list(tensor.shape)}"
                )
            with torch.no_grad():
                tensor.copy_(theirs[name])


def _weights(path: Path) -> Mapping[str, Tensor]:
    file = path / BEST if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"start.run: there is no {file}; train it first, or name another run with "
            "--set start.run=FOLDER, or begin with random weights with --set start=none"
        )
    return trained_weights(load_checkpoint(file))


def _layer(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a layer by their names in it."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
