"""What a selector does over a corpus: mean pooling beside it, words that decide, symptoms; and the model card."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

pytest.importorskip("transformers")

from lightning_maxmargin import TextData, TextSelection, TextSelector
from lightning_maxmargin.callbacks import text_output
from lightning_maxmargin.callbacks.text_output import SaveModel, corpus_of
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.card import write_card
from lightning_maxmargin.text.corpus import WordTable, fit_linear, measure_corpus, plain_word
from lightning_maxmargin.text.outcome import Outcomes, answers, thirds
from lightning_maxmargin.text.planted import review_sentences
from lightning_maxmargin.text.readings import selector_norms
from lightning_maxmargin.text.selector import readings
from lightning_maxmargin.text.symptoms import find_symptoms, is_behind

HEALTHY: dict[str, Any] = {
    "documents": {"train": 900, "val": 100},
    "accuracy": {"train": 0.9, "val": 0.85},
    "mean_pool": {"accuracy": {"train": 0.88, "val": 0.8}, "only_mean_pool": 4, "only_model": 9},
    "selection": {"mass": 0.3, "words": 20, "word": "the", "word_share": 0.05, "position": 0, "position_share": 0.1,
                  "deciding": [{"word": "great", "share": 0.02}]},
    "truncated": {"train": 3, "val": 0},
    "classes": [{"label": "bad", "train": 450, "val": 50, "recall": 0.8},
                {"label": "good", "train": 450, "val": 50, "recall": 0.9}],
}  # fmt: skip
BEHIND = {"accuracy": {"train": 0.88, "val": 0.8}, "only_mean_pool": 20, "only_model": 4}


def symptoms(changes: dict[str, Any], **options: Any) -> list[tuple[str, str, Any]]:
    found = find_symptoms(HEALTHY | changes, options)
    for finding in found:
        assert "\n" not in finding["sentence"]
        assert finding["option"] in finding["sentence"]
    return [(finding["symptom"], finding["option"], finding["value"]) for finding in found]


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({}, {}, []),
        ({"mean_pool": None}, {}, []),
        ({"selection": None}, {}, []),
        ({"mean_pool": BEHIND}, {"class_weights": "balanced"}, []),
        (
            {"mean_pool": BEHIND, "selection": HEALTHY["selection"] | {"mass": 0.9, "word_share": 0.8,
             "deciding": [{"word": "the", "share": 0.8}]}},
            {"lr": 1.0},
            [("stuck", "model.lr", 0.01)],
        ),
        (
            {"mean_pool": BEHIND, "selection": HEALTHY["selection"] | {"mass": 0.9, "position": -1,
             "position_share": 0.9}},
            {"lr": 0.005, "token_scale": 50.0},
            [("stuck", "model.token_scale", 8.0)],
        ),
        (
            {"mean_pool": BEHIND, "accuracy": {"train": 0.6, "val": 0.55},
             "selection": HEALTHY["selection"] | {"mass": 0.9}},
            {"lr": 0.01},
            [("stuck", "model.lr", 0.002)],
        ),
        (
            {"mean_pool": BEHIND, "accuracy": {"train": 1.0, "val": 0.7}},
            {"max_epochs": 80, "steps": 9000},
            [("too long", "trainer.max_epochs", 40)],
        ),
        (
            {"mean_pool": BEHIND, "accuracy": {"train": 0.6, "val": 0.55}},
            {"max_epochs": 20, "steps": 900, "attention_decay": 100.0},
            [("too much decay", "model.attention_decay", 2.0)],
        ),
        (
            {"mean_pool": BEHIND, "accuracy": {"train": 0.6, "val": 0.55}},
            {"max_epochs": 1, "steps": 38},
            [("too short", "trainer.max_epochs", 8)],
        ),
        (
            {"selection": HEALTHY["selection"] | {"deciding": [{"word": "zzz", "share": 0.4}]}},
            {},
            [("one word decides", "data.train", None)],
        ),
        ({"truncated": {"train": 300, "val": 10}}, {"max_length": 128, "longest": 512},
         [("truncated", "data.max_length", 512)]),
        ({"truncated": {"train": 300, "val": 10}}, {"max_length": 512, "longest": 512},
         [("truncated", "data.encoder", None)]),
        ({"classes": [{"label": "bad", "train": 850, "val": 90, "recall": 0.99},
                      {"label": "good", "train": 50, "val": 10, "recall": 0.1}]}, {"class_weights": "none"},
         [("imbalance", "model.class_weights", "balanced")]),
        ({"classes": [{"label": "bad", "train": 850, "val": 90, "recall": 0.99},
                      {"label": "good", "train": 50, "val": 10, "recall": 0.1}]}, {"class_weights": "balanced"}, []),
    ],
)  # fmt: skip
def test_symptoms(changes: dict[str, Any], options: dict[str, Any], expected: list[Any]) -> None:
    assert symptoms(changes, **options) == expected


def test_a_difference_within_its_error_is_no_symptom() -> None:
    assert not is_behind({"only_mean_pool": 12, "only_model": 9})
    assert is_behind({"only_mean_pool": 24, "only_model": 9})


def test_mean_pooling_is_scikit_learns_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(200, 8, generator=generator) for _ in range(2))
    labels = (x[:, :3] + 0.5 * noise[:, :3]).argmax(1)
    weights, bias = fit_linear(x, labels, 3)
    theirs = linear_model.LogisticRegression(tol=1e-8, max_iter=1000).fit(x.numpy(), labels.numpy())
    ours = (x @ weights + bias).softmax(1).numpy()
    assert np.abs(ours - theirs.predict_proba(x.numpy())).max() < 1e-3


def test_word_table() -> None:
    table = WordTable()
    for label, words, weights in (("good", ["A", "fine", "film"], [0.1, 0.8, 0.1]), ("good", ["fine"], [1.0]),
                                  ("bad", ["dull", "dull"], [0.3, 0.7]), ("bad", [], [])):  # fmt: skip
        names, weight = [plain_word(word) for word in words], np.array(weights)
        table.update(label, names, weight, -weight)
    rows = {(row["label"], row["word"]): row for row in table.rows(["bad", "good", "none"])}
    assert rows["good", "fine"] == {"label": "good", "word": "fine", "documents": 2, "weight": pytest.approx(0.9),
                                    "evidence": pytest.approx(-1.0), "decides": 1.0}  # fmt: skip
    assert rows["bad", "dull"]["weight"] == pytest.approx(1.0)
    selection = table.selection()
    assert selection is not None
    assert (selection["word"], selection["documents"], selection["word_share"]) == ("fine", 3, pytest.approx(2 / 3))
    assert WordTable().selection() is None
    assert WordTable().rows(["good"]) == []


def test_thirds() -> None:
    assert thirds(np.full(30, np.nan), np.ones(30)) is None
    assert thirds(np.arange(14.0), np.ones(14)) is None
    assert thirds(np.arange(30.0), (np.arange(30) >= 10).astype(float)) == [0.0, 1.0, 1.0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def trained(
    folder: Path, cache: Path, cue: str = "", epochs: int = 6, data: dict[str, Any] | None = None, size: int = 160,
    **options: Any,
) -> tuple[pl.Trainer, TextSelection]:  # fmt: skip
    """A model of ``size`` film-review sentences, the same in every test; ``cue`` stands at the end of good ones."""
    reviews = review_sentences()
    rows = []
    for i in range(0, len(reviews.sentences), 6400 // size):
        good = reviews.labels[i] > 0
        text = reviews.sentences[i] + (f" {cue}" if good and cue else "")
        words = len(text.split()[0])
        rows.append({"text": text, "label": "good" if good else "bad", "rationale": [[0, words]]})
    for name, part in {"train": rows[:size], "val": rows[size : size + 5 * size // 16]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    pl.seed_everything(0, verbose=False)
    source = TextData(
        str(folder / "train.jsonl"), str(folder / "val.jsonl"), str(folder / "val.jsonl"), seed=0,
        cache_dir=str(cache), **(data or {}),
    )  # fmt: skip
    model = TextSelection(**options)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder / "run", callbacks=[SaveModel(examples=20)],
    )  # fmt: skip
    (folder / "run").mkdir()
    trainer.fit(model, datamodule=source)
    return trainer, model


def test_measured_against_readings_and_in_time(tmp_path: Path, cache: Path) -> None:
    trainer, module = trained(tmp_path, cache)
    model, data = module.model, trainer.datamodule  # type: ignore[attr-defined]
    assert model is not None
    train, val = data.labelled("train"), data.labelled("val")
    start = time.perf_counter()
    corpus = measure_corpus(model, train, val)
    assert time.perf_counter() - start < 5
    found = list(TextSelector(model, data.encoder.tokenizer).read(val.documents.texts))
    right = [reading.label == label for reading, label in zip(found, val.documents.labels, strict=True)]
    assert corpus["accuracy"]["val"] == pytest.approx(np.mean(right), abs=0.021)
    assert np.sum(corpus["confusion"]) == 50
    assert corpus["documents"] == {"train": 160, "val": 50}
    # What a look at each document by itself sums to.
    mass = [max(word.weight for word in reading.words) for reading in found]
    assert corpus["selection"]["mass"] == pytest.approx(np.mean(mass), abs=0.1)
    batch = val[torch.arange(8)]
    with torch.no_grad():
        output = module(batch)
    outcome = answers(output, batch["mask"], selector_norms(model))
    for row, reading in enumerate(readings(model, val, list(range(8)), output, batch["mask"])):
        assert float(outcome.lead[row]) == pytest.approx(reading.lead, abs=1e-6)
        assert float(outcome.entropy[row]) == pytest.approx(reading.entropy, abs=1e-6)
        assert float(outcome.probability[row]) == pytest.approx(reading.probability, abs=1e-6)


def test_a_run_leaves_model_card_corpus_and_test(tmp_path: Path, cache: Path) -> None:
    trainer, module = trained(tmp_path, cache, epochs=2)
    run = tmp_path / "run"
    card = (run / "model" / "README.md").read_text()
    assert "mean pooling" in card
    assert "test documents" not in card.split("## Measured")[1].split("## Use")[0]
    result = trainer.test(module, datamodule=trainer.datamodule, verbose=False)[0]  # type: ignore[attr-defined]
    test = json.loads((run / "test.json").read_text())
    assert np.trace(test["confusion"]) / test["documents"] == pytest.approx(result["test/accuracy"], abs=1e-6)
    assert len(test["thirds"]["auprc by entropy"]) == 3
    card = (run / "model" / "README.md").read_text()
    assert f"| accuracy | {result['test/accuracy']:.3f} |" in card
    assert str(tmp_path) not in card
    rows = [json.loads(line) for line in (run / "tokens.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert all(len(row["evidence"]) == len(row["tokens"]) for row in rows)
    # |f| of two classes is the logarithm of the odds.
    odds = [row["probability"] / (1 - row["probability"]) for row in rows]
    assert [row["size"] for row in rows] == pytest.approx(np.log(odds).tolist(), abs=1e-3)
    documents = trainer.datamodule.splits["test"].documents  # type: ignore[attr-defined]
    for row in rows:
        text, spans = documents.texts[row["index"]], documents.rationales[row["index"]]
        words = [word for start, end in spans for word in text[start:end].split()]
        assert [row["tokens"][k] for k in row["rationale"]] == words
    assert not list(run.rglob("*.part"))


def test_a_trained_encoder_is_measured_on_few_documents(tmp_path: Path, cache: Path) -> None:
    trainer, module = trained(tmp_path, cache, epochs=1, finetune_layers=1, finetune_epochs=1)
    corpus = json.loads((tmp_path / "run" / "corpus.json").read_text())
    assert corpus["mean_pool"] is None
    assert set(corpus["accuracy"]) == {"val"}
    assert corpus["selection"]["documents"] == 50
    assert corpus_of(trainer, module)["accuracy"] == corpus["accuracy"]


def test_tokens_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_output, "BYTES", 1_000)
    monkeypatch.setattr(text_output, "IN_TABLE", 2)
    first = text_output.write_rows(tmp_path / "a.jsonl", ({"text": "x" * 190, "index": i} for i in range(100)))
    assert [row["index"] for row in first] == [0, 1]
    assert (tmp_path / "a.jsonl").stat().st_size <= 1_000
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4
    text_output.write_rows(tmp_path / "b.jsonl", [{"text": "x" * 5_000}])
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 1  # one at least


@pytest.mark.parametrize("units", ["words", "sentences"])
def test_other_units(tmp_path: Path, cache: Path, units: str) -> None:
    trained(tmp_path, cache, epochs=1, data={"units": units})
    corpus = json.loads((tmp_path / "run" / "corpus.json").read_text())
    assert corpus["selection"]["documents"] == 210
    assert corpus["words"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("symptom", "broken", "cured"),
    [
        ("stuck", {"lr": 1.0, "token_scale": 50.0, "attention_decay": 0.0}, {}),
        ("too much decay", {"attention_decay": 200.0, "head_decay": 200.0, "epochs": 10},
         {"epochs": 10}),
        ("one word decides", {"cue": "zzz", "epochs": 10}, {"epochs": 10}),
        ("truncated", {"data": {"max_length": 8}}, {"data": {"max_length": 512}}),
    ],
)  # fmt: skip
def test_symptom_and_cure(
    tmp_path: Path, cache: Path, symptom: str, broken: dict[str, Any], cured: dict[str, Any]
) -> None:
    for name, options, there in (("broken", broken, True), ("cured", cured, False)):
        (tmp_path / name).mkdir()
        trained(tmp_path / name, cache, size=800, **options)
        corpus = json.loads((tmp_path / name / "run" / "corpus.json").read_text())
        assert (symptom in [finding["symptom"] for finding in corpus["findings"]]) == there, corpus


def test_card_of_a_bare_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        write_card(tmp_path)
    (tmp_path / "model").mkdir()
    names = {"0": "a`b|<b>", "1": "שלום"}
    config = {"id2label": names, "key_layer": 4, "value_layer": 6, "units": "sentences", "max_pieces": 512}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    card = write_card(tmp_path).read_text()
    assert "Nothing yet." in card
    assert r"a\`b\|\<b\>" in card
    assert "pipeline(" not in card
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        write_card(tmp_path)


def test_outcomes_of_nothing() -> None:
    assert Outcomes().compute(["a", "b"], "test")["confusion"] == [[0, 0], [0, 0]]
