"""A page of predictions: documents with their words shaded, from the lines that ``predict`` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.assets import fill_template
from lightning_maxmargin.figures.windows import visible
from lightning_maxmargin.figures.words import Shade, numbers, shades

#: Documents of a page: more make it slow to open.
MOST = 1_000


class Prediction(NamedTuple):
    """A document of the page; parts are words and what stands between them, in order."""

    number: int
    label: str
    facts: list[str]
    parts: list[Shade]


def page_beside(path: Path) -> Path:
    """Where the page of this file of predictions belongs.

    Example:
        >>> page_beside(Path("out.jsonl")).name, page_beside(Path("out.html")).name
        ('out.html', 'out.html.html')
    """
    return path.with_name(path.name + ".html") if path.suffix.lower() == ".html" else path.with_suffix(".html")


def refuse_existing_page(path: Path) -> None:
    """Raises InputError where the page of this file of predictions is there already."""
    page = page_beside(path)
    if page.exists() or page.is_symlink():
        raise InputError(f"output: {page} exists and is never overwritten; name another file with --output")


def write_page(path: Path) -> Path:
    """Writes ``out.html`` beside ``out.jsonl``, whole or not at all, and returns its path.

    The page needs no network; its one script only hides documents, and no other can run in it. It shows the first
    :data:`MOST` documents and says so where there are more.

    Args:
        path: lines of ``predict`` on text: index, text, label, probability, lead, entropy and words.

    Raises:
        InputError: the page exists, or a line is not what predict writes.
    """
    refuse_existing_page(path)
    rows, total = [], 0
    with path.open(encoding="utf-8") as file:
        for total, line in enumerate(file, 1):
            if total <= MOST:
                rows.append(_prediction(path, total, line))
    page = page_beside(path)
    # A lone surrogate, legal in JSON, has no UTF-8: it becomes a question mark.
    write_text(page, render(path.name, rows, total), errors="replace")
    return page


def render(name: str, rows: list[Prediction], total: int) -> str:
    """The page as text; everything that comes from the documents is escaped."""
    counts = dict(sorted(Counter(row.label for row in rows).items()))
    template = Path(__file__).with_name("documents.html")
    return fill_template(template, name=visible(name), rows=rows, total=total, counts=counts)


def _prediction(path: Path, number: int, line: str) -> Prediction:
    try:
        given = json.loads(line)
        facts = numbers(given["probability"], given["lead"], given["entropy"])
        parts = list(_parts(given["text"], given["words"]))
        return Prediction(int(given["index"]), visible(str(given["label"])), facts, parts)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"output: {path}, line {number} is not what predict writes ({what})") from error


def _parts(text: str, words: list[dict[str, Any]]) -> Iterator[Shade]:
    """The text, cut at its words."""
    drawn = shades([w["word"] for w in words], [w["weight"] for w in words], [w["evidence"] for w in words])
    at = 0
    for word, shade in zip(words, drawn, strict=True):
        start, end = word["span"]
        if start > at:
            yield Shade(visible(text[at:start]), "", "0", "")
        yield shade._replace(text=visible(text[start:end]))
        at = end
    if at < len(text):
        yield Shade(visible(text[at:]), "", "0", "")
