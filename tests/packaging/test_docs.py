"""The Python snippets of the README and of the guides run, page by page from top to bottom."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = "import sys; exec(compile(sys.stdin.read(), sys.argv[1], 'exec'))"


def snippets(page: Path) -> str:
    """The page with every line blank outside its Python blocks, so that line numbers agree."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        if fence:
            inside = line == "```python"
    return "\n".join(lines)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if snippets(page).strip()],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_snippets(page: Path, torchvision, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(page)],  # enable() changes the process that it is called in
        input=snippets(page),
        cwd=tmp_path,
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
