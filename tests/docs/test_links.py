"""scripts/dead_links.py finds a link that leads nowhere, and README, CONTRIBUTING, CHANGELOG and docs have none."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def dead_links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dead_links", ROOT / "scripts" / "dead_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> list[Path]:
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return found + [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_has_no_dead_link(dead_links: ModuleType, path: Path) -> None:
    assert list(dead_links.dead_in_markdown(path)) == []


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ("other.md", None),
        ("other.md#a-heading-of-code", None),
        ("#here", None),
        ("https://example.org/a?b", None),
        ("folder", None),
        ("gone.md", "no such file"),
        ("other.md#gone", "no such anchor"),
        ("#gone", "no such anchor"),
        ("other.md#in-code", "no such anchor"),
        ("https:///a", "no host"),
        ("/absolute.md", "no relative link"),
        ("file:///etc/passwd", "no relative link"),
    ],
)
def test_links_of_markdown(dead_links: ModuleType, tmp_path: Path, link: str, reason: str | None) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text("# Other\n\n## A heading of `code`\n\n```\n# in code\n```\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\nA [link]({link}), and `[no](link.md)` in code.\n\n```\n[no](link.md)\n```\n")
    found = list(dead_links.dead_in_markdown(page))
    assert found == ([] if reason is None else [f"{page}: {link}: {reason}"])


def test_links_of_a_site(
    dead_links: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dead_links.main(str(tmp_path)) == 2
    (tmp_path / "index.html").write_text('<a href="b.html#x"></a><a href="b.html#y"></a><img src="gone.png">')
    (tmp_path / "b.html").write_text('<p id="x"></p><a href="index.html">')
    monkeypatch.setattr(dead_links, "PAGES", ())
    assert dead_links.main(str(tmp_path)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "index.html: b.html#y: no such anchor",
        "index.html: gone.png: no such file",
    ]


def test_its_examples(dead_links: ModuleType) -> None:
    assert doctest.testmod(dead_links).attempted > 0
    assert doctest.testmod(dead_links).failed == 0
