"""What fuse() did, and what ran since, for reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fusion:
    """One chain of operations that is one op now."""

    name: str  # path of the layer that runs it
    parts: tuple[str, ...]  # what it does, in order: "Conv2d", "BatchNorm2d", "add", "relu"

    @property
    def kind(self) -> str:
        return " + ".join(self.parts)


@dataclass
class Report:
    """What was fused, and what was not and why; ``str(report)`` is for reading.

    Attributes:
        fused: the chains that ran, one entry for each kind that a layer began. A layer that has not
            run yet has an entry for itself alone: what follows it shows in the first call.
        waiting: how many layers have not run yet.
        skipped: path of a convolution or linear layer and the reason why it stays as it was.
        channels_last: whether activations between fused layers are in that memory format.
    """

    fused: list[Fusion] = field(default_factory=list)
    waiting: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    channels_last: bool = False

    def counts(self) -> dict[str, int]:
        """Number of chains by kind, the most frequent first."""
        return dict(Counter(fusion.kind for fusion in self.fused).most_common())

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} chains fused"]
        lines += [f"  {count:4} x {kind}" for kind, count in self.counts().items()]
        if self.waiting:
            lines.append(f"{self.waiting} of them have not run yet: what follows them shows then")
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            reasons.setdefault(reason, []).append(name or "the model")
        if reasons:
            lines.append(f"{len(self.skipped)} left as they were")
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {reason}: {', '.join(names[:3])}{more}")
        if self.channels_last:
            lines.append("channels_last between them")
        return "\n".join(lines)
