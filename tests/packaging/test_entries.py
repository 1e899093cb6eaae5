"""Every op is in the tables that CONTRIBUTING.md names."""

from pathlib import Path

import pytest

from fastvision.ops._library import PUBLIC

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "tests/sanitizer",
    "tests/ops/test_arguments.py",
    "tests/ops/test_torchscript.py",
    "docs/api/ops.md",
    "README.md",
)


@pytest.mark.parametrize("place", FILES)
def test_every_op_is_in(place: str) -> None:
    path = ROOT / place
    files = path.glob("*.py") if path.is_dir() else [path]
    text = "".join(file.read_text() for file in files)
    text = text.lower().replace("_", "")  # modules have names in camel case
    assert not [op for op in PUBLIC if op.replace("_", "") not in text]
