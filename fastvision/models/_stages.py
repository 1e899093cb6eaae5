"""A backbone that gives the results of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..ops.chain import run_layers
from ._images import enter


class Stages(nn.ModuleDict):
    """The children of a model up to the last wanted one, called in order.

    State dict keys are the model's own (``layer1.0.conv1.weight``), as in torchvision's
    IntermediateLayerGetter. Chains of children run as one op, as in
    :class:`fastvision.ops.Sequential`.

    Args:
        model: its forward calls its children in the order in which they are registered, up to the
            last stage.
        stages: the name of a child, and the name of its result.

    Raises:
        ValueError: there are no stages, the model has no child of such a name, or two stages have
            results of one name.

    Example:
        >>> backbone = Stages(fastvision.models.resnet50(), {"layer3": "aux", "layer4": "out"})
        >>> backbone(torch.rand(1, 3, 224, 224))["out"].shape
        torch.Size([1, 2048, 7, 7])
    """

    def __init__(self, model: nn.Module, stages: Mapping[str, str]) -> None:
        children = dict(model.named_children())
        if not stages or len(set(stages.values())) < len(stages):
            raise ValueError(f"stages must be names of children and distinct results, got {stages}")
        missing = [name for name in stages if name not in children]
        if missing:
            raise ValueError(f"stages: the model has no child {missing}, but {list(children)}")
        last = max(map(list(children).index, stages))
        super().__init__(dict(list(children.items())[: last + 1]))
        self._results = dict(stages)

    def forward(self, images: Any) -> dict[str, Tensor]:
        """The results by name, in the order of the layers."""
        results = {}
        value, waiting = enter(images), []
        for name, layer in self.items():
            waiting.append(layer)
            if name in self._results:
                value = run_layers(waiting, value)
                waiting = []
                results[self._results[name]] = value
        return results
