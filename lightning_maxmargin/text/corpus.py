"""What a selector does over a whole corpus: how right it is, which words decide, and how mean pooling would do."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_maxmargin.text.batches import Batch, Split
from lightning_maxmargin.text.hidden import batches_by_length
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification, pooled_units
from lightning_maxmargin.text.outcome import Answers, Numbers, answers, unit_mask
from lightning_maxmargin.text.readings import selector_norms
from lightning_maxmargin.text.symptoms import find_symptoms
from lightning_maxmargin.text.units import word_spans

EDGES = re.compile(r"^\W+|\W+$")
#: Documents of a split that are measured: of more a sample.
MOST = 5_000
#: Documents of an encoder that was trained, which are to be encoded again.
MOST_ENCODED = 200
PIECES_AT_ONCE = 8_192
#: Length of a token of mean pooling.
POOLED_SCALE = 8.0
WORDS_A_LABEL, LABELS = 12, 20
LONGEST_WORD = 60  # characters of a sentence in the table

Forward = Callable[[Batch], Mapping[str, Any]]


class Part(NamedTuple):
    """Documents of a split: their numbers, answers, and the mean of each one's tokens (b, d) where these are kept."""

    texts: list[int]
    answers: Answers
    pooled: Tensor | None


def measure_corpus(
    model: MaxMarginForSequenceClassification,
    train: Split,
    val: Split,
    forward: Forward | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What ``corpus.json`` holds: accuracies, mean pooling's, the words that decide, and findings.

    Costs a pass over the cached hidden states of at most :data:`MOST` documents a split: a second per 1,000, or less.

    Args:
        model: whose selection it is.
        train: labelled documents, from the cache where ``forward`` is None.
        val: likewise.
        forward: of a model whose encoder was trained: then :data:`MOST_ENCODED` documents of ``val`` are measured
            alone, and there is no mean pooling to compare with.
        options: those of the run, for what is to be changed: see :func:`~.symptoms.find_symptoms`.
        seed: of the sample.
    """
    start = time.perf_counter()
    names = model.names
    words, found = WordTable(), {}
    for name, split in {"train": train, "val": val}.items():
        if forward is None or name == "val":
            texts = _sample(len(split), MOST if forward is None else MOST_ENCODED, seed)
            found[name] = _measure(model, split, texts, forward, names, words)
    measured: dict[str, Any] = {
        "documents": {"train": len(train), "val": len(val)},
        "accuracy": {name: part.accuracy for name, part in found.items()},
        "mean_pool": _mean_pool(found, len(names)),
        "selection": words.selection(),
        "truncated": {name: int(split.pieces.truncated.sum()) for name, split in {"train": train, "val": val}.items()},
        "classes": _classes(names, train, found["val"]),
        "confusion": found["val"].confusion(len(names)).tolist(),
        "words": words.rows(names),
    }
    measured["findings"] = find_symptoms(measured, options or {})
    measured["seconds"] = time.perf_counter() - start
    return measured


@dataclass
class Measured:
    """Documents of a split: labels, predictions, pooled tokens."""

    labels: Tensor  # (n,)
    predicted: Tensor  # (n,)
    pooled: Tensor | None  # (n, d)

    @property
    def accuracy(self) -> float | None:
        return float((self.labels == self.predicted).float().mean()) if len(self.labels) else None

    def confusion(self, classes: int) -> Tensor:
        """(K, K) documents by label and prediction."""
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)


def _sample(n: int, most: int, seed: int) -> list[int]:
    if n <= most:
        return list(range(n))
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most].sort().values.tolist()


def _measure(
    model: MaxMarginForSequenceClassification,
    split: Split,
    texts: list[int],
    forward: Forward | None,
    names: list[str],
    words: WordTable,
) -> Measured:
    assert split.labels is not None
    # Made before the loop: what is kept of each part would lie between the parts' own memory, which the system then
    # does not get back; of 5,000 documents of 128 pieces that was 680 MB.
    order = torch.zeros(len(texts), dtype=torch.int64)
    predicted, pooled, at = torch.zeros_like(order), None, 0
    if forward is None:
        pooled = torch.zeros(len(texts), int(model.parts[0].value_dim))
    for part in read_parts(model, split, texts, forward):
        found, here = part.answers, slice(at, at + len(part.texts))
        order[here], predicted[here] = torch.tensor(part.texts), found.predicted
        if pooled is not None and part.pooled is not None:
            pooled[here] = part.pooled
        at = here.stop
        for row, i in enumerate(part.texts):
            weights, evidence = (x[row][found.mask[row]].double().numpy() for x in (found.weights, found.evidence))
            words.update(names[int(found.predicted[row])], *_words(split, i, weights, evidence))
    return Measured(split.labels[order], predicted, pooled)


def _words(split: Split, i: int, weights: Numbers, evidence: Numbers) -> tuple[list[str], Numbers, Numbers]:
    """The words (or sentences) of document i, the weight of each, and weight times evidence."""
    text, together = split.documents.texts[i], weights * evidence
    if split.units != "pieces":
        name = plain_word if split.units == "words" else _cut
        return [name(text[start:end]) for start, end in split.unit_spans(i)], weights, together
    # As units_of() puts pieces to words, without the lists in between: this is done for thousands of documents.
    at = split.pieces.of(i)
    starts = split.pieces.spans[at][~split.special[at].numpy(), 0]
    spans = word_spans(text)
    of = np.searchsorted(spans[:, 1], starts, side="right") if len(spans) else starts * 0
    there, ids = np.unique(of.clip(max=max(len(spans) - 1, 0)), return_inverse=True)
    names = [plain_word(text[start:end]) for start, end in spans[there].tolist()]
    sums = [np.bincount(ids, x, len(there)).astype(np.float64, copy=False) for x in (weights, together)]
    return names, sums[0], sums[1]


@torch.no_grad()
def read_parts(
    model: MaxMarginForSequenceClassification, split: Split, texts: Sequence[int], forward: Forward | None = None
) -> Iterator[Part]:
    """What the model says of these documents, those of like length together.

    Args:
        model: in evaluation mode.
        split: of the documents, with hidden states where ``forward`` is None.
        texts: their numbers.
        forward: gives the model's output of a batch.
    """
    norms = selector_norms(model)
    for part in batches_by_length(split.pieces, texts, PIECES_AT_ONCE):
        batch = {name: x.to(model.device) for name, x in split[torch.tensor(part)].items()}
        pooled = None
        if forward is None:
            keys, values, mask = pooled_units(batch["keys"], batch["values"], batch["mask"], batch.get("unit_ids"))
            first = batch["keys"][:, 0]
            output: Mapping[str, Any] = model.select(keys, values, mask, first)
            tokens = model.sequences(values, values, mask, first).values * mask[:, :, None]
            # Of one length whatever the model's: the decay of the regression then means the same for all runs.
            size = mask.sum(1, keepdim=True).clamp_min(1) * model.config.token_scale / POOLED_SCALE
            pooled = (tokens.sum(1) / size).float().cpu()
        else:
            output, mask = forward(batch), unit_mask(batch)
        yield Part(part, answers(output, mask, norms), pooled)


# --- mean pooling -----------------------------------------------------------------------------------------------------


def _mean_pool(found: Mapping[str, Measured], classes: int) -> dict[str, Any] | None:
    """Accuracies of a logistic regression on the mean token, and how it and the model differ on validation."""
    train, val = found.get("train"), found["val"]
    if train is None or train.pooled is None or val.pooled is None or not len(val.labels):
        return None
    weights, bias = fit_linear(train.pooled, train.labels, classes)
    pooled = {"train": (train.pooled, train.labels), "val": (val.pooled, val.labels)}
    right = {name: (x @ weights + bias).argmax(1) == labels for name, (x, labels) in pooled.items()}
    model = val.predicted == val.labels
    return {
        "accuracy": {name: float(x.double().mean()) for name, x in right.items()},
        "only_mean_pool": int((right["val"] & ~model).sum()),
        "only_model": int((model & ~right["val"]).sum()),
    }


@torch.enable_grad()
def fit_linear(features: Tensor, labels: Tensor, classes: int, steps: int = 50) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with scikit-learn's default decay, ``sum of losses + |W|^2 / 2``, by L-BFGS.

    Args:
        features: (n, d).
        labels: (n,) int64.
        classes: how many there are.
        steps: of L-BFGS at most.

    Returns:
        Weights (d, K) and bias (K,).

    Example:
        >>> weights, bias = fit_linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2)
        >>> (torch.tensor([[-2.0], [2.0]]) @ weights + bias).argmax(1).tolist()
        [0, 1]
    """
    x = features.detach()
    weights = torch.zeros(x.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x @ weights + bias, labels) + weights.square().sum() / (2 * len(x))
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), bias.detach()


# --- words ------------------------------------------------------------------------------------------------------------


@lru_cache(100_000)
def plain_word(text: str) -> str:
    """A word as the table counts it: without case, and without marks at its ends where anything else is left.

    Example:
        >>> plain_word('"Great!'), plain_word("..."), plain_word("don't")
        ('great', '...', "don't")
    """
    folded = text.casefold()
    return EDGES.sub("", folded) or folded


def _cut(sentence: str) -> str:
    return sentence[:LONGEST_WORD]


@dataclass
class _Counts:
    """Of the documents of one predicted label: in how many a word stands, its weight there, where it decides."""

    documents: int = 0
    there: Counter[str] = field(default_factory=Counter)
    decides: Counter[str] = field(default_factory=Counter)
    weight: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    evidence: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class WordTable:
    """Which words carry the attention, document after document.

    Example:
        >>> table = WordTable()
        >>> table.update("good", ["a", "fine", "film"], np.array([0.1, 0.8, 0.1]), np.array([0.0, 1.6, 0.0]))
        >>> table.rows(["bad", "good"])[0]
        {'label': 'good', 'word': 'fine', 'documents': 1, 'weight': 0.8, 'evidence': 2.0, 'decides': 1.0}
    """

    def __init__(self) -> None:
        self._counts: defaultdict[str, _Counts] = defaultdict(_Counts)
        self._top: Counter[str] = Counter()
        self._positions: Counter[int] = Counter()
        self._lengths: list[int] = []
        self._mass = 0.0

    def update(self, label: str, words: Sequence[str], weights: Numbers, together: Numbers) -> None:
        """Adds a document; one without a word is left out.

        Args:
            label: the predicted one.
            words: u words, in order.
            weights: (u,) of each word.
            together: (u,) weight times evidence.
        """
        if not words:
            return
        counts = self._counts[label]
        counts.documents += 1
        total: defaultdict[str, float] = defaultdict(float)
        for name, weight, evidence in zip(words, weights.tolist(), together.tolist(), strict=True):
            total[name] += weight
            counts.evidence[name] += evidence
        for name, weight in total.items():
            counts.there[name] += 1
            counts.weight[name] += weight
            if weight > 0.5:
                counts.decides[name] += 1
        at = int(weights.argmax())
        self._top[max(total, key=total.__getitem__)] += 1
        self._mass += max(total.values())
        # Counted from the end as well: always the last word is as suspicious as always the first.
        self._positions.update({at, at - len(words)})
        self._lengths.append(len(words))

    def selection(self) -> dict[str, Any] | None:
        """How concentrated the heaviest words are over the documents; None without one.

        ``word_share`` is the share of documents whose heaviest word is ``word``, ``position_share`` that of the most
        frequent position of it (negative from the end), ``mass`` the mean weight of the heaviest word.
        """
        n = len(self._lengths)
        if not n:
            return None
        (word, most), (position, there) = self._top.most_common(1)[0], self._positions.most_common(1)[0]
        decides: Counter[str] = Counter()
        for counts in self._counts.values():
            decides.update(counts.decides)
        return {
            "documents": n,
            "words": sorted(self._lengths)[n // 2],
            "mass": self._mass / n,
            "word": word,
            "word_share": most / n,
            "position": position,
            "position_share": there / n,
            "deciding": [{"word": w, "share": k / n} for w, k in decides.most_common(5)],
        }

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The heaviest words of each predicted label, of the most frequent ones where there are many."""
        labels = sorted((name for name in names if name in self._counts), key=lambda k: -self._counts[k].documents)
        kept = [name for name in names if name in labels[:LABELS]]
        return [row for label in kept for row in self._rows(label, self._counts[label])]

    @staticmethod
    def _rows(label: str, counts: _Counts) -> Iterator[dict[str, Any]]:
        for word in sorted(counts.weight, key=lambda w: (-counts.weight[w], w))[:WORDS_A_LABEL]:
            weight = counts.weight[word]
            yield {
                "label": label,
                "word": word,
                "documents": counts.there[word],
                "weight": weight / counts.documents,
                "evidence": counts.evidence[word] / weight if weight > 0 else 0.0,
                "decides": counts.decides[word] / counts.documents,
            }


def _classes(names: list[str], train: Split, val: Measured) -> list[dict[str, Any]]:
    assert train.labels is not None
    confusion = val.confusion(len(names))
    trained = torch.bincount(train.labels, minlength=len(names))
    return [
        {
            "label": name,
            "train": int(trained[k]),
            "val": int(confusion[k].sum()),
            "recall": float(confusion[k, k] / confusion[k].sum()) if confusion[k].sum() else None,
        }
        for k, name in enumerate(names)
    ]
