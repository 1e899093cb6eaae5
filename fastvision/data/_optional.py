"""See :mod:`fastvision._optional`."""

from .._optional import optional

__all__ = ["optional"]
