"""Convolutions of the same input that run as one: few outputs cost as much as all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..ops._checks import is_eager, needs_gradient
from ..ops._layers import has_global_hooks, is_plain
from .classes import become
from .convolutions import FusedConv2d
from .layers import Made, State, note_alone, weight_state

_KEY = "joined"


def joined(convs: Sequence[nn.Module]) -> Any:
    """A fused layer that gives the results of all of ``convs``, one after the other; None if they
    have to be called.

    It is kept until a weight changes, as packed weights are.

    Args:
        convs: convolutions with a bias that differ in weight and bias only.
    """
    if not is_eager() or has_global_hooks():
        return None
    if not all(isinstance(conv, FusedConv2d) and is_plain(conv) for conv in convs):
        return None
    tensors = [conv._parameters.get(name) for conv in convs for name in ("weight", "bias")]
    first = tensors[0]
    if first is None or any(
        t is None or t.is_inference() or t.dtype != first.dtype or t.device != first.device
        for t in tensors
    ):
        return None
    if needs_gradient(tensors):
        return None
    # attributes and memory of each of them may change, upon which its state is emptied
    states = [weight_state(conv) for conv in convs]
    made = states[0].made.get(_KEY)
    if (
        made is None
        or any(state.made.get(_KEY) is not made for state in states)
        or not made.serves(None, None, None, tensors)
    ):
        made = Made(None, None, None, lambda: _join(convs), tensors)
        for state in states:
            state.made[_KEY] = made
    return made.value


def _join(convs: Sequence[Any]) -> FusedConv2d:
    first = convs[0]
    channels = first.in_channels, sum(conv.out_channels for conv in convs)
    window = first.kernel_size, first.stride, first.padding
    layer: Any = nn.Conv2d(*channels, *window, device="meta")
    # torch counts no writes to tensors made in inference mode
    with torch.inference_mode(False), torch.no_grad():
        for name in ("weight", "bias"):
            whole = torch.cat([getattr(conv, name) for conv in convs])
            setattr(layer, name, nn.Parameter(whole, requires_grad=False))
    become(layer, FusedConv2d)
    layer.__dict__["_fused"] = State(weight_state(first).channels_last)
    layer.eval()
    for conv in convs:
        note_alone(conv)
    return layer
