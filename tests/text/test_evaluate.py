"""Rationales of a finished run, beside those of the baselines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import baselines
from lightning_maxmargin.text.data import TextData
from lightning_maxmargin.text.evaluate import both_right, shares
from lightning_maxmargin.text.faithful import agreement, marks_of
from lightning_maxmargin.text.finished import FinishedRun, read_run
from lightning_maxmargin.text.gradients import _logits, gradient_rationales
from lightning_maxmargin.text.pooled import Pooled, PoolingModel, by_word
from lightning_maxmargin.text.saving import build_model
from lightning_maxmargin.text.scores import read_scores
from lightning_maxmargin.text.selector import TextSelector
from lightning_maxmargin.text.tfidf import Labelled, TfIdf, ngrams

from .conftest import reviews, write_rows

METHODS = {
    "selector s", "selector s|v'x|", "selector s y v'x", "random", "mean-pool", "gradient x input",
    "integrated gradients", "TF-IDF",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(finished: Path) -> FinishedRun:
    return read_run(finished)


@pytest.fixture(scope="module")
def model(run: FinishedRun) -> PoolingModel:
    return PoolingModel(run.model, run.split(run.test_documents()))


@pytest.fixture(scope="module")
def pooling(run: FinishedRun) -> Any:
    """Mean pooling and its training data."""
    data = run.training_data()
    return baselines.mean_pool(data, 8.0), data


# --- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 3])
def test_removing_a_word_removes_its_pieces(classes: int | None) -> None:
    torch.manual_seed(0)
    words = torch.tensor([-1, 0, 0, 1, 2, 2, 2, -1])
    scores = torch.randn(8, dtype=torch.float64) if classes is None else torch.randn(3, 8, dtype=torch.float64)
    evidence = torch.randn(8, 3, dtype=torch.float64)
    a, e = by_word(scores, evidence, words, 3)
    keep = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    pieces = torch.cat([keep, torch.zeros(3, 1, dtype=torch.bool)], 1)[:, words]

    def logits(a: torch.Tensor, e: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        each = a.expand(3, -1) if a.ndim == 1 else a
        return torch.stack([masked_softmax(x.expand(keep.shape), keep) @ e[:, k] for k, x in enumerate(each)], 1)

    torch.testing.assert_close(logits(a, e, keep), logits(scores, evidence, pieces))
    whole = logits(a, e, keep)[2]
    torch.testing.assert_close(Pooled(whole, a, e).head()(keep), logits(a, e, keep).softmax(1)[:, whole.argmax()])


def test_words_are_read_as_the_model_reads_them(run: FinishedRun, model: PoolingModel) -> None:
    texts = model.split.documents.texts
    for reading, document in zip(TextSelector(run.model, run.tokenizer)(texts), model.documents, strict=True):
        assert reading.label == run.names[document.predicted]
        np.testing.assert_allclose([w.weight for w in reading.words], document.rationale("s").numpy(), atol=1e-6)
        towards = [w.weight * w.evidence for w in reading.words]
        np.testing.assert_allclose(towards, document.rationale("s y v'x").numpy(), atol=1e-5)
        np.testing.assert_allclose(document.rationale("s|v'x|"), document.rationale("s y v'x").abs(), atol=1e-12)


def test_what_is_left_is_encoded_as_the_text_without_the_rest(run: FinishedRun, model: PoolingModel) -> None:
    words = model.split.documents.texts[0].split()
    keep = torch.ones(4, len(words), dtype=torch.bool)
    keep[1, 0], keep[2, 1::2], keep[3] = False, False, False
    texts = [" ".join(word for word, on in zip(words, row, strict=True) if on) for row in keep.tolist()]
    reader = TextSelector(run.model, run.tokenizer)
    label = reader(texts[0]).label
    expected = [reader(text).probabilities[label] for text in texts]
    ask = model.input(0)
    np.testing.assert_allclose(ask(keep), expected, atol=1e-6)
    np.testing.assert_allclose(ask(keep.flip(0)), expected[::-1], atol=1e-6)  # now from what it remembers
    assert expected[3] == pytest.approx(0.5)


@pytest.mark.parametrize("units", ["words", "sentences"])
def test_other_units(make_run: Callable[..., Path], units: str) -> None:
    run = read_run(make_run(units=units))
    model = PoolingModel(run.model, run.split(run.test_documents()))
    count = [len(model.split.unit_spans(i)) for i in range(40)]
    assert [len(document.rationale("s")) for document in model.documents] == count
    assert (max(count) == 1) == (units == "sentences")
    for i in range(5):
        whole = torch.ones(1, count[i], dtype=torch.bool)
        torch.testing.assert_close(model.input(i)(whole), model.documents[i].head()(whole), atol=1e-6, rtol=0)


@pytest.mark.parametrize("per_class", [False, True])
def test_three_classes(tiny_encoder: Path, tmp_path: Path, per_class: bool) -> None:
    rows = reviews(60, 1)
    for k, row in enumerate(rows):
        row["label"] = "plain" if k % 3 == 0 else row["label"]
    file = write_rows(tmp_path / "train.jsonl", rows)
    data = TextData(str(file), encoder=str(tiny_encoder), cache_dir=str(tmp_path))
    data.setup("fit")
    shape = {"parametrization": "p", "token_scale": 8.0, "per_class": per_class}
    network = build_model(data.spec, data.encoder, data.names, shape)
    for selector in network.selectors:
        torch.nn.init.normal_(selector.p, generator=torch.Generator().manual_seed(len(data.names)))  # type: ignore[union-attr,arg-type]
    split = replace(data.labelled("train"), units="words", hidden=None)
    for model in (PoolingModel(network, split), PoolingModel(baselines.mean_pool(data, 8.0), split)):
        for i in range(4):
            document = model.documents[i]
            whole = torch.ones(1, len(split.unit_spans(i)), dtype=torch.bool)
            expected = document.logits.softmax(0)[document.predicted : document.predicted + 1]
            torch.testing.assert_close(document.head()(whole), expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(model.input(i)(whole), expected, atol=1e-6, rtol=0)
            towards = document.logits[document.predicted] - document.logits.mean()
            if not per_class:
                assert float(document.rationale("s y v'x").sum()) == pytest.approx(float(towards), abs=1e-5)
    labelled = Labelled(split.documents.texts, split.labels.tolist())  # type: ignore[union-attr]
    words = TfIdf(labelled, labelled, split)
    p = words.fit.predict_proba(words.features.transform(split.documents.texts[:1]))[0]
    assert float(words.input(0)(torch.ones(1, len(split.unit_spans(0)), dtype=torch.bool))) == pytest.approx(p.max())
    assert len(words.rationale(0)) == len(split.unit_spans(0))


# --- baselines --------------------------------------------------------------------------------------------------


def test_mean_pooling_is_the_regression_on_means(pooling: Any) -> None:
    model, data = pooling
    x, y = baselines._features(model, data.labelled("train"))
    val = baselines._features(model, data.labelled("val"))
    expected = baselines.regression((x, y), val, intercept=False).predict_proba(x)
    found = PoolingModel(model, replace(data.labelled("train"), units="words", hidden=None))
    logits = torch.stack([document.logits for document in found.documents])
    np.testing.assert_allclose(logits.softmax(1), expected, atol=2e-3)  # hidden states are kept in float16
    assert all(torch.equal(d.scores.exp(), d.scores.exp().round()) for d in found.documents)  # pieces of each word


def test_integrated_gradients_add_up_to_the_logit(pooling: Any, model: PoolingModel) -> None:
    pytest.importorskip("captum")
    network, split = pooling[0], model.split
    found = gradient_rationales(network, split, [0, 1, 2], "integrated gradients")
    batch = split[torch.tensor([0, 1, 2])]
    embeddings = network.encoder.get_input_embeddings()(batch["input_ids"])
    nothing = embeddings.masked_fill(batch["mask"][..., None], 0.0)
    logits, empty = (_logits(network, x, batch["attention_mask"], batch["mask"]) for x in (embeddings, nothing))
    torch.testing.assert_close(network(batch["input_ids"], batch["attention_mask"]).logits, logits)
    for i in range(3):
        y = int(logits[i].argmax())
        gap = (logits[i, y] - logits[i].mean()) - (empty[i, y] - empty[i].mean())
        assert float(found[i].sum()) == pytest.approx(float(gap), abs=0.02 * float(logits.abs().max()))


def test_gradient_x_input_is_the_slope_along_a_words_embedding(pooling: Any, model: PoolingModel) -> None:
    network, split = pooling[0], model.split
    found = gradient_rationales(network, split, [3], "gradient x input")[3]
    batch = split[torch.tensor([3])]
    embeddings = network.encoder.get_input_embeddings()(batch["input_ids"])
    word = embeddings * (batch["unit_ids"] == 1)[..., None]
    step = 1e-2

    def towards(x: torch.Tensor) -> torch.Tensor:
        logits = _logits(network, x, batch["attention_mask"], batch["mask"])[0]
        return logits.max() - logits.mean()

    slope = (towards(embeddings + step * word) - towards(embeddings - step * word)) / (2 * step)
    assert float(found[1]) == pytest.approx(abs(float(slope)), rel=0.05, abs=1e-3)


def test_fine_tuning_trains_the_top_and_leaves_the_start(pooling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = pooling
    before = {name: x.clone() for name, x in model.state_dict().items()}
    monkeypatch.setattr(baselines, "TOP_LAYERS", 1)
    tuned = baselines.fine_tuned(model, data.labelled("train"))
    again = baselines.fine_tuned(model, data.labelled("train"))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    changed = {name for name, x in tuned.state_dict().items() if not torch.equal(x, before[name])}
    assert changed
    assert all(name == "selectors.0.v" or ".layer.1." in name for name in changed)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in tuned.state_dict().items())


def test_ngrams_are_scikit_learns() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    theirs = TfidfVectorizer(ngram_range=(1, 2)).build_analyzer()
    for text in ("A fine, FINE film!", "", "x", "it's 10 o'clock -- well-made"):
        assert sorted(ngrams(text)) == sorted(theirs(text))


def test_tfidf_words(model: PoolingModel) -> None:
    rows = reviews(80, 1)
    documents = Labelled([r["text"] for r in rows], [int(r["label"] == "good") for r in rows])
    words = TfIdf(documents, documents, model.split)
    scores, whole = words.rationale(0), torch.ones(1, len(model.split.unit_spans(0)), dtype=torch.bool)
    assert scores.argmax() == marks_of(model.split)[0].int().argmax()
    p = words.fit.predict_proba(words.features.transform([model.split.documents.texts[0]]))[0]
    assert float(words.input(0)(whole)) == pytest.approx(p.max())
    assert words.head(0) is None


# --- scores made elsewhere --------------------------------------------------------------------------------------


def test_scores_come_in_three_forms(model: PoolingModel, tmp_path: Path) -> None:
    texts = model.split.documents.texts
    n = len(texts[0].split())
    rows: list[dict[str, Any]] = [{} for _ in texts]
    rows[0] = {"scores": list(range(n))}
    rows[1] = {"scores": [1.0, 2.0, 4.0], "spans": [[0, 1], [0, 2], [len(texts[1]) - 1, len(texts[1])]]}
    rows[2] = {"words": [{"span": [0, 1], "weight": 0.5}]}
    found = read_scores(write_rows(tmp_path / "scores.jsonl", rows), model.split)
    assert found[0].tolist() == list(range(n))
    assert (found[1][0], found[1][-1], found[1].sum()) == (3.0, 4.0, 7.0)
    assert found[2][0] == found[2].sum() == 0.5
    assert sorted(found) == [0, 1, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"scores": [1.0]}, r"line 1: 1 scores for \d+ words or spans"),
        ({"scores": [float("nan")], "spans": [[0, 1]]}, "line 1: a score is not finite"),
        ({"scores": ["x"], "spans": [[0, 1]]}, "line 1: no scores that can be read"),
        ({"words": [{"weight": 1}]}, r"line 1: no scores that can be read \(KeyError: 'span'\)"),
    ],
)
def test_scores_that_do_not_fit(model: PoolingModel, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = [row, *({} for _ in model.split.documents.texts[1:])]
    with pytest.raises(InputError, match=message):
        read_scores(write_rows(tmp_path / "scores.jsonl", rows), model.split)


def test_scores_of_another_number_of_documents(model: PoolingModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 lines for 40 test documents"):
        read_scores(write_rows(tmp_path / "scores.jsonl", [{}]), model.split)


# --- the command ------------------------------------------------------------------------------------------------


def test_the_tables(maxmargin: Any, finished: Path, model: PoolingModel, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    marks = marks_of(model.split)
    perfect = [{"scores": marks[i].int().tolist()} for i in range(40)]
    write_rows(tmp_path / "perfect.jsonl", perfect)
    words = ["--scores", "perfect.jsonl", "--group", "pair", "--documents", "6", "--output", "table.json"]
    outcome = maxmargin("evaluate", str(finished), *words)
    assert outcome.status == 0, outcome.err
    table = json.loads((tmp_path / "table.json").read_text())
    rows = {row["method"]: row for row in table["rows"]}
    assert set(rows) == METHODS | {"perfect.jsonl"}
    assert table["faithfulness_documents"] == 6
    assert rows["perfect.jsonl"]["auprc"] == rows["perfect.jsonl"]["iou_f1"] == 1.0
    expected = agreement({i: d.rationale("s") for i, d in enumerate(model.documents)}, marks)
    assert rows["selector s"]["auprc"] == pytest.approx(expected.auprc.mean())
    low, high = rows["selector s"]["auprc/interval"]
    assert low < rows["selector s"]["auprc"] < high
    right = np.array(model.predicted) == model.split.labels.numpy()  # type: ignore[union-attr]
    assert rows["selector s"]["accuracy"] == right.mean()
    assert rows["selector s"]["both_right"] == (right[::2] & right[1::2]).mean()
    # Of all orders that by s y v'x is near the most comprehensive.
    assert 0.8 < rows["selector s y v'x"]["comprehensiveness/normalised"] <= 1 + 1e-9
    assert rows["TF-IDF"]["comprehensiveness/head"] is None
    assert rows["integrated gradients"]["marked_documents"] == 6
    assert "both right" in outcome.out
    assert "AOPC over 1, 5, 10, 20, 50 % of the words, on 6 of 40" in " ".join(outcome.out.split())


def test_fine_tuning_on_demand(maxmargin: Any, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    outcome = maxmargin("evaluate", str(finished), "--baselines", "all", "--documents", "2", "--output", "t.json")
    assert outcome.status == 0, outcome.err
    names = {row["method"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]}
    assert names == METHODS | {"fine-tuned", "gradient x input, fine-tuned", "integrated gradients, fine-tuned"}


def test_the_same_seed_gives_the_same_table(maxmargin: Any, finished: Path, tmp_path: Path) -> None:
    words = ["--baselines", "none", "--documents", "3", "--bins", "50", "--seed", "4"]
    for name in ("a.json", "b.json"):
        assert maxmargin("evaluate", str(finished), *words, "--output", name).status == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_documents_without_marks(maxmargin: Any, finished: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "plain.jsonl", [{"text": "a good film", "label": "good"}, {"text": "", "label": "bad"}])
    outcome = maxmargin("evaluate", str(finished), "--baselines", "none", "--data", "plain.jsonl")
    assert outcome.status == 0, outcome.err
    assert "accuracy" in outcome.out
    assert "AUPRC" not in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere holds no model/"),
        (["RUN", "--bins", "1,200"], "--bins: '1,200'; expected percentages"),
        (["RUN", "--documents", "0"], "--documents: 0; expected a positive number"),
        (["RUN", "--share", "2"], "--share: 2.0; expected a share"),
        (["RUN", "--seed", "-1"], "--seed: -1; expected a number from 0 to"),
        (["RUN", "--output", "taken.json"], "taken.json exists and is never overwritten"),
        (["RUN", "--data", "missing.jsonl"], "there is no file or folder 'missing.jsonl'; name the test documents"),
        (["RUN", "--data", "other.jsonl"], "document 1 has the label 'new', which the model does not know"),
        (["RUN", "--group", "author"], "has no column 'author'; it has text, label"),
        (["RUN", "--scores", "missing.jsonl"], "scores: missing.jsonl: cannot be read"),
        (["RUN", "--scores", ""], "scores: .: cannot be read"),
        (["RUN", "--baselines", "some"], "baselines: expected"),
    ],
)
def test_one_line_for_bad_input(maxmargin: Any, finished: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "taken.json").write_text("{}")
    write_rows(tmp_path / "other.jsonl", [{"text": "a film", "label": "new"}])
    outcome = maxmargin("evaluate", *(str(finished) if word == "RUN" else word for word in words))
    assert outcome.status == 2
    assert message in outcome.error


def test_training_documents_that_are_gone(maxmargin: Any, make_run: Callable[..., Path]) -> None:
    folder = make_run(seed=3)
    (folder / "train.jsonl").unlink()
    outcome = maxmargin("evaluate", str(folder))
    assert outcome.status == 2
    assert "or use --baselines none" in outcome.error
    (folder / "config.yaml").unlink()
    assert "names no test file; give one with --data" in maxmargin("evaluate", str(folder)).error


def test_a_missing_package(maxmargin: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no module captum.*--baselines none"):
        baselines.require("captum")


def test_small_helpers() -> None:
    assert shares("5") == (0.05,)
    assert both_right([True, True, True, False], ["a", "a", "b", "b"]) == [True, False]
    nothing = agreement({}, {})
    assert len(nothing.auprc) == 0
    assert np.isnan(nothing.iou_f1)


def test_without_gradients(maxmargin: Any, finished: Path, tmp_path: Path) -> None:
    words = ("--gradients", "false", "--documents", "2", "--output", "t.json")
    outcome = maxmargin("evaluate", str(finished), *words)
    assert outcome.status == 0, outcome.err
    names = {row["method"] for row in json.loads((tmp_path / "t.json").read_text())["rows"]}
    assert names == METHODS - {"gradient x input", "integrated gradients"}
