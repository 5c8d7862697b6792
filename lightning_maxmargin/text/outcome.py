"""How right a selector is on labelled documents, and what lead, entropy and probability told beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.special import entr

from lightning_maxmargin.metrics.rationale import rationale_auprc
from lightning_maxmargin.text.batches import Batch, Split
from lightning_maxmargin.text.rationales import word_scores

Numbers = npt.NDArray[np.float64]


class Answers(NamedTuple):
    """What a model says of b documents with u units, on the CPU.

    Attributes:
        predicted: (b,) number of the label.
        probability: (b,) of it.
        weights: (b, u), of the predicted label's selector; 0 off the units.
        evidence: (b, u), what each unit says for the predicted label, less the mean over labels.
        lead: (b,) (best score - second) / norm; NaN with fewer than two units.
        entropy: (b,) of the weights, in nats.
        mask: (b, u) bool.
    """

    predicted: Tensor
    probability: Tensor
    weights: Tensor
    evidence: Tensor
    lead: Tensor
    entropy: Tensor
    mask: Tensor


def answers(output: Mapping[str, Any], mask: Tensor, norms: Sequence[float]) -> Answers:
    """The answers in a model's output.

    Args:
        output: logits (b, K), selection, evidence and scores as of the model.
        mask: (b, u) bool, true on units: see :func:`unit_mask`.
        norms: of each selector.
    """
    logits, weights, evidence, scores, mask = (
        x.detach().cpu() for x in (*(output[k] for k in ("logits", "selection", "evidence", "scores")), mask)
    )
    rows, predicted = torch.arange(len(logits)), logits.argmax(1)
    norm = torch.tensor(norms, dtype=torch.float64)
    if weights.ndim == 3:
        weights, scores, norm = weights[rows, predicted], scores[rows, predicted], norm[predicted]
    best = scores.double().masked_fill(~mask, -torch.inf).topk(min(2, scores.shape[1]), 1).values
    lead = torch.full((len(logits),), torch.nan, dtype=torch.float64)
    if best.shape[1] == 2:
        found = (best[:, 0] - best[:, 1]) / norm
        lead = found.where((mask.sum(1) > 1) & (norm > 0), lead)
    probability = logits.double().softmax(1).max(1).values
    of_predicted = evidence[rows, :, predicted] - evidence.mean(-1)
    return Answers(predicted, probability, weights, of_predicted, lead, entr(weights.double()).sum(1), mask)


def unit_mask(batch: Batch) -> Tensor:
    """(b, u) bool, true on the units of a batch."""
    if "unit_ids" not in batch:
        return batch["mask"]
    counts = batch["unit_ids"].max(1, keepdim=True).values + 1
    return torch.arange(max(int(counts.max()), 1), device=counts.device) < counts


class Outcomes:
    """Answers and labels of documents, batch after batch: a row a document, without its text."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def update(self, split: Split, texts: Sequence[int], found: Answers) -> None:
        """Adds documents ``texts`` of a labelled split."""
        assert split.labels is not None
        auprc = torch.full((len(texts),), torch.nan, dtype=torch.float64)
        weights = [row[inside].double().numpy() for row, inside in zip(found.weights, found.mask, strict=True)]
        scores = word_scores(split, texts, weights)
        if scores is not None:
            rationales = split.documents.rationales
            marked = torch.tensor([bool(rationales and rationales[i]) for i in texts])
            auprc[marked] = rationale_auprc(*scores)
        labels = split.labels[torch.as_tensor(texts, dtype=torch.int64)].double()
        columns = (labels, found.predicted.double(), found.probability, found.lead, found.entropy, auprc)
        self.rows += map(tuple, torch.stack(columns, 1).tolist())

    def compute(self, names: Sequence[str], split: str) -> dict[str, Any]:
        """What ``test.json`` holds: confusion by label and prediction, and means over thirds of the documents.

        ``thirds`` is the mean of what each measure foretells over the documents where it is lowest, in between and
        highest: the share right by probability and by lead, agreement with marked words (AUPRC) by entropy.
        """
        table = np.array(self.rows, np.float64).reshape(-1, 6)
        label, predicted, probability, lead, entropy, auprc = table.T
        n = len(names)
        codes = (label * n + predicted).astype(np.int64)
        right = (label == predicted).astype(np.float64)
        return {
            "split": split,
            "labels": list(names),
            "documents": len(table),
            "confusion": np.bincount(codes, minlength=n * n).reshape(n, n).tolist(),
            "thirds": {
                "right by probability": thirds(probability, right),
                "right by lead": thirds(lead, right),
                "auprc by entropy": thirds(entropy, auprc),
            },
        }


def thirds(measure: Numbers, outcome: Numbers, least: int = 15) -> list[float] | None:
    """Mean outcome where the measure is lowest, in between and highest; None with fewer than ``least`` documents.

    Example:
        >>> thirds(np.arange(15.0), np.arange(15.0))
        [2.0, 7.0, 12.0]
    """
    known = np.isfinite(measure) & np.isfinite(outcome)
    if known.sum() < least:
        return None
    order = np.argsort(measure[known], kind="stable")
    return [float(part.mean()) for part in np.array_split(outcome[known][order], 3)]
