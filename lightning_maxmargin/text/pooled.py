"""What a model that pools by attention makes of documents, word by word; and of documents that lost some words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.metrics.faithfulness import Probability, head_probability
from lightning_maxmargin.text.bars import progress
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.hidden import batches_by_length
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification

PIECES_AT_ONCE = 2_048

#: s, the attention; s |v'x|, how much a word moved the logit; s y v'x, how much towards the predicted label.
Kind = Literal["s", "s|v'x|", "s y v'x"]


@dataclass(frozen=True)
class Pooled:
    """One document of u words, on the CPU in float64.

    Attributes:
        logits: (K,).
        scores: (u,), the logarithm of the words' attention up to a constant; (K, u) of one selector a class.
        evidence: (u, K), so that the logits are the evidence in the mean over the attention.
    """

    logits: Tensor
    scores: Tensor
    evidence: Tensor

    @property
    def predicted(self) -> int:
        """The label."""
        return int(self.logits.argmax())

    def rationale(self, kind: Kind = "s") -> Tensor:
        """(u,), a score of each word for the predicted label.

        Example:
            >>> document = Pooled(torch.tensor([1.0, -1.0]), torch.zeros(2), torch.tensor([[3.0, -3.0], [-1.0, 1.0]]))
            >>> [document.rationale(kind).tolist() for kind in ("s", "s|v'x|", "s y v'x")]
            [[0.5, 0.5], [1.5, 0.5], [1.5, -0.5]]
        """
        y = self.predicted
        s = (self.scores if self.scores.ndim == 1 else self.scores[y]).softmax(0)
        if kind == "s":
            return s
        towards = s * (self.evidence[:, y] - self.evidence.mean(1))
        return towards.abs() if kind == "s|v'x|" else towards

    def head(self) -> Probability:
        """The probability of the predicted label at the head, of any sets of words kept."""
        if self.scores.ndim == 1:
            return head_probability(self.scores, self.evidence)

        def probability(keep: Tensor) -> Tensor:
            parts = [masked_softmax(a.expand(keep.shape), keep) @ e for a, e in zip(self.scores, self.evidence.T)]  # noqa: B905
            return torch.stack(parts, -1).softmax(-1)[:, self.predicted]

        return probability


class PoolingModel:
    """A selector, or mean pooling as the selector with p = 0, on documents.

    Args:
        model: is put into evaluation mode, and on the GPU where there is one.
        split: the documents, in words or sentences.
    """

    def __init__(self, model: MaxMarginForSequenceClassification, split: Split) -> None:
        device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.split = model.eval().to(device), split

    @cached_property
    def documents(self) -> list[Pooled]:
        """All documents as the model reads them."""
        found: dict[int, Pooled] = {}
        pieces = self.split.pieces
        bar = progress(total=len(self.split), desc="reading", unit="documents")
        with bar, torch.inference_mode():
            for part in batches_by_length(pieces, range(len(self.split)), PIECES_AT_ONCE):
                found |= self._read(part)
                bar.update(len(part))
        return [found[i] for i in range(len(self.split))]

    def _read(self, texts: list[int]) -> dict[int, Pooled]:
        batch = self.split[torch.tensor(texts)]
        output = self.run(batch["input_ids"], batch["attention_mask"], batch["unit_ids"])
        rows = {}
        for row, i in enumerate(texts):
            logits, scores, evidence = (output[name][row].double() for name in ("logits", "scores", "evidence"))
            n = len(self.split.unit_spans(i))
            if self.model.config.units == "pieces":
                scores, evidence = by_word(scores, evidence, batch["unit_ids"][row], n)
            rows[i] = Pooled(logits, scores[..., :n], evidence[:n])
        return rows

    def run(self, ids: Tensor, attention: Tensor, unit_ids: Tensor) -> dict[str, Tensor]:
        """The model's output for pieces (b, t), on the CPU."""
        given = {"input_ids": ids, "attention_mask": attention}
        if self.model.config.units != "pieces":
            given["unit_ids"] = unit_ids
        output = self.model(**{name: x.to(self.model.device) for name, x in given.items()})
        return {name: x.cpu() for name, x in output.items()}

    @property
    def predicted(self) -> list[int]:
        """The label of each document."""
        return [document.predicted for document in self.documents]

    def head(self, i: int) -> Probability | None:
        """The probability of document i's predicted label at the head."""
        return self.documents[i].head()

    def input(self, i: int) -> Probability:
        """The same of the document encoded again without the words that are not kept."""
        return Reencoded(self, i)


class Reencoded:
    """p_y of a document of u words that is encoded without some of them: (m, u) bool to (m,). Each set is asked once.

    Args:
        pooling: the model and its documents.
        i: the document.
    """

    def __init__(self, pooling: PoolingModel, i: int) -> None:
        at = pooling.split.pieces.of(i)
        self.pooling, self.y = pooling, pooling.documents[i].predicted
        self.ids = torch.from_numpy(pooling.split.pieces.ids[at])
        self.words = pooling.split.unit_ids[at]
        self.known: dict[bytes, float] = {}

    def __call__(self, keep: Tensor) -> Tensor:
        names = [row.numpy().tobytes() for row in keep]
        new = [k for k, name in enumerate(names) if name not in self.known]
        new = list({names[k]: k for k in new}.values())
        # A special token has the number -1: it reads the column behind the last word, and stays.
        pieces = torch.cat([keep[new], keep.new_ones(len(new), 1)], 1)[:, self.words]
        order = sorted(range(len(new)), key=lambda k: int(pieces[k].sum()))
        for part in _parts(order, [int(pieces[k].sum()) for k in order]):
            for k, p in zip(part, self._probabilities(pieces[part]), strict=True):
                self.known[names[new[k]]] = p
        return torch.tensor([self.known[name] for name in names], dtype=torch.float64)

    @torch.inference_mode()
    def _probabilities(self, pieces: Tensor) -> list[float]:
        def padded(values: Tensor, padding: int) -> Tensor:
            rows = [values[row] for row in pieces]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)

        attention = padded(torch.ones_like(self.ids), 0)
        output = self.pooling.run(padded(self.ids, self.pooling.split.padding), attention, padded(self.words, -1))
        return output["logits"].double().softmax(1)[:, self.y].tolist()


def _parts(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Sets of like size together, ascending."""
    parts: list[list[int]] = []
    for k, length in zip(order, lengths, strict=True):
        if not parts or (len(parts[-1]) + 1) * length > PIECES_AT_ONCE:
            parts.append([])
        parts[-1].append(k)
    return parts


def by_word(scores: Tensor, evidence: Tensor, words: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Scores and evidence of n words whose attention and logits are exactly those of their pieces together.

    A word's score is the logarithm of the sum of its pieces' exp(score), and its evidence the mean of theirs in the
    proportion of their attention; so to leave the word out of the softmax is to leave out its pieces.

    Args:
        scores: (t,) or (K, t), before the softmax.
        evidence: (t, K).
        words: (t,) int64, -1 for pieces that are never selected.
        n: words; each has a piece.

    Returns:
        (n,) or (K, n), and (n, K).

    Example:
        >>> a, e = by_word(torch.zeros(3), torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, -1]), 1)
        >>> a.exp().tolist(), e.tolist()
        ([2.0], [[2.0]])
    """
    words = words[: scores.shape[-1]]
    inside = words[None] == torch.arange(n)[:, None]
    each = scores[..., None, :].masked_fill(~inside, -torch.inf)
    share = each.softmax(-1)
    pooled = share @ evidence if scores.ndim == 1 else torch.einsum("knt,tk->nk", share, evidence)
    return each.logsumexp(-1), pooled
