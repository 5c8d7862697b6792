"""Documents as batches: hidden states of their pieces, the units that are selected, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_maxmargin.text.fields import Spans
from lightning_maxmargin.text.hidden import HiddenStates, padded_ids
from lightning_maxmargin.text.pretrained import Pieces
from lightning_maxmargin.text.records import Documents
from lightning_maxmargin.text.units import units_of

#: A batch by name: index (b,), labels (b,) where there are some, input_ids and attention_mask (b, t), mask (b, t) true
#: on pieces that may be selected, unit_ids (b, t) and unit_mask (b, u), true on units, unless pieces are the units, and
#: of a frozen encoder keys and values.
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Split:
    """Documents of one split, ready to be trained on or measured.

    Attributes:
        documents: as they were read.
        pieces: of their texts.
        units: what is selected: ``pieces``, ``words`` or ``sentences``.
        labels: (n,) int64, None where they are not known.
        hidden: of a frozen encoder, None where it is trained.
        key_layer: of ``hidden``.
        value_layer: of ``hidden``.
        special_ids: tokens of the vocabulary that are never selected.
        padding: the id that stands behind the end of a text.
    """

    documents: Documents
    pieces: Pieces
    units: str
    labels: Tensor | None
    hidden: HiddenStates | None
    key_layer: int
    value_layer: int
    special_ids: tuple[int, ...] = ()
    padding: int = 0

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, rows: Tensor) -> Batch:
        """The batch of these documents."""
        return self.batch(rows)

    def batch(self, rows: Tensor, states: bool = True) -> Batch:
        """The batch of these documents, with or without hidden states where there are some."""
        texts = rows.tolist()
        if not texts:
            return {name: x[:0] for name, x in self.batch(torch.zeros(1, dtype=torch.int64), states).items()}
        ids, attention = padded_ids(self.pieces, texts, self.padding)
        batch = {"index": rows, "input_ids": ids, "attention_mask": attention}
        batch["mask"] = self._padded([~self.special[self.pieces.of(i)] for i in texts])
        if self.units != "pieces":
            batch["unit_ids"] = self._padded([self.unit_ids[self.pieces.of(i)] for i in texts], -1)
            # Counted here, where it is free: on a device how many units there are would have to be waited for.
            counts = 1 + (batch["unit_ids"].amax(1) if batch["unit_ids"].numel() else torch.full((len(texts),), -1))
            batch["unit_mask"] = torch.arange(max(1, int(counts.max()))) < counts[:, None]
        if self.labels is not None:
            batch["labels"] = self.labels[rows]
        if self.hidden is not None and states:
            batch["keys"] = self._padded(self.hidden.rows(self.key_layer, texts))
            batch["values"] = batch["keys"]
            if self.value_layer != self.key_layer:
                batch["values"] = self._padded(self.hidden.rows(self.value_layer, texts))
        return batch

    def with_labels(self, labels: Tensor) -> Split:
        """The same documents, labelled (n,) int64."""
        return replace(self, labels=labels)

    @staticmethod
    def _padded(rows: Sequence[Tensor], value: float = 0) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)

    @cached_property
    def special(self) -> Tensor:
        """(N,) bool: pieces that may not be selected, as the model itself says of their ids."""
        ids = torch.from_numpy(self.pieces.ids)
        return torch.from_numpy(self.pieces.special) | torch.isin(ids, torch.tensor(self.special_ids, dtype=ids.dtype))

    @cached_property
    def _units(self) -> list[tuple[list[int], Spans]]:
        """Unit of each piece and span of each unit, by document, where units are words or sentences."""
        found = []
        for i in range(len(self)):
            at = self.pieces.of(i)
            hidden = self.special[at].tolist()
            units = units_of(self.documents.texts[i], self.pieces.spans[at].tolist(), hidden, self.units)
            found.append((units.ids, units.spans))
        return found

    @cached_property
    def unit_ids(self) -> Tensor:
        """(N,) int64, the unit of each piece in its document, -1 for none."""
        ids = [torch.tensor(ids, dtype=torch.int64) for ids, _ in self._units]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *ids])

    def unit_spans(self, i: int) -> Spans:
        """Half-open character spans of document i's units."""
        if self.units != "pieces":
            return self._units[i][1]
        at = self.pieces.of(i)
        return list(map(tuple, self.pieces.spans[at][~self.special[at].numpy()].tolist()))

    def unit_count(self, i: int) -> int:
        """How many places a document's units take in a batch."""
        return (
            int(self.pieces.starts[i + 1] - self.pieces.starts[i]) if self.units == "pieces" else len(self._units[i][1])
        )

    @cached_property
    def without_states(self) -> WithoutStates:
        """The same documents for who reads their ids alone."""
        return WithoutStates(self)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many documents were cut, have nothing to select, or characters that could not be read."""
        starts = torch.from_numpy(self.pieces.starts)
        units = (~self.special).long().cumsum(0)
        ends = torch.cat([units.new_zeros(1), units])[starts]
        return {
            "truncated": int(self.pieces.truncated.sum()),
            "empty": int((ends.diff() == 0).sum()),
            "replaced": self.documents.replaced,
        }


@dataclass(frozen=True)
class WithoutStates:
    """Batches of a split for a trained encoder, which does not read the hidden states of the frozen one."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: Tensor) -> Batch:
        """The batch of these documents."""
        return self.split.batch(rows, states=False)
