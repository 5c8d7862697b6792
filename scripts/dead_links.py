"""Links that lead nowhere, in the built site and in the pages as GitHub shows them; exit status 1 if there is one.

    python scripts/dead_links.py [SITE]     # docs/_build/html

A link to a file has to name one, and its anchor a heading or an id in it. Of a link to another machine only the form
is checked: the build asks no network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
#: Pages that GitHub shows, beside those of docs/.
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
#: ![text](target) and [text](target), outside of code.
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)")
HEADING = re.compile(r"^#{1,6} +(.+?)\s*#*$", re.MULTILINE)
FENCE = re.compile(r"^(```+|~~~+).*?^\1`*$", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """What a page of HTML links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given and tag != "base"]


@cache
def page(path: Path) -> Page:
    """The HTML of a file, read once."""
    return Page(path.read_text(encoding="utf-8"))


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading.

    Example:
        >>> anchor("A sweep, here or `there`"), anchor("[Text](text.md) & more")
        ('a-sweep-here-or-there', 'text--more')
    """
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Those of the headings of a page of Markdown; the second of the same name ends in -1."""
    found: dict[str, int] = {}
    names = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        name = anchor(heading)
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return frozenset(names)


def dead_in_markdown(path: Path) -> Iterator[str]:
    """Links of a page, as GitHub resolves them from its folder, that lead nowhere."""
    text = re.sub(r"(`+)[^`].*?\1", "", FENCE.sub("", path.read_text(encoding="utf-8")))
    for link in LINK.findall(text):
        if reason := _reason(link, path, anchors):
            yield f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {link}: {reason}"


def dead_in_site(site: Path) -> Iterator[str]:
    """Links between the pages of a built site that lead nowhere."""
    for path in sorted(site.rglob("*.html")):
        for link in sorted(set(page(path).links)):
            if reason := _reason(link, path, lambda target: page(target).ids):
                yield f"{path.relative_to(site)}: {link}: {reason}"


def _reason(link: str, path: Path, names: object) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        return None if re.fullmatch(r"[\w.-]+(:\d+)?", parts.netloc) else "no host"
    if parts.scheme in ("mailto", "data"):
        return None
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        return "no relative link"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return "no such file"
    is_page = target.suffix in (".md", ".html")
    if parts.fragment and is_page and unquote(parts.fragment) not in names(target):  # type: ignore[operator]
        return "no such anchor"
    return None


def main(site: str = "docs/_build/html") -> int:
    """Prints each dead link of the site and of the pages, and returns the exit status."""
    built = Path(site).resolve()
    if not (built / "index.html").exists():
        print(f"dead_links.py: {site} has no index.html; bash scripts/docs.sh builds it", file=sys.stderr)
        return 2
    build = ROOT / "docs" / "_build"
    pages = [ROOT / name for name in PAGES]
    pages += [path for path in sorted((ROOT / "docs").rglob("*.md")) if build not in path.parents]
    dead = [line for path in pages for line in dead_in_markdown(path)]
    dead += dead_in_site(built)
    print(*dead, sep="\n", end="\n" if dead else "")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
