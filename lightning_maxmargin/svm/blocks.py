"""The shards of keys in blocks: each block checked once, and read again for each evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.doubles import Block, Room, is_narrow
from lightning_maxmargin.svm.rows import Index, RowProblem
from lightning_maxmargin.svm.single import Reported, SingleShard, single_shard
from lightning_maxmargin.svm.sources import ListedSource, LocalShard, MappedSource, Source

BlockShard = LocalShard | SingleShard
NO_KEYS = np.zeros((0, 0, 0))


class BlockShards:
    """Every block as a checked problem of its own; the other arguments hold all sequences of the source.

    A block may leave out padding that all of its sequences have. Called once for each evaluation, it reads the blocks
    anew. Of a source that never changes what was found in checking is kept: 4 bytes a token where float32 holds the
    keys, else 25; and the keys where they are in memory, or mapped, in float64.

    Args: tokens of the longest sequence anywhere; sequences (n,), their numbers where they do not begin at 0.
    """

    def __init__(
        self,
        source: Source,
        selected: Tensor,
        queries: Tensor | None,
        mask: Tensor | None,
        rhs: Tensor | None,
        tokens: int,
        sequences: Index | None = None,
    ) -> None:
        self.source, self.selected, self.tokens, self.sequences = source, selected, tokens, sequences
        self.rest = (queries, mask, rhs)
        self._kept: dict[int, BlockShard] = {}
        self._room = Room()

    def __call__(self) -> Iterator[BlockShard]:
        """The blocks one after the other.

        Raises: InputError where they and the arguments disagree, or hold wrong numbers.
        """
        n, seen, reported = len(self.selected), 0, Reported()
        for start, block in self.source.blocks():
            stop = start + len(block)
            if start != seen or stop > n:
                raise InputError(f"keys hold sequences {start} to {stop}, of {n} selected: give each one token")
            kept = self._kept.get(start)
            shard = self._checked(start, stop, block) if kept is None else self._with_keys(kept, block)
            yield replace(shard, reported=reported) if isinstance(shard, SingleShard) else shard
            seen = stop
        if seen != n:
            raise InputError(f"keys hold {seen} sequences and selected {n}: give one selected token each")

    def _checked(self, start: int, stop: int, block: Block) -> BlockShard:
        own, mask = np.shape(block)[1], self.rest[1]
        if own > self.tokens:
            raise InputError(f"block from sequence {start}: {own} tokens, and the longest sequence has {self.tokens}")
        if mask is not None and np.ndim(mask) == 2 and mask[start:stop, own:].any():
            raise InputError(f"block from sequence {start}: {own} tokens, but its mask has later ones")
        cut: list[Any] = [self.selected[start:stop], *(None if x is None else x[start:stop] for x in self.rest)]
        cut[2:] = [None if x is None else x[:, :own] if x.ndim == 2 else x for x in cut[2:]]
        place = start, self.tokens, None if self.sequences is None else self.sequences[start:stop]
        try:
            shard = (
                single_shard(self._room.singles(block), cut[0], cut[1], cut[2], cut[3], place)
                if is_narrow(block)
                else None
            )
            return self._in_doubles(block, cut, place) if shard is None else self._keep(shard)
        except InputError as error:
            raise InputError(f"block from sequence {start}: {error}") from error

    def _in_doubles(self, block: Block, cut: Sequence[Any], place: tuple[int, int, Index | None]) -> LocalShard:
        keys: Any = self._room.doubles(block)
        problem = RowProblem.attention(keys, *cut)
        if problem.extreme:
            raise InputError("sizes that float64 cannot square; rescale the keys")
        shard = LocalShard(problem, *place)
        if getattr(self.source, "never_changes", False) and problem.keys is keys:
            there = isinstance(self.source, MappedSource | ListedSource) and str(block.dtype).endswith("float64")
            self._kept[place[0]] = shard if there else replace(shard, problem=replace(problem, keys=NO_KEYS))
        return shard

    def _keep(self, shard: SingleShard) -> SingleShard:
        if getattr(self.source, "never_changes", False):
            self._kept[shard.start] = replace(shard, keys=NO_KEYS)
        return shard

    def _with_keys(self, shard: BlockShard, block: Block) -> BlockShard:
        """The shard with the keys of its block, until the next one is asked for."""
        if isinstance(shard, SingleShard):
            return replace(shard, keys=self._room.singles(block))
        if len(shard.problem.keys):
            return shard
        return replace(shard, problem=replace(shard.problem, keys=self._room.doubles(block)))
