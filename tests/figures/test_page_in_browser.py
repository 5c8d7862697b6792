"""The pages as a browser draws them: hostile documents run nothing, everything is quick, small and within reach."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the text extra is not installed: transformers")

from lightning_maxmargin.figures import write_report
from lightning_maxmargin.figures.compare_page import write_comparison
from lightning_maxmargin.figures.page_data import PAGE_BYTES
from lightning_maxmargin.text.compare import Comparison, Measured
from lightning_maxmargin.text.pooled import Pooled

from .pages import read_page
from .test_figures import curves, plane
from .test_figures import make_run as make_theory_run
from .test_head_grid import head_run
from .test_text_report import CORPUS, METRICS, SUMMARY, TEST, make_run, row

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium")

#: What a text may try; each calls the canary where anything of it runs.
ATTACKS = [
    "<script>canary()</script>", "</script><script>canary()</script>", '"><img src=x onerror=canary()>',
    "<svg/onload=canary()>", "javascript:canary()", "<!--<script>", "]]>", "${canary()}", "$`$&$1", "{{ canary() }}",
    "{% raw %}", "</style><style>*{display:none}", "</textarea>", "\u202eRLO\u202c", "שלום", "مرحبا", "\ud800",
    "nul\x00", "\u2028", "&lt;b&gt;", "<iframe srcdoc='<script>parent.canary()</script>'>", "x" * 10_000,
    "https://evil.example/x.js", "<link rel=stylesheet href=https://evil.example/x.css>", "constructor", "__proto__",
]  # fmt: skip
#: Milliseconds that sorting or filtering 2,000 documents may take.
QUICK = 300
WIDTHS, SCHEMES = (1400, 375), ("light", "dark")


def hostile_row(i: int) -> dict[str, Any]:
    """Document i: an attack among words, 10,000 characters or more in every fourth."""
    words = [ATTACKS[(i + k) % len(ATTACKS)] for k in range(3)] + [f"word{(i * 7 + k) % 500}" for k in range(20)]
    words += [f"tail{k}" for k in range(1_500)] if i % 4 == 0 else []
    weights = [1.0 / (1 + (i + k) % 11) for k in range(len(words))]
    total = sum(weights)
    label = ATTACKS[i % 3]
    return row(
        index=i, label=label, prediction=label if i % 3 else ATTACKS[(i + 1) % 3], tokens=words,
        attention=[w / total for w in weights], evidence=[(-1.0) ** k * (k % 5) for k in range(len(words))],
        selected=weights.index(max(weights)), probability=0.5 + i / 5_000, lead=(i * 37 % 1000) / 1000,
        entropy=None if i % 5 == 0 else 1.5, size=i * 1.0, rationale=[0, 2] if i % 2 else None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with 2,000 documents that try everything, and names that do so as well."""
    names = ATTACKS[:3]
    words = [{"label": n, "word": a, "documents": 5, "weight": 0.4, "evidence": 1.5, "decides": 0.3}
             for n in names for a in ATTACKS]  # fmt: skip
    classes = [{"label": n, "train": 9, "val": 5, "recall": 0.8} for n in names]
    matrix = [[9, 1, 0], [3, 7, 1], [0, 2, 8]]
    corpus = CORPUS | {"words": words, "classes": classes, "confusion": matrix}
    summary = SUMMARY | {"name": ATTACKS[0], "message": ATTACKS[1] + "x" * 10_000}
    folder = tmp_path_factory.mktemp("hostile")
    tokens = [hostile_row(i) for i in range(2_000)]
    test = TEST | {"labels": names, "confusion": matrix}
    run = make_run(folder / "run", summary=summary, corpus=corpus, test=test, tokens=tokens)
    return write_report(run)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        row(index=i, tokens=["so", "fine" if i % 2 else "<b>fine", f"film{i}"], attention=[0.1, 0.8, 0.1],
            evidence=[0.1, 1.0, -1.0], selected=1, lead=float(-i), prediction="good" if i % 3 else "bad", rationale=[1])
        for i in range(60)
    ]  # fmt: skip
    return write_report(make_run(tmp_path_factory.mktemp("small"), tokens=rows))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs on the hostile documents."""
    folder, n = tmp_path_factory.mktemp("comparison"), 2_000
    rows = [hostile_row(i) for i in range(n)]
    pooled = [[_pooled(r, flip=k and i % 3 == 0) for i, r in enumerate(rows)] for k in range(2)]
    words, marks = [r["tokens"] for r in rows], {i: [0, 2] for i in range(0, n, 2)}
    right = [np.arange(n) % 3 > 0, np.arange(n) % 4 > 0]
    measured = [Measured(right[k], {}, pooled[k], words, marks) for k in range(2)]
    runs: Any = []
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "metrics.csv").write_text(METRICS)
        runs.append(SimpleNamespace(folder=folder / name, names=ATTACKS[:2]))
    both = {"mean": 0.5, "low": 0.4, "high": 0.6}
    found = {
        "runs": [f"runs/{ATTACKS[0]}", "runs/b"], "documents": n, "data": ATTACKS[2],
        "accuracy": {"a": both, "b": both, "difference": both, "only_a_right": 1, "only_b_right": 2, "mcnemar_p": 0.5},
        "sentences": ["The data do not tell which classifies better (McNemar's p = 0.5, on 1 and 2 documents)."],
    }  # fmt: skip
    documents: Any = SimpleNamespace(labels=[ATTACKS[i % 2] for i in range(n)])
    write_comparison(folder / "page.html", Comparison(found, runs, documents, measured))
    return folder / "page.html"


def _pooled(given: dict[str, Any], flip: bool | int) -> Pooled:
    scores = torch.tensor(given["attention"], dtype=torch.float64).log()
    evidence = torch.tensor(given["evidence"], dtype=torch.float64)[:, None] * torch.tensor([[1.0, -1.0]])
    return Pooled(torch.tensor([-1.0, 1.0] if flip else [1.0, -1.0], dtype=torch.float64), scores, evidence)


@pytest.fixture(scope="module")
def theory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = [
        {"index": i, "label": 1, "prediction": 2.5 - i % 5, "tokens": ["a", "b", "c"], "attention": [0.1, 0.8, 0.1],
         "selected": 1, "planted": i % 3} for i in range(100)
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("theory")
    return write_report(make_theory_run(folder, metrics=curves(), paths=plane(), tokens=tokens))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 x 12 heads over 20 evaluations, of hostile tokens in samples of 100."""
    names = [f"{ATTACKS[layer % 3]}.{layer}/head{h}" for layer in range(12) for h in range(12)]
    words = [ATTACKS[t % len(ATTACKS)] if t % 3 else f"word{t}" for t in range(100)]
    found = {
        "heads": names, "steps": [7 * s for s in range(20)], "tokens": [words] * 4,
        "measured": [7 * (s // 5 * 5) for s in range(20)],
        "numbers": [[None if h == 143 else h / 143 for h in range(144)] for s in range(20)],
        "seen": [[[[[(s + h + i) % 100, 60], [0, 20]] for i in range(4)] for h in range(144)] for s in range(20)],
    }  # fmt: skip
    return write_report(head_run(tmp_path_factory.mktemp("heads") / "run", found))


class Opened:
    """A page in a browser, and everything that went wrong or was asked of the network on it."""

    def __init__(self, browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.add_init_script("window.ran = 0; window.canary = () => { window.ran += 1; };")
        self.page.on("console", lambda m: self.wrong.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda r: r.url in (path.as_uri(), "about:blank") or self._request(r.url))
        self.page.goto(path.as_uri())

    def _request(self, url: str) -> None:
        if not url.startswith("data:image/png"):
            self.wrong.append(f"request: {url[:200]}")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def milliseconds(self, script: str) -> float:
        """How long this takes, drawing included."""
        return float(self.page.evaluate(
            f"() => {{ const t = performance.now(); {script}; document.body.offsetHeight;"
            " return performance.now() - t; }"
        ))  # fmt: skip

    @property
    def count(self) -> str:
        return str(self.page.inner_text(".count"))


def test_a_page_is_used_by_keyboard(browser: Any, small: Path) -> None:
    with Opened(browser, small) as opened:
        page = opened.page
        assert opened.count == "60 of 60 documents"
        page.focus("#document-search")
        page.keyboard.type("FILM1")
        assert opened.count == "11 of 60 documents"
        page.fill("#document-search", "")
        page.focus("th:has-text('lead') button")
        page.keyboard.press("Enter")
        assert page.get_attribute("th:has-text('lead')", "aria-sort") == "ascending"
        assert page.inner_text("tr.row .open") == "59"
        page.keyboard.press("Enter")
        assert page.get_attribute("th:has-text('lead')", "aria-sort") == "descending"
        assert page.inner_text("tr.row .open") == "0"
        page.keyboard.press("Tab")
        while page.evaluate("document.activeElement.className") != "open":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.get_attribute("tr.row .open", "aria-expanded") == "true"
        assert "heaviest: <b>fine 0.800, evidence 1" in page.inner_text("tr.details")
        assert page.evaluate("document.activeElement.className") == "open"
        assert page.locator("tr.details .marked").inner_text() == "<b>fine"
        page.select_option("label:has-text('outcome') select", label="right (40)")
        assert opened.count == "40 of 60 documents"
        assert opened.wrong == []


def test_highlights_words_and_terms(browser: Any, small: Path) -> None:
    with Opened(browser, small) as opened:
        page = opened.page
        shade = "tr.row .preview span:text-is('film0')"
        by_weight = page.eval_on_selector(shade, "e => e.style.getPropertyValue('--w')")
        page.check("input[value=evidence]")
        by_evidence = page.eval_on_selector(shade, "e => e.style.getPropertyValue('--w')")
        assert (float(by_weight), float(by_evidence)) == (pytest.approx(0.106, abs=1e-3), pytest.approx(0.85))
        page.click("table.words button:has-text('<b>fine')")
        assert page.locator(".snippets:visible p").count() >= 1
        page.click("a[href='#term-lead'] >> nth=0")
        assert page.inner_text("#term-lead dd").startswith("best score less the second")
        page.click("#term-lead .back")
        assert page.url.endswith("#use-lead")
        assert opened.wrong == []


def test_curves_are_read_zoomed_and_switched(browser: Any, small: Path) -> None:
    with Opened(browser, small) as opened:
        page = opened.page
        assert page.locator(".plot canvas").count() == 3
        page.focus(".plot .canvas >> nth=0")
        page.keyboard.press("Home")
        first = page.inner_text(".plot .unseen >> nth=0")
        assert first == "training step 1, training 1, validation 1.2"
        page.keyboard.press("+")
        reset = page.locator(".plot button:has-text('whole range')").first
        assert reset.is_visible()
        page.keyboard.press("0")
        assert not reset.is_visible()
        button = page.locator(".legend button").first
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert "training ends at" in page.get_attribute(".plot .canvas >> nth=0", "aria-label")
        assert opened.wrong == []


def test_without_scripts_documents_and_pictures_are_there(browser: Any, small: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(small.as_uri())
    assert page.locator(".document:visible").count() == 20
    assert page.locator("figure.replaced img:visible").count() == 1
    assert page.locator("figure img").get_attribute("alt").startswith("Curves: Validation accuracy ends at")
    context.close()


def test_the_grid_of_heads_opens_what_each_looks_at(browser: Any, heads: Path) -> None:
    for width in WIDTHS:
        with Opened(browser, heads, width) as opened:
            page = opened.page
            assert page.locator(".head-grid button").count() == 144
            assert page.locator("#heads-open h3").count() == 3
            for _ in range(3):
                page.locator(".head-grid button[aria-pressed=true]").first.press("Enter")
            assert page.inner_text("#heads-open") == "No head is chosen."
            page.locator("[data-head='5']").press("Enter")
            looks = page.locator("#heads-open li")
            assert looks.count() == 4
            assert looks.nth(1).locator(".t.selected").inner_text() == _word(19 + 5 + 1)
            slider = page.locator("#heads-step")
            slider.focus()
            slider.press("Home")
            assert page.inner_text("#heads-step-shown") == "0"
            assert looks.nth(1).locator(".t.selected").inner_text() == _word(5 + 1)
            slider.press("ArrowRight")
            assert "Margins are of step 0" in page.inner_text("#heads-measured")
            page.locator("[value=mass]").check()
            assert page.locator("[data-head='143']").inner_text() == "0.60"
            page.locator("[value=margin]").check()
            assert page.locator("[data-head='143']").inner_text() == "–"
            assert page.evaluate("window.ran") == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.wrong == []


def _word(position: int) -> str:
    return ATTACKS[position % len(ATTACKS)] if position % 3 else f"word{position}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hostile", "comparison"])
def test_hostile_documents_run_nothing(browser: Any, request: pytest.FixtureRequest, name: str) -> None:
    path = request.getfixturevalue(name)
    size = path.stat().st_size
    print(f"{name}: {size:,} bytes")
    assert size <= PAGE_BYTES
    data = read_page(path.read_text()).data["data-documents"]
    assert len(data["rows"]) == 2_000
    for width in WIDTHS:
        with Opened(browser, path, width) as opened:
            page = opened.page
            for button in page.locator("tr.row button.open").all()[:10]:
                button.click()
            for word in page.locator("table.words button").all()[:20]:
                word.click()
            page.mouse.move(200, 400)
            assert page.evaluate("window.ran") == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.locator("tr.row").count() == 25
            assert opened.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hostile", "comparison"])
def test_sorting_and_filtering_are_quick(browser: Any, request: pytest.FixtureRequest, name: str) -> None:
    with Opened(browser, request.getfixturevalue(name)) as opened:
        heads = opened.page.locator(".documents th button").count()
        times = [
            opened.milliseconds(f"document.querySelectorAll('.documents th button')[{k}].click()")
            for k in range(heads) for _ in range(2)
        ]  # fmt: skip
        for wanted in ("word49", "<script", "nowhere", "שלום", ""):
            said = json.dumps(wanted)
            times.append(opened.milliseconds(
                "const search = document.getElementById('document-search');"
                f"search.value = {said}; search.dispatchEvent(new Event('input'))"
            ))  # fmt: skip
        times.append(opened.milliseconds("document.querySelector('input[value=both]').click()"))
        print(f"{name}: slowest of {len(times)}: {max(times):.0f} ms")
        assert max(times) < QUICK
        assert opened.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hostile", "comparison", "theory", "small", "heads"])
def test_print_takes_at_most_four_pages(browser: Any, request: pytest.FixtureRequest, name: str) -> None:
    path = request.getfixturevalue(name)
    for scheme in SCHEMES:
        with Opened(browser, path, scheme=scheme) as opened:
            printed = opened.page.pdf(prefer_css_page_size=True)
            pages = len(re.findall(rb"/Type\s*/Page\b", printed))
            print(f"{name}, {scheme}: {pages} pages")
            assert 1 <= pages <= 4


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["hostile", "comparison", "theory", "small", "heads"])
def test_axe_has_no_serious_finding(
    browser: Any, request: pytest.FixtureRequest, name: str, width: int, scheme: str
) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install '.[test]'")
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    with Opened(browser, request.getfixturevalue(name), width, scheme) as opened:
        page = opened.page
        if page.locator("tr.row button.open").count():
            page.locator("tr.row button.open").first.click()
        if page.locator("table.words button").count():
            page.locator("table.words button").first.click()
        # Evaluated from outside: the page itself would not load it.
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [
            (rule["id"], rule["impact"], node["html"][:200], node["failureSummary"][:300])
            for rule in found if rule["impact"] in ("serious", "critical") for node in rule["nodes"][:3]
        ]  # fmt: skip
        assert serious == []
