"""One pass of a selector over the sequences of this process, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector, select, take_token, without_copies
from lightning_maxmargin.core.ahead import by_thread
from lightning_maxmargin.core.attention import masked_softmax
from lightning_maxmargin.core.model import Output
from lightning_maxmargin.core.products import products
from lightning_maxmargin.probe.parts import Parts


class Seen(NamedTuple):
    """This process's sequences at one step.

    chosen (m, dv): the values of the selected tokens, or the pooled ones where the head alone is trained; queries
    (m, dq) or None; others (m, T): the tokens less copies of the selected ones, which the SVM merges as well; gamma
    (m, T): y_i v'x_it, None where labels are not -1 and 1 or v is 0.
    """

    output: Output
    selected: Tensor
    chosen: Tensor
    queries: Tensor | None
    others: Tensor
    gamma: Tensor | None


class ForwardPass:
    """Reads all that is measured of a model; tokens less copies are found again only where a selected one has changed.

    Args:
        parts: the sequences.
        train: as of :class:`~lightning_maxmargin.probe.selector.Probe`.
    """

    def __init__(self, parts: Parts, train: str) -> None:
        self._parts, self._train = parts, train
        # Selected tokens, and the tokens less copies of these.
        self._others: tuple[Tensor, Tensor] | None = None

    def run(self, model: TokenSelector, threads: int, rows: bool = True) -> Seen:
        """What is there of this model; copies of keys count where ``rows`` do."""
        outputs, chosen, queries, others, gamma, at = [], [], [], [], [], 0
        has_gamma = _has_gamma(model)
        for block, output, token_values in self._blocks(model, threads):
            alpha = select(output.scores, block.mask)
            outputs.append(output)
            if self._train == "head":
                chosen.append(torch.einsum("nt,ntd->nd", output.attention, block.values))
            else:
                chosen.append(take_token(block.values, alpha).double())
            z = model.queries(block)
            queries.append(None if z is None else z.clone())  # of a block whose place the next one takes
            others.append(self._without_copies(block, alpha, at) if rows else _real(block))
            if has_gamma:
                if token_values is None:
                    token_values = model.logits(block.values.flatten(0, 1)).view(block.values.shape[:2])
                gamma.append(block.labels[:, None] * token_values)
            at += len(block)
        joined = Output(*(torch.cat(columns) for columns in zip(*outputs, strict=True)))
        z = None if queries[0] is None else torch.cat([q for q in queries if q is not None])
        selected = select(joined.scores, self._parts.mask)
        kept = torch.cat(others)
        self._others = (selected, kept) if rows else None
        return Seen(joined, selected, torch.cat(chosen), z, kept, torch.cat(gamma) if gamma else None)

    def _blocks(self, model: TokenSelector, threads: int) -> Iterator[tuple[Sequences, Output, Tensor | None]]:
        """Blocks, what the model says of them, and v'x_it (m, T) where that is known along the way.

        Of many keys that are the values too, and are asked about by one prompt, two products are all that is needed:
        the blocks then are as they lie.
        """
        data = self._parts.data
        two = self._train != "head" and model.query == "shared" and model.linear and model.num_classes == 2
        if not two or self._parts.in_memory or data.values is not data.keys or data.keys.device.type != "cpu":
            for block in self._parts.blocks():
                yield block, model(block), None
            return
        directions = torch.stack([model.direction, model.head])

        def read(block: Sequences) -> tuple[Sequences, Tensor]:
            return block, products(block.keys, directions)

        blocks = self._parts.as_they_are()
        for block, both in by_thread(read, blocks, threads, threads) if threads > 1 else map(read, blocks):
            scores, token_values = both
            attention = masked_softmax(scores, block.mask)
            yield block, Output((attention * token_values).sum(1), attention, scores), token_values

    def _without_copies(self, block: Sequences, selected: Tensor, at: int) -> Tensor:
        """The tokens (m, T) of the sequences from ``at`` on less copies of the selected ones."""
        if self._others is not None and torch.equal(selected, self._others[0][at : at + len(block)]):
            return self._others[1][at : at + len(block)]
        data, real = self._parts.data, block.mask
        known = data.copies() if data.knows_copies else None
        if known is None or known.equal or known.near:
            keys = block.keys if block.keys.dtype == torch.float64 else block.keys.double()
            real = without_copies(keys, selected, block.mask)
        return _real(block) if real is None else real


def _has_gamma(model: TokenSelector) -> bool:
    return model.num_classes == 2 and (not model.linear or bool(model.head.any()))


def _real(block: Sequences) -> Tensor:
    """Which tokens (m, T) are no padding."""
    return torch.ones(block.keys.shape[:2], dtype=torch.bool) if block.mask is None else block.mask
