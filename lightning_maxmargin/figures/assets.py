"""What every page of this package holds once: its scripts, each with the hash that lets it run, and its styles."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

FOLDER = Path(__file__).parent
#: In the order in which they run; adding one is one entry. The last one starts the others.
PAGE_SCRIPTS = [
    "vendor/uPlot.iife.min.js",
    "page/curves.js",
    "page/shading.js",
    "page/documents.js",
    "page/words.js",
    "page/heads_grid.js",
    "page/start.js",
]
PAGE_STYLES = ["vendor/uPlot.min.css", "page/page.css", "page/heads_grid.css"]


class Script(NamedTuple):
    """A script of a page, and what a browser is told of it: it runs no other."""

    text: Markup
    digest: str


def page_scripts(names: Sequence[str] = PAGE_SCRIPTS) -> list[Script]:
    """The scripts as a page has them, with the hash of each for its content security policy."""
    texts = [(FOLDER / name).read_text(encoding="utf-8") for name in names]
    return [Script(Markup(text), in_sha256(text)) for text in texts]


def page_styles(names: Sequence[str] = PAGE_STYLES) -> Markup:
    """The style sheets, one after another."""
    return Markup("\n".join((FOLDER / name).read_text(encoding="utf-8") for name in names))


def in_sha256(script: str) -> str:
    """The hash of a page's own script: a browser that is told of it runs no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def in_base64(picture: Path) -> str:
    """The bytes of a picture as they lie in a page; nothing where there is none."""
    return base64.b64encode(picture.read_bytes()).decode("ascii") if picture.is_file() else ""


def as_json(value: Any) -> Markup:
    """Data for a ``<script type="application/json">``: no text in it can end that element, or be read as markup.

    Raises:
        ValueError: a number is not finite, for which JSON has no word.

    Example:
        >>> print(as_json({"text": "</script><!--"}))
        {"text":"\\u003c/script>\\u003c!--"}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def fill_template(path: Path, **names: Any) -> str:
    """A page from its template, where every text that is put in is escaped and every name must be there."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([path.parent, FOLDER]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["sha256"] = in_sha256
    environment.filters["json"] = as_json
    return environment.get_template(path.name).render(**names)
