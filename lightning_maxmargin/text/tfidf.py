"""The regression on words that needs no encoder: TF-IDF, and which words decided in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics.faithfulness import Probability
from lightning_maxmargin.text.baselines import regression, require
from lightning_maxmargin.text.batches import Split

TOKEN = re.compile(r"\b\w\w+\b")


class Labelled(NamedTuple):
    """Documents to train on."""

    texts: Sequence[str]
    labels: Sequence[int]


class TfIdf:
    """Logistic regression on the TF-IDF of words and pairs of neighbouring words, on documents.

    Args:
        train: to fit.
        val: to choose C.
        split: the documents.
    """

    def __init__(self, train: Labelled, val: Labelled, split: Split) -> None:
        require("sklearn")
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.split = split
        self.features = TfidfVectorizer(analyzer=ngrams, sublinear_tf=True)
        try:
            x = self.features.fit_transform(train.texts)
        except ValueError as error:
            raise InputError(f"evaluate: no training document has a word of two letters ({error})") from error
        self.fit = regression((x, train.labels), (self.features.transform(val.texts), val.labels))
        self.predicted = [int(y) for y in self.fit.predict(self.features.transform(split.documents.texts))]

    def rationale(self, i: int) -> Tensor:
        """(u,), the sum of |coefficient| for the predicted label over the n-grams that a word of document i is in."""
        spans = np.asarray(self.split.unit_spans(i), np.int64).reshape(-1, 2)
        row = list(self.fit.classes_).index(self.predicted[i])
        weights = self.fit.coef_[row if len(self.fit.coef_) > 1 else 0]
        scores = torch.zeros(len(spans), dtype=torch.float64)
        for ngram, starts in _ngrams(self.split.documents.texts[i]):
            column = self.features.vocabulary_.get(ngram)
            found = {int(w) for w in np.searchsorted(spans[:, 1], starts, side="right") if w < len(spans)}
            for word in found if column is not None else ():
                scores[word] += abs(float(weights[column]))
        return scores

    def head(self, i: int) -> Probability | None:
        """None: there is no head apart from the input."""
        return None

    def input(self, i: int) -> Probability:
        """The probability of document i's predicted label, of any sets of its words kept (m, u)."""
        text, spans = self.split.documents.texts[i], self.split.unit_spans(i)
        words = [text[start:end] for start, end in spans]
        column = list(self.fit.classes_).index(self.predicted[i])

        def probability(keep: Tensor) -> Tensor:
            texts = [" ".join(word for word, on in zip(words, row, strict=True) if on) for row in keep.tolist()]
            return torch.from_numpy(self.fit.predict_proba(self.features.transform(texts))[:, column])

        return probability


def ngrams(text: str) -> list[str]:
    """Words of two characters or more in lower case, and pairs of neighbours, as scikit-learn's own analyzer.

    Example:
        >>> ngrams("A fine film")
        ['fine', 'film', 'fine film']
    """
    return [ngram for ngram, _ in _ngrams(text)]


def _ngrams(text: str) -> list[tuple[str, list[int]]]:
    """With where in the text their words start."""
    words = [(match[0].lower(), match.start()) for match in TOKEN.finditer(text)]
    pairs = [(f"{a} {b}", [i, j]) for (a, i), (b, j) in pairwise(words)]
    return [*((word, [i]) for word, i in words), *pairs]
