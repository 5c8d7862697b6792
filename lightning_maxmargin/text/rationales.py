"""Weights of words against what people marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_maxmargin.metrics import IouF1, RationaleAUPRC, RPrecision, TokenF1
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.readings import word_weights
from lightning_maxmargin.text.units import marked

METRICS = {"auprc": RationaleAUPRC, "r_precision": RPrecision, "token_f1": TokenF1, "iou_f1": IouF1}


class WordScores(NamedTuple):
    """Words of documents with marked spans, padded."""

    scores: Tensor  # (m, w) float64
    marked: Tensor  # (m, w) bool
    mask: Tensor  # (m, w) bool


def plausibility_metrics() -> MetricCollection:
    """All of agreement with people, under their keys' last names."""
    return MetricCollection({name: metric() for name, metric in METRICS.items()})


def word_scores(split: Split, texts: Sequence[int], weights: Sequence[Any]) -> WordScores | None:
    """Scores and marks of the words (or units, where these are no word pieces) of marked documents; None without one.

    Args:
        split: of the documents.
        texts: their numbers in it.
        weights: (u,) of each document's units.
    """
    rationales = split.documents.rationales
    if rationales is None:
        return None
    scores, marks = [], []
    for i, weight in zip(texts, weights, strict=True):
        spans = split.unit_spans(i)
        rationale = rationales[i]
        if not rationale:
            continue
        if split.units == "pieces":
            spans, _, weight = word_weights(split.documents.texts[i], spans, weight)
        scores.append(torch.as_tensor(weight, dtype=torch.float64))
        marks.append(torch.tensor(marked(spans, rationale, split.documents.texts[i]), dtype=torch.bool))
    if not scores:
        return None
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones(len(x), dtype=torch.bool) for x in marks], batch_first=True)
    return WordScores(pad(scores, batch_first=True), pad(marks, batch_first=True), mask)
