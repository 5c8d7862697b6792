"""Rationales of models measured: agreement with what people marked, and whether the model used what they rank first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.metrics import iou_f1, r_precision, rationale_auprc, token_f1
from lightning_maxmargin.metrics.aopc_bounds import Bounds, aopc_bounds
from lightning_maxmargin.metrics.faithfulness import Probability, aopc
from lightning_maxmargin.metrics.rationale import chosen_units, ranked
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.units import marked

Numbers = npt.NDArray[np.float64]
FAITHFULNESS = (
    "comprehensiveness/head", "sufficiency/head", "comprehensiveness/normalised", "sufficiency/normalised",
    "comprehensiveness/input", "sufficiency/input",
)  # fmt: skip


class Explained(Protocol):
    """A model on documents that can be asked about parts of their words."""

    @property
    def predicted(self) -> Sequence[int]:
        """The label of each document."""
        ...

    def head(self, i: int) -> Probability | None:
        """Of document i's predicted label, with words removed at the head; None where there is none."""
        ...

    def input(self, i: int) -> Probability:
        """With words removed from the text."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to score words.

    Attributes:
        name: of the row.
        model: name of the model that is explained.
        explains: the model.
        scores: (u,) by document; documents that are not in it are not measured.
    """

    name: str
    model: str
    explains: Explained
    scores: Mapping[int, Tensor]


class Agreement(NamedTuple):
    """Of one method's scores with marked words: per document, (m,), and IOU F1 over all of them."""

    auprc: Numbers
    r_precision: Numbers
    token_f1: Numbers
    iou_f1: float


def marks_of(split: Split) -> dict[int, Tensor]:
    """Which words people marked, (u,) bool, of the documents where some are marked and some are not."""
    found = {}
    for i, spans in enumerate(split.documents.rationales or ()):
        marks = torch.tensor(marked(split.unit_spans(i), spans or [], split.documents.texts[i]), dtype=torch.bool)
        if marks.any() and not marks.all():
            found[i] = marks
    return found


def agreement(scores: Mapping[int, Tensor], marks: Mapping[int, Tensor], share: float | None = None) -> Agreement:
    """Of the documents that have both.

    Args:
        scores: (u,) by document.
        marks: likewise.
        share: of the words that the hard rationale takes; as many as are marked where None.

    Example:
        >>> agreement({3: torch.tensor([0.9, 0.1])}, {3: torch.tensor([True, False])}).auprc.tolist()
        [1.0]
    """
    texts = [i for i in scores if i in marks]
    if not texts:
        nothing = np.zeros(0)
        return Agreement(nothing, nothing, nothing, np.nan)
    pad = torch.nn.utils.rnn.pad_sequence
    values, truth = (pad([x[i] for i in texts], batch_first=True) for x in (scores, marks))
    mask = pad([torch.ones_like(marks[i]) for i in texts], batch_first=True)
    return Agreement(
        rationale_auprc(values, truth, mask).numpy(),
        r_precision(values, truth, mask).numpy(),
        token_f1(values, truth, mask, share=share).numpy(),
        iou_f1(chosen_units(values, truth, mask, share=share), truth, mask),
    )


def faithfulness(methods: Sequence[Method], texts: Sequence[int], bins: Sequence[float]) -> list[dict[str, Numbers]]:
    """AOPC of each method on the model that it explains, (m,) of these documents by :data:`FAITHFULNESS`.

    At the head in closed form, at the input by encoding again what is left of the text. Normalised is at the head,
    between the least and the greatest AOPC that a beam search finds. NaN where a method has no head or no scores.

    Args:
        methods: those of one model share its re-encodings and bounds.
        texts: numbers of m documents.
        bins: shares of the words.
    """
    found = [{name: np.full(len(texts), np.nan) for name in FAITHFULNESS} for _ in methods]
    for place, i in enumerate(progress(texts, desc="faithfulness", unit="documents")):
        asked: dict[int, _Document] = {}
        for method, columns in zip(methods, found, strict=True):
            if i not in method.scores or not len(method.scores[i]):
                continue
            document = asked.setdefault(id(method.explains), _Document(method.explains, i, bins))
            order = ranked(method.scores[i][None])[0]
            for name, value in document.measured(order).items():
                columns[name][place] = value
    return found


class _Document:
    """One document of one model, asked about by several methods."""

    def __init__(self, model: Explained, i: int, bins: Sequence[float]) -> None:
        self.head, self.input, self.bins = model.head(i), model.input(i), bins
        self.bounds: dict[str, Bounds] = {}

    def measured(self, order: Tensor) -> dict[str, float]:
        """By :data:`FAITHFULNESS`, of an order of the words."""
        found: dict[str, float] = dict(_named(aopc(self.input, order, self.bins), "input"))
        if self.head is None:
            return found
        raw = _named(aopc(self.head, order, self.bins), "head")
        for (name, value), remove in zip(raw.items(), (True, False), strict=True):
            kind = name.partition("/")[0]
            if kind not in self.bounds:
                self.bounds[kind] = aopc_bounds(self.head, len(order), self.bins, remove=remove)
            lower, upper = self.bounds[kind]
            found[f"{kind}/normalised"] = (value - lower) / (upper - lower) if upper > lower else np.nan
        return found | raw


def _named(values: Any, where: str) -> dict[str, float]:
    return {f"{name}/{where}": float(value) for name, value in values._asdict().items()}
