"""Selectors and mean pooling side by side: columns that differ in labels, documents, decay, start, or keep p fixed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.columns import Answers, Packed, Recipe, Tokens, answers, fold_batches
from lightning_maxmargin.text.hidden import cached_hidden
from lightning_maxmargin.text.pretrained import PretrainedEncoder, special_ids
from lightning_maxmargin.text.rate import cooled
from lightning_maxmargin.text.records import Documents

#: Documents that are asked about at once.
AT_ONCE = 128


@dataclass(frozen=True)
class Selectors:
    """C selectors of one layer.

    Attributes:
        p: (C, d).
        v: (C, K', d), one head for two classes, else one a class.
    """

    p: Tensor
    v: Tensor


@dataclass(frozen=True)
class Training:
    """What C columns are trained on, and how they differ.

    Attributes:
        labels: (C, n) int64.
        inside: (C, n) bool, documents that a column is trained on.
        folds: (n,) int64: a batch has documents of all of them.
        decay: (C,), decoupled weight decay of p.
        moves: (C,) bool, whether p is trained.
    """

    labels: Tensor
    inside: Tensor
    folds: Tensor
    decay: Tensor
    moves: Tensor


class Units:
    """Scaled units of n documents at one layer, in memory."""

    def __init__(self, split: Split, layer: int, length: float) -> None:
        tokens = Tokens([split], length)
        self.tokens, self.mask = tokens.read(layer, tokens.locate(range(len(tokens))))
        counts = self.mask.sum(1)
        self.starts = counts.cumsum(0) - counts

    def __len__(self) -> int:
        return len(self.mask)

    def part(self, rows: Tensor) -> Units:
        """Some of the documents; their units are not copied."""
        found = copy(self)
        found.mask, found.starts = self.mask[rows], self.starts[rows]
        return found

    def __getitem__(self, rows: Tensor) -> Packed:
        """The units of these documents."""
        mask = self.mask[rows]
        mask = mask[:, : max(1, int(mask.sum(1).max()))]
        places = self.starts[rows][:, None] + torch.arange(mask.shape[1])
        return Packed(self.tokens[places[mask]], mask)


def encode(
    encoder: PretrainedEncoder,
    documents: Documents,
    layers: Sequence[int],
    cache_dir: str | Path | None,
    units: str = "pieces",
) -> Split:
    """The documents with their hidden states, from the cache where they are there."""
    pieces = encoder.pieces(documents.texts)
    hidden = cached_hidden(encoder, documents.texts, pieces, layers, cache_dir)
    special, padding = tuple(special_ids(encoder.tokenizer)), encoder.tokenizer.pad_token_id or 0
    return Split(documents, pieces, units, None, hidden, layers[0], layers[0], special, padding)


def train(
    units: Units,
    training: Training,
    start: Selectors,
    recipe: Recipe,
    seed: int,
    done: Callable[[float], None] = lambda _: None,
    keep: Collection[int] = (),
) -> dict[int, Selectors]:
    """Trains the columns by AdamW over the same batches; mean pooling is a column whose p stays zero.

    Args:
        units: of n documents.
        training: what each column is trained on.
        start: of the columns; not changed.
        recipe: of training; its ``attention_decay`` does not count, as each column has its own.
        seed: of the order of documents.
        done: takes the share that is done.
        keep: epochs after which the columns are wanted, the last one always; with a recipe of no ``cooldown``.
    """
    p, v = (x.clone().requires_grad_() for x in (start.p, start.v))
    optimizer = torch.optim.Adam([p, v], lr=recipe.lr)
    decay = torch.where(training.moves, training.decay, torch.zeros_like(training.decay))[:, None]
    steps = recipe.epochs * len(fold_batches(training.folds, recipe.batch_size, seed, 0))
    schedule = LambdaLR(optimizer, lambda step: cooled(step, steps, recipe.cooldown))
    found = {}
    for epoch in range(recipe.epochs):
        for rows in fold_batches(training.folds, recipe.batch_size, seed, epoch):
            optimizer.zero_grad()
            inside = training.inside[:, rows]
            logits = answers(units[rows], p, v).logits
            losses = cross_entropy(
                logits.flatten(0, 1), training.labels[:, rows].flatten(), reduction="none",
                label_smoothing=recipe.label_smoothing,
            )  # fmt: skip
            ((losses.view_as(inside) * inside).sum(1) / inside.sum(1).clamp_min(1)).sum().backward()
            assert p.grad is not None
            p.grad *= training.moves[:, None]
            with torch.no_grad():  # decoupled decay, as AdamW has it
                rate = optimizer.param_groups[0]["lr"]
                p *= 1 - rate * decay
                v *= 1 - rate * recipe.head_decay
            optimizer.step()
            schedule.step()
        if epoch + 1 in keep or epoch + 1 == recipe.epochs:
            found[epoch + 1] = Selectors(p.detach().clone(), v.detach().clone())
        done((epoch + 1) / recipe.epochs)
    return found


@torch.no_grad()
def ask(units: Units, selectors: Selectors) -> Iterator[tuple[Tensor, Tensor, Answers]]:
    """What all columns say of all documents, part by part: rows, mask (b, T) and answers."""
    for rows in torch.arange(len(units)).split(AT_ONCE):
        packed = units[rows]
        yield rows, packed.mask, answers(packed, selectors.p, selectors.v)


def predicted(units: Units, selectors: Selectors) -> Tensor:
    """(C, n) labels by all columns."""
    return torch.cat([found.logits.argmax(2) for _, _, found in ask(units, selectors)], 1)
