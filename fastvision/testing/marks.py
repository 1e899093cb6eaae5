"""Marks that tests of many ops have (needs pytest)."""

from __future__ import annotations

import pytest

from fastvision import _extension

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])

needs_library = pytest.mark.skipif(_extension.missing is not None, reason=str(_extension.missing))
