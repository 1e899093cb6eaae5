"""Whether calling a layer does more than its forward, which a fused op would leave out."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module) -> bool:
    """Calling it runs nothing but its forward: no hooks, no forward of the instance's own."""
    return "forward" not in module.__dict__ and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    state = nn.modules.module
    return bool(
        state._global_forward_hooks
        or state._global_forward_pre_hooks
        or state._global_backward_hooks
        or state._global_backward_pre_hooks
    )
