"""The report of a run on text and the page of predictions: from small files, for any text."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import RunFiles, draw_figures, write_report
from lightning_maxmargin.figures.classes import class_rows, confusion_cells
from lightning_maxmargin.figures.documents import MOST, page_beside, write_page
from lightning_maxmargin.figures.text_report import svm_words, uses
from lightning_maxmargin.figures.windows import MAX_TOKENS
from lightning_maxmargin.figures.words import shades
from tests.conftest import ROOT

from .pages import read_page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=y>',
    "שלום",
    "nul\x00",
    "\u202eRLO",
    "{{ 7*7 }}",
    "\ud800",
]
WORDS = [
    {"label": "good", "word": "<b>fine", "documents": 5, "weight": 0.4, "evidence": 1.5, "decides": 0.3},
    {"label": "bad", "word": "dull", "documents": 4, "weight": 0.0, "evidence": -1.0, "decides": 0.0},
]
CORPUS: dict[str, Any] = {
    "documents": {"train": 90, "val": 10},
    "accuracy": {"train": 0.9, "val": 0.8},
    "mean_pool": {"accuracy": {"train": 0.9, "val": 0.7}, "only_mean_pool": 0, "only_model": 1},
    "classes": [{"label": "bad", "train": 45, "val": 5, "recall": 0.8},
                {"label": "good", "train": 45, "val": 5, "recall": 0.8}],
    "confusion": [[4, 1], [1, 4]],
    "words": WORDS,
    "findings": [{"symptom": "stuck", "sentence": "It is <i>stuck</i>; use --model.lr 0.1.", "option": "model.lr",
                  "value": 0.1}],
}  # fmt: skip
TEST: dict[str, Any] = {
    "labels": ["bad", "good"],
    "documents": 20,
    "confusion": [[9, 1], [3, 7]],
    "thirds": {"right by probability": [0.5, 0.75, 1.0], "right by lead": None, "auprc by entropy": [0.9, 0.6, 0.4]},
}
SUMMARY: dict[str, Any] = {
    "name": "reviews", "message": "", "test/accuracy": 0.8, "margin/median_lead": 0.5, "status/attention": "certified",
    "direction_gap/strict": 0.3, "direction_gap/attention": 0.3, "relative_margin/attention": 0.02, "seconds": 2.0,
}  # fmt: skip
METRICS = "step,train/loss,val/loss,val/accuracy,margin/median_lead,direction_gap/strict,norm/attention\n" + "".join(
    f"{t},{1 / t},{1.2 / t},{1 - 0.5 / t},{0.1 * t},0.3,{t}\n" for t in range(1, 30)
)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "index": 0, "label": "good", "prediction": "bad", "tokens": HOSTILE,
        "attention": [0.4, 0.3, 0.1, 0.1, 0.1, 0, 0],
        "selected": 0, "planted": None, "evidence": [1, -1, 1, -1, 1, 1, 1], "probability": 0.75, "lead": 0.5,
        "entropy": 1.25, "size": 2.0, **changes,
    }  # fmt: skip


def make_run(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("trainer:\n  max_epochs: 5\n")
    (folder / "metrics.csv").write_text(METRICS)
    whole = {"summary": SUMMARY, "corpus": CORPUS, "test": TEST} | files
    for name in ("summary", "corpus", "test"):
        if whole[name] is not None:
            (folder / f"{name}.json").write_text(json.dumps(whole[name]))
    rows = files.get(
        "tokens", [row(), row(index=1, prediction="good"), row(index=2, tokens=[], attention=[], evidence=[])]
    )
    (folder / "tokens.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return folder


def test_report_of_text(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).read_text()
    visible = read_page(page).text
    assert page.count("data:image/png;base64,") == 1
    for said in (
        "80 % of the test documents are classified correctly",
        "mean pooling, without attention, gets 70 %",
        "It is <i>stuck</i>; use --model.lr 0.1.",
        "precision", "Confusion matrix", "mean over labels", "probability 0.75", "lead 0.50", "entropy 1.25",
        "50 % right, 75 % right and 100 % right", "AUPRC 0.90, 0.60, 0.40", "the hard margin does not describe this",
        "|f| 2.00", "(nothing to select)", "{{ 7*7 }}", "nul␀", "<script>alert(1)</script>", "<b>fine 30%",
    ):  # fmt: skip
        assert said in visible, said
    # Theory that does not apply is left out.
    for absent in ("Distance from the limits", "rate-coupled", "planted"):
        assert absent not in visible.split("All numbers")[0]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curves.png"]
    assert draw_figures(RunFiles.load(tmp_path), tmp_path / "figures") == [tmp_path / "figures" / "curves.png"]


def test_words_have_the_colour_of_their_side(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path)).read_text()
    assert '<span class="s for" style="--w: 0.850" title="weight 0.400, for the prediction">&lt;script&gt;' in page
    assert '<span class="s against" style="--w: 0.637"' in page
    assert [shade.opacity for shade in shades(["a", "b"], [float("nan"), -1.0], [1.0, 1.0])] == ["0", "0"]


def test_without_a_test_validation_is_shown(tmp_path: Path) -> None:
    summary = {k: v for k, v in SUMMARY.items() if k != "test/accuracy"}
    page = write_report(make_run(tmp_path, test=None, summary=summary, corpus=CORPUS | {"mean_pool": None})).read_text()
    said = read_page(page).text
    assert re.search(r"Of the validation documents \(there is no test\) \d+ % are classified correctly[;.]", said)
    assert said.count("mean pooling, without") == 1  # in the caption of the curves, not of this run
    assert "mean pooling:" not in said


def test_many_labels_have_no_matrix(tmp_path: Path) -> None:
    n = 12
    test = TEST | {"labels": [f"label {k}" for k in range(n)], "confusion": [[1] * n] * n}
    page = write_report(make_run(tmp_path, test=test)).read_text()
    assert "label 11" in page
    assert "Confusion matrix" not in page
    assert confusion_cells(test["confusion"]) == []


def test_a_long_document_is_a_window(tmp_path: Path) -> None:
    n = 1000
    tokens = [row(tokens=["w"] * n, attention=[1 / n] * n, evidence=[1.0] * n, selected=700)]
    page = write_report(make_run(tmp_path, tokens=tokens)).read_text()
    assert page.count('title="weight 0.001') == MAX_TOKENS
    assert "words before)" in page


def test_baselines_are_shown_beside_the_run(tmp_path: Path) -> None:
    page = read_page(write_report(make_run(tmp_path / "a")).read_text()).text
    assert "most frequent label" in page
    assert f"maxmargin evaluate {tmp_path / 'a'} --output {tmp_path / 'a' / 'evaluate.json'}" in page
    numbers = {"accuracy": 0.625, "accuracy/interval": [0.5, 0.75], "auprc": None}
    rows = [{"method": "TF-IDF", "model": "TF-IDF", **numbers}, {"method": "random", "model": "selector", **numbers}]
    run = make_run(tmp_path / "b")
    (run / "evaluate.json").write_text(json.dumps({"rows": rows}))
    page = read_page(write_report(run).read_text()).text
    assert "TF-IDF" in page
    assert page.count("0.625 [0.500, 0.750]") == 1
    assert "random" not in page.split("Right and wrong")[0]
    assert "maxmargin evaluate" not in page
    (run / "evaluate.json").write_text(json.dumps({"rows": [{"method": 1}]}))
    with pytest.raises(InputError, match=r"evaluate\.json is damaged .* write it again with `maxmargin evaluate`"):
        write_report(run)


def test_terms_lead_to_their_meaning_and_back(tmp_path: Path) -> None:
    page = read_page(write_report(make_run(tmp_path)).read_text())
    targets = [value for _, name, value in page.attributes if name == "id"]
    links = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert {"term-lead", "term-entropy", "term-test-accuracy"} <= set(links)
    assert set(links) <= set(targets)
    assert len(targets) == len(set(targets))


def test_classes_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    confusion = [[5, 2, 0], [1, 7, 0], [3, 1, 0]]
    truth = [i for i, counts in enumerate(confusion) for j, c in enumerate(counts) for _ in range(c)]
    said = [j for counts in confusion for j, c in enumerate(counts) for _ in range(c)]
    theirs = metrics.classification_report(truth, said, target_names=["a", "b", "c"], output_dict=True, zero_division=0)
    names = {"a": "a", "b": "b", "c": "c", "mean over labels": "macro avg", "mean over documents": "weighted avg"}
    for ours in class_rows(["a", "b", "c"], confusion):
        if ours.label == "accuracy":
            assert float(ours.f1) == pytest.approx(theirs["accuracy"], abs=5e-4)
            continue
        for key, value in (("precision", ours.precision), ("recall", ours.recall), ("f1-score", ours.f1)):
            number = 0.0 if value == "—" else float(value)
            assert number == pytest.approx(theirs[names[ours.label]][key], abs=5e-4), (ours, key)


@pytest.mark.parametrize(
    ("status", "says"),
    [("certified", "2 % of its margin"), ("infeasible", "contradicts another"), ("unverified", "no proof"),
     (None, "was not solved")],
)  # fmt: skip
def test_what_the_certificate_tells(tmp_path: Path, status: str | None, says: str) -> None:
    run = RunFiles.load(make_run(tmp_path, summary=SUMMARY | {"status/attention": status}, test=None))
    assert says in " ".join(svm_words(run))
    assert len(uses(run)) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("corpus", "{"), ("corpus", "[1]"), ("corpus", '{"accuracy": {}}'),
        ("corpus", json.dumps(CORPUS | {"words": [{"label": 1}]})),
        ("test", json.dumps(TEST | {"confusion": [[1, 2, 3]]})), ("test", json.dumps(TEST | {"labels": None})),
    ],
)  # fmt: skip
def test_damaged_measurements(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path)
    (run / f"{name}.json").write_text(content)
    with pytest.raises(InputError, match="is damaged") as error:
        write_report(run)
    assert "\n" not in str(error.value)


# --- predictions --------------------------------------------------------------------------------------------------


def prediction(text: str, index: int = 0, label: str = "good") -> dict[str, Any]:
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    words = [
        {"word": text[a:b], "span": [a, b], "weight": 1 / len(spans), "evidence": (-1) ** i}
        for i, (a, b) in enumerate(spans)
    ]
    return {"index": index, "text": text, "label": label, "probability": 0.9, "probabilities": {label: 0.9},
            "lead": None, "entropy": 0.5, "words": words}  # fmt: skip


def predictions(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    return path


def test_page_holds_every_text_whole(tmp_path: Path) -> None:
    texts = [*HOSTILE, "", "  two  spaces\nand a line ", "</script></style>"]
    path = predictions(tmp_path / "out.jsonl", [prediction(t, i, f'"{i % 2}">') for i, t in enumerate(texts)])
    page = write_page(path)
    assert page == tmp_path / "out.html"
    text = page.read_bytes().decode()
    found = re.findall(r'<p class="text" dir="auto">(.*?)</p>', text, re.DOTALL)
    shown = [html.unescape(re.sub(r"<[^>]+>", "", one)) for one in found]
    wanted = [t.replace("\x00", "␀").replace("\ud800", "?") or "(empty)" for t in texts]
    assert shown == wanted
    assert text.count("<script") == 1
    assert text.count("</script>") == 1
    assert '<option value="&#34;0&#34;&gt;">' in text
    assert not list(tmp_path.glob("*.part"))


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    import base64
    import hashlib

    text = write_page(predictions(tmp_path / "o.jsonl", [prediction("a film")])).read_text()
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(text)


def test_page_never_overwrites_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    path = predictions(tmp_path / "out.jsonl", [prediction("a", i) for i in range(MOST + 5)])
    page = write_page(path)
    text = page.read_text()
    assert text.count("<article") == MOST
    assert f"The first {MOST:,} of {MOST + 5:,} documents" in text
    with pytest.raises(InputError, match="never overwritten"):
        write_page(path)
    assert page.read_text() == text
    assert page_beside(tmp_path / "out.html") != tmp_path / "out.html"


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"index": 0}'])
def test_other_lines_are_refused_and_leave_no_page(tmp_path: Path, line: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 is not what predict writes"):
        write_page(path)
    assert [x.name for x in tmp_path.iterdir()] == ["out.jsonl"]


def test_nothing_predicted_is_an_empty_page(tmp_path: Path) -> None:
    assert "There are no documents." in write_page(predictions(tmp_path / "out.jsonl", [])).read_text()


# --- the script ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_script_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    environment = os.environ | {"TMPDIR": str(tmp_path), "MAXMARGIN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "finetune_text.py")], env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    accuracy = re.match(r"test accuracy ([\d.]+), median lead", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.65
    assert done.stdout.count("is the selection stable") == 2
    assert list(tmp_path.glob("*/model/model.safetensors"))
