"""Report of the chains that fuse() found, and of the layers it left alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fusion:
    """A chain of operations that runs as one op."""

    name: str  # path of the layer that begins it
    parts: tuple[str, ...]  # in order, such as "Conv2d", "BatchNorm2d", "add", "relu"

    @property
    def kind(self) -> str:
        return " + ".join(self.parts)


@dataclass
class Report:
    """The fused chains, and the layers left as they were; ``str(report)`` is readable.

    Attributes:
        fused: chains that ran, one entry per layer and kind of chain. A layer that has not run yet
            has one entry without followers, which only the first call reveals.
        waiting: number of layers that have not run yet.
        skipped: (path, reason) of each convolution or linear layer left as it was.
        channels_last: whether activations between fused layers use this memory format.
    """

    fused: list[Fusion] = field(default_factory=list)
    waiting: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    channels_last: bool = False

    def counts(self) -> dict[str, int]:
        """Number of chains of each kind, most frequent first."""
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
