"""A document as a list of blocks, and how it is written in Markdown and in HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str  # Markdown of one kind: `code` and **strong**


@dataclass(frozen=True)
class Bullets:
    items: list[str]


@dataclass(frozen=True)
class Picture:
    file: str
    text: str


@dataclass(frozen=True)
class Table:
    lines: list[list[str]]  # the head first

    def without_empty_columns(self) -> Table:
        used = [any(cells) for cells in zip(*self.lines[1:], strict=True)]
        return Table(
            [[c for c, keep in zip(line, used, strict=True) if keep] for line in self.lines]
        )


@dataclass(frozen=True)
class Folded:
    summary: str
    blocks: list[Block]


Block = Heading | Paragraph | Bullets | Picture | Table | Folded


def markdown_table(table: Table) -> str:
    """Padded, so that it reads well in a terminal too."""
    lines = table.lines
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rows = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]])


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Picture(file, text):
            return f"![{text}]({file})"
        case Table():
            return markdown_table(block)
        case Folded(summary, blocks):
            inside = "\n\n".join(map(_markdown_block, blocks))
            return f"<details><summary>{summary}</summary>\n\n{inside}\n\n</details>"


def to_markdown(blocks: Iterable[Block]) -> str:
    return "\n\n".join(map(_markdown_block, blocks)) + "\n"


STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd }
tbody tr:hover { background: #f3f3f3 }
img { max-width: 100% }
summary { cursor: pointer }
.slow { color: #c00 }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } th, td { border-color: #444 }
  tbody tr:hover { background: #242424 } .slow { color: #f66 } a { color: #8bf }
}
"""
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _html_cell(cell: str) -> str:
    slow = re.fullmatch(r"0\.\d+x", cell) is not None
    return f"<td{' class=slow' if slow else ''}>{_inline(cell)}</td>"


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"\n<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
        case Picture(file, text):
            return f'<img src="{html.escape(file)}" alt="{html.escape(text)}">'
        case Table(lines):
            head = "".join(f"<th>{_inline(cell)}</th>" for cell in lines[0])
            rows = ["<tr>" + "".join(map(_html_cell, line)) + "</tr>" for line in lines[1:]]
            body = "\n".join(rows)
            return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        case Folded(summary, blocks):
            inside = "\n".join(map(_html_block, blocks))
            return f"<details><summary>{_inline(summary)}</summary>\n{inside}\n</details>"


def to_html(title: str, blocks: Iterable[Block]) -> str:
    """A page of its own, whose pictures lie next to it."""
    body = "\n".join(map(_html_block, blocks))
    return PAGE.format(title=html.escape(title), style=STYLE, body=body)
