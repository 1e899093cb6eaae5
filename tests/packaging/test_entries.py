"""Every op is in the tables that CONTRIBUTING.md names."""

from pathlib import Path

import pytest

from fastvision.ops._library import PUBLIC

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "tests/sanitizer/fuzz.py",
    "tests/ops/test_arguments.py",
    "tests/ops/test_torchscript.py",
    "docs/api/ops.md",
    "README.md",
)


@pytest.mark.parametrize("file", FILES)
def test_every_op_is_in(file: str) -> None:
    text = (ROOT / file).read_text().lower().replace("_", "")  # modules have names in camel case
    assert not [op for op in PUBLIC if op.replace("_", "") not in text]
