"""Darknet's .weights files: all parameters in the order of the layers, as float32."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from ...ops import Conv2dNormActivation
from .layers import Connected, Local
from .network import Darknet

_VERSION = (0, 2, 5)  # of Darknet's last files
_FLOAT = 4  # bytes


def load_darknet_weights(
    network: Darknet, path: str | os.PathLike[str], *, layers: int | None = None
) -> int:
    """Reads a .weights file into a network.

    Args:
        network: of the same configuration as in Darknet; nothing is written to it if the file does
            not fit.
        path: of the file.
        layers: the file holds this number of leading layers, as ``darknet53.conv.74`` holds 74 of
            YOLOv3; None for all.

    Returns:
        The number of images that the weights have been trained with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too short or too long; the message gives both numbers of bytes.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"weights: there is no file {file}")
    _check_byte_order()
    with file.open("rb") as source:
        seen, transposed, header = _read_header(source, file)
        tensors = list(_stored(network, layers))
        matrices = {id(layer[0].weight) for layer in network.layers if isinstance(layer, Connected)}
        needed = header + _FLOAT * sum(t.numel() for t in tensors)
        size = file.stat().st_size
        if size != needed:
            part = "network" if layers is None else f"first {layers} layers of this network"
            raise ValueError(
                f"weights: {file} has {size:,} bytes, but the {part} takes {needed:,} "
                f"(a header of {header} and {(needed - header) // _FLOAT:,} numbers)"
            )
        with torch.no_grad():
            for tensor in tensors:
                numbers = bytearray(source.read(_FLOAT * tensor.numel()))
                if len(numbers) != _FLOAT * tensor.numel():
                    raise ValueError(f"weights: {file} became shorter while it was read")
                if not numbers:
                    continue
                values = torch.frombuffer(numbers, dtype=torch.float32)
                if transposed and id(tensor) in matrices:
                    tensor.copy_(values.view(*reversed(tensor.shape)).t())
                else:
                    tensor.copy_(values.view(tensor.shape))
    return seen


def save_darknet_weights(
    network: Darknet,
    path: str | os.PathLike[str],
    *,
    layers: int | None = None,
    seen: int = 0,
    version: tuple[int, int, int] = _VERSION,
) -> None:
    """Writes a .weights file.

    Args:
        network: its parameters are written as float32.
        path: of the file.
        layers: number of leading layers to write; None for all.
        seen: number of images that the weights have been trained with.
        version: major, minor and revision of the format. The header has 20 bytes from 0.2 on,
            before that 16.

    Raises:
        ValueError: a version of 1000 or more, which would stand for transposed matrices; a negative
            number.
    """
    if min(version) < 0 or max(version[:2]) >= 1000 or seen < 0:
        raise ValueError(
            f"version must be three numbers from 0 to 999 and seen not negative, got {version} "
            f"and {seen}"
        )
    _check_byte_order()
    tensors = list(_stored(network, layers))
    with Path(path).expanduser().open("wb") as target:
        target.write(struct.pack("<3i", *version))
        target.write(struct.pack("<q" if _is_wide(*version[:2]) else "<i", seen))
        for tensor in tensors:
            numbers = tensor.detach().to("cpu", torch.float32).contiguous()
            target.write(ctypes.string_at(numbers.data_ptr(), _FLOAT * numbers.numel()))


def _read_header(source: BinaryIO, file: Path) -> tuple[int, bool, int]:
    """Images seen, whether matrices are transposed, and the bytes of the header."""
    start = source.read(12)
    wide = len(start) == 12 and _is_wide(*struct.unpack("<2i", start[:8]))
    kind = "<q" if wide else "<i"
    rest = source.read(struct.calcsize(kind))
    if len(start) + len(rest) < 12 + struct.calcsize(kind):
        size = len(start) + len(rest)
        raise ValueError(f"weights: {file} has {size} bytes, less than a header of 16 or 20")
    major, minor, _ = struct.unpack("<3i", start)
    (seen,) = struct.unpack(kind, rest)
    return seen, major > 1000 or minor > 1000, 12 + struct.calcsize(kind)


def _is_wide(major: int, minor: int) -> bool:
    """Whether the number of images has 8 bytes."""
    return major * 10 + minor >= 2 and major < 1000 and minor < 1000


def _check_byte_order() -> None:
    if sys.byteorder != "little":
        raise NotImplementedError("weights: files of Darknet need a little-endian machine")


def _stored(network: Darknet, layers: int | None) -> Iterator[Tensor]:
    """The tensors in the order of a file."""
    if layers is not None and not 0 <= layers <= len(network.layers):
        raise ValueError(f"layers must be from 0 to {len(network.layers)}, got {layers}")
    for layer in network.layers[:layers]:
        if isinstance(layer, Local):
            yield from (layer.bias, layer.weight)
        elif isinstance(layer, (Conv2dNormActivation, Connected)):
            first, norm = _parts(layer)
            if norm is None:
                yield from (first.bias, first.weight)
            elif isinstance(layer, Connected):
                yield from (norm.bias, first.weight, norm.weight)
                yield from (norm.running_mean, norm.running_var)
            else:
                yield from (norm.bias, norm.weight, norm.running_mean, norm.running_var)
                yield first.weight


def _parts(layer: nn.Sequential) -> tuple[Any, Any]:
    """The convolution or linear layer, and its normalization or None."""
    has_norm = len(layer) > 1 and isinstance(layer[1], nn.modules.batchnorm._BatchNorm)
    return layer[0], layer[1] if has_norm else None
