"""What the model says of one document, in words: label, probability, and which words decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.text.fields import Spans
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.units import sum_by, word_spans

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Word:
    """A word (or sentence) of a document.

    Attributes:
        text: as it stands there.
        start: first character.
        end: after the last.
        weight: share of the attention, summed over its pieces.
        evidence: what it says for the predicted label, less the mean over labels; negative speaks against.
    """

    text: str
    start: int
    end: int
    weight: float
    evidence: float


@dataclass(frozen=True)
class Reading:
    """What the model says of a document.

    Attributes:
        label: the predicted one.
        probability: of it.
        probabilities: of all labels, by name.
        words: in the order of the text.
        lead: (best score - second) / ||p||, how stable the selection is; None with fewer than two units.
        entropy: of the attention in nats; a small one goes with words that people would mark.
        size: |f|, the largest logit less the second; None with one label.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    words: list[Word]
    lead: float | None
    entropy: float
    size: float | None = None

    def __str__(self) -> str:
        heaviest = sorted(self.words, key=lambda word: -word.weight)[:5]
        decided = ", ".join(f"{word.text} {word.weight:.2f}" for word in heaviest if word.weight >= 0.01)
        return f"{self.label} ({self.probability:.2f}): {decided}"

    def _repr_html_(self) -> str:
        from lightning_maxmargin.text.show import reading_html

        return reading_html(self)

    def as_json(self) -> dict[str, Any]:
        """For a line of JSON."""
        words = [
            {"word": w.text, "span": [w.start, w.end], "weight": round(w.weight, 6), "evidence": round(w.evidence, 6)}
            for w in self.words
        ]
        return {
            "label": self.label, "probability": self.probability, "probabilities": self.probabilities,
            "lead": self.lead, "entropy": self.entropy, "words": words,
        }  # fmt: skip


@dataclass(frozen=True)
class Units:
    """The model's numbers of one document's units, on the CPU.

    Attributes:
        logits: (K,).
        weight: (u,), of the predicted label's selector.
        evidence: (u, K).
        scores: (u,).
        norm: of the attention's weights.
    """

    logits: Tensor
    weight: Tensor
    evidence: Tensor
    scores: Tensor
    norm: float


def units_in(output: dict[str, Tensor], row: int, mask: Tensor, norms: Sequence[float]) -> Units:
    """Document ``row`` of an output, its units only.

    Args:
        output: logits (b, K), selection, evidence and scores as of the model.
        row: of the batch.
        mask: (u,) bool, true on the document's units.
        norms: of each selector.
    """
    logits = output["logits"][row].double()
    selection, scores = output["selection"][row], output["scores"][row]
    at = int(logits.argmax()) if selection.ndim == 2 else 0
    if selection.ndim == 2:
        selection, scores = selection[at], scores[at]
    return Units(
        logits, selection[mask].double(), output["evidence"][row][mask].double(), scores[mask].double(), norms[at]
    )


def selector_norms(model: MaxMarginForSequenceClassification) -> list[float]:
    """||p|| or ||W|| of each selector."""
    return [float(selector.direction.detach().norm()) for selector in model.parts]


def word_weights(text: str, spans: Spans, weight: Numbers) -> tuple[Spans, npt.NDArray[np.int64], Numbers]:
    """All words of the text, the word of each unit, and the weight of each word: the sum over its units.

    Words that were cut off have weight 0: nobody who marked them is told that they were seen.

    Args:
        text: the document.
        spans: of its units.
        weight: (u,) of its units.
    """
    words = word_spans(text)
    ids = np.searchsorted(words[:, 1], np.asarray(spans, np.int64).reshape(-1, 2)[:, 0], side="right")
    ids[ids == len(words)] = -1  # a piece of space behind the last word
    return list(map(tuple, words.tolist())), ids, _sums(ids, weight, len(words))


def _sums(ids: npt.NDArray[np.int64], numbers: Numbers, count: int) -> Numbers:
    return np.asarray(sum_by(torch.from_numpy(ids), torch.from_numpy(np.asarray(numbers, np.float64)), count))


def read(text: str, units: Units, spans: Spans, names: Sequence[str], by_word: bool) -> Reading:
    """The reading of a document.

    Args:
        text: the document.
        units: the model's numbers.
        spans: of its units.
        names: of the labels.
        by_word: whether units are word pieces, to be summed to words.
    """
    probabilities = units.logits.softmax(0)
    at = int(units.logits.argmax())
    evidence = (units.evidence[:, at] - units.evidence.mean(1)).numpy()
    weight = units.weight.numpy()
    if by_word:
        word_spans, ids, weight_of = word_weights(text, spans, weight)
        total = _sums(ids, weight * evidence, len(word_spans))
        evidence_of = np.divide(total, weight_of, out=np.zeros_like(total), where=weight_of > 0)
        spans, weight, evidence = word_spans, weight_of, evidence_of
    words = [
        Word(text[start:end], start, end, float(w), float(e))
        for (start, end), w, e in zip(spans, weight, evidence, strict=True)
    ]
    top = units.scores.topk(min(2, len(units.scores))).values
    lead = float(top[0] - top[1]) / units.norm if len(top) == 2 and units.norm > 0 else None
    return Reading(
        names[at],
        float(probabilities[at]),
        {name: float(p) for name, p in zip(names, probabilities, strict=True)},
        words,
        lead,
        float(torch.special.entr(units.weight).sum()),
        logit_lead(units.logits),
    )


def logit_lead(logits: Tensor) -> float | None:
    """|f|, the largest logit less the second; None with one label.

    Args:
        logits: (K,).

    Example:
        >>> logit_lead(torch.tensor([0.5, 3.0, 1.0])), logit_lead(torch.tensor([0.5]))
        (2.0, None)
    """
    top = logits.topk(min(2, len(logits))).values.tolist()
    return top[0] - top[1] if len(top) == 2 else None
