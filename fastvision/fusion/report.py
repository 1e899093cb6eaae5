"""What fuse() did, for reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fusion:
    """One chain of operations that is one op now."""

    name: str  # path of the module that runs it
    parts: tuple[str, ...]  # what it does, in order: "Conv2d", "BatchNorm2d", "add", "relu"

    @property
    def kind(self) -> str:
        return " + ".join(self.parts)


@dataclass
class Report:
    """What was fused, and what was not and why; ``str(report)`` is for reading.

    Attributes:
        fused: one entry per chain.
        skipped: path of a module and the reason why it, or something in it, stays as it was.
        channels_last: paths of the modules inside which activations are channels_last; "" is the
            model itself.
    """

    fused: list[Fusion] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    channels_last: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Number of chains by kind, the most frequent first."""
        return dict(Counter(fusion.kind for fusion in self.fused).most_common())

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} chains fused"]
        lines += [f"  {count:4} x {kind}" for kind, count in self.counts().items()]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            reasons.setdefault(reason, []).append(name or "the model")
        if reasons:
            lines.append(f"{len(self.skipped)} left as they were")
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {reason}: {', '.join(names[:3])}{more}")
        if self.channels_last:
            lines.append(
                "channels_last inside " + ", ".join(n or "the model" for n in self.channels_last)
            )
        return "\n".join(lines)
