"""Files to batches: splits, labels, what is counted, and what the model is given."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.data import TextData
from tests.text.conftest import reviews, write_rows

STRANGE = [
    "", "   ", "\u200b", "a good film \U0001f600", "good\x00film", "\u05e1\u05e8\u05d8 \u05d8\u05d5\u05d1", "good",
    "qwertyuiop", "the film " * 3000, "[SEP] [CLS] film",
]  # fmt: skip


def text_data(folder: Path, encoder: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> TextData:
    file = write_rows(folder / "train.jsonl", reviews(40, 0) if rows is None else rows)
    return TextData(str(file), encoder=str(encoder), cache_dir=str(folder / "cache"), **options)


def test_a_validation_split_is_cut_by_the_seed(tiny_encoder: Path, tmp_path: Path) -> None:
    def validation(seed: int) -> list[str]:
        data = text_data(tmp_path, tiny_encoder, seed=seed)
        data.setup("fit")
        assert len(data.splits["train"]) == 36
        return data.splits["val"].documents.texts

    assert validation(0) == validation(0) != validation(1)


def test_labels_are_numbers_of_sorted_names(tiny_encoder: Path, tmp_path: Path) -> None:
    data = text_data(tmp_path, tiny_encoder)
    data.setup("fit")
    train = data.labelled("train")
    assert data.names == ["bad", "good"]
    assert train.labels is not None
    assert [data.names[k] for k in train.labels.tolist()] == train.documents.labels


def test_a_batch_holds_what_attention_may_select(tiny_encoder: Path, tmp_path: Path) -> None:
    data = text_data(tmp_path, tiny_encoder, rows=[*reviews(20, 0), {"text": "", "label": "bad"}], val_share=0.2)
    data.setup("fit")
    split = data.labelled("train")
    batch = split[torch.arange(len(split))]
    assert batch["keys"].shape == (*batch["input_ids"].shape, 32)
    assert batch["values"] is batch["keys"]
    lengths = batch["attention_mask"].sum(1)
    assert torch.equal(batch["mask"].sum(1), (lengths - 2).clamp_min(0))
    assert not batch["mask"][:, 0].any()  # [CLS]


@pytest.mark.parametrize("units", ["words", "sentences"])
def test_units_number_the_pieces(tiny_encoder: Path, tmp_path: Path, units: Any) -> None:
    data = text_data(tmp_path, tiny_encoder, units=units)
    data.setup("fit")
    split = data.splits["train"]
    batch = split[torch.tensor([0, 1])]
    for row, i in enumerate([0, 1]):
        numbers = batch["unit_ids"][row]
        assert sorted(set(numbers[numbers >= 0].tolist())) == list(range(len(split.unit_spans(i))))


def test_two_layers_are_two_tensors(tiny_encoder: Path, tmp_path: Path) -> None:
    data = text_data(tmp_path, tiny_encoder, key_layer=1, value_layer=3)
    data.setup("fit")
    batch = data.splits["train"][torch.tensor([0])]
    assert not torch.equal(batch["keys"], batch["values"])


def test_a_process_may_have_no_document(tiny_encoder: Path, tmp_path: Path) -> None:
    data = text_data(tmp_path, tiny_encoder)
    data.setup("fit")
    batch = data.labelled("train")[torch.zeros(0, dtype=torch.int64)]
    assert {len(x) for x in batch.values()} == {0}


def test_strange_texts_are_counted(tiny_encoder: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "ab"[k % 2]} for k, text in enumerate(STRANGE * 2)]
    data = text_data(tmp_path, tiny_encoder, rows=rows, val_share=0.1)
    data.setup("fit")
    split = data.labelled("train")
    batch = split[torch.arange(len(split))]
    assert torch.isfinite(batch["keys"]).all()
    assert split.counts["empty"] >= 4
    assert split.counts["truncated"] >= 1


def test_a_csv_with_names_of_its_own(tiny_encoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["review", "stars"])
        writer.writerows([[row["text"], 5 if row["label"] == "good" else 1] for row in reviews(20, 0)])
    data = TextData(str(file), text="review", label="stars", encoder=str(tiny_encoder), cache_dir=str(tmp_path))
    data.setup("fit")
    assert data.names == ["1", "5"]


def test_predicting_needs_no_training_file(tiny_encoder: Path, tmp_path: Path) -> None:
    new = write_rows(tmp_path / "new.jsonl", [{"text": "a good film"}])
    data = TextData(str(tmp_path / "gone.csv"), predict=str(new), encoder=str(tiny_encoder), cache_dir=str(tmp_path))
    data.setup("predict")
    assert data.splits["predict"].hidden is None  # read once: nothing of it is kept
    assert [len(batch["index"]) for batch in data.predict_dataloader()] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_layer": 9}, "data.key_layer: 9; .* has layers 0 to 3"),
        ({"max_length": 2}, "data.max_length: 2; .* takes from 3 to 64 word pieces"),
        ({"batch_size": 0}, "data.batch_size: 0; expected a positive number"),
        ({"val_share": 1.0}, "data.val_share: 1.0; expected a number between 0 and 1"),
    ],
)
def test_wrong_numbers_are_refused(tiny_encoder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_data(tmp_path, tiny_encoder, **options)


def test_a_label_that_the_model_does_not_know(tiny_encoder: Path, tmp_path: Path) -> None:
    data = text_data(tmp_path, tiny_encoder)
    data.setup("fit")
    data.names = ["bad", "fair"]
    with pytest.raises(
        InputError, match=r"data.train: document \d+ has the label 'good', which the model does not know"
    ):
        data.labelled("train")


def test_another_seed_encodes_nothing_again(tiny_encoder: Path, tmp_path: Path) -> None:
    first, second = (text_data(tmp_path, tiny_encoder, seed=seed) for seed in (0, 1))
    first.setup("fit")
    files = sorted((tmp_path / "cache").rglob("*.f16"))
    second.setup("fit")
    assert sorted((tmp_path / "cache").rglob("*.f16")) == files
    assert len(files) == 1
    found = {}
    for data in (first, second):
        for split in data.splits.values():
            for i, text in enumerate(split.documents.texts):
                assert split.hidden is not None
                states = split.hidden.rows(2, [i])[0]
                assert len(states) == split.pieces.of(i).stop - split.pieces.of(i).start
                assert torch.equal(found.setdefault(text, states), states)
