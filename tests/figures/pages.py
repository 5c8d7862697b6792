"""What every page of this package holds to: parsed as a browser does, not searched as text."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from typing import Any

from lightning_maxmargin.figures.assets import PAGE_SCRIPTS, page_scripts

#: Attributes by which a page can load something.
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "formaction"}


class Page(HTMLParser):
    """The scripts, data, text and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[str] = []
        self.data: dict[str, Any] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.policy = ""
        self._inside: list[str] = []
        self._of: dict[str, str | None] = {}
        self._parts: list[str] = []
        self.feed(page)
        self.close()

    @property
    def text(self) -> str:
        """What a reader without scripts sees, without spaces that HTML joins."""
        return "".join(self._parts).replace("\u00a0", " ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._of = dict(attrs)
        if tag in ("script", "style"):
            self._inside.append(tag)
        if tag == "meta" and self._of.get("http-equiv") == "Content-Security-Policy":
            self.policy = self._of.get("content") or ""

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self._parts.append(data)
        elif self._inside[-1] == "script" and self._of.get("type") == "application/json":
            self.data[str(self._of["id"])] = json.loads(data)
        elif self._inside[-1] == "script":
            self.scripts.append(data)


def read_page(text: str) -> Page:
    """The page, once it is known to load nothing and to run no script but the package's own."""
    page = Page(text)
    assert page.scripts == [str(script.text) for script in page_scripts(PAGE_SCRIPTS)]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    allowed = page.policy.split("script-src ")[1].split(";")[0].split()
    assert allowed == [f"'sha256-{digest}'" for digest in hashes]
    assert "default-src 'none'" in page.policy
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in LOADING or value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
    styles = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in styles
    assert "@import" not in styles
    return page
