"""Rows on an accelerator: products with all of them there, the rows that matter in float64 on the CPU.

A product in the keys' own dtype tells every margin up to a bound on its rounding. Rows that may be missed, tight or the
smallest within that bound are fetched and computed anew, so that what is reported is as sharp as on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.checks import check_mask, check_queries, check_rhs, check_selected
from lightning_maxmargin.svm.limits import Mask
from lightning_maxmargin.svm.rows import LARGEST, MERGE, SMALLEST, Array, Index, RowProblem
from lightning_maxmargin.svm.sources import (
    NUMBERS,
    MappedSource,
    PairShard,
    ShardCertificate,
    ShardSummary,
    Source,
    merge,
)

# Numbers of the keys in a step on the device: 256 MB of float64.
NUMBERS_ON_DEVICE = 32_000_000
# Devices whose keys are read by the CPU: the second has no float64.
ON_THE_CPU = ("cpu", "mps")
# Sizes whose products with a unit vector float32 holds with all its digits.
SMALLEST_SINGLE, LARGEST_SINGLE = 2.0**-90, 2.0**90


def shard_on_device(
    source: Source,
    selected: Tensor,
    queries: Tensor | None,
    mask: Tensor | None,
    rhs: Tensor | None,
    tokens: int,
    sequences: Index,
) -> DeviceShard | None:
    """The shard of keys on an accelerator, arguments as of ``BlockShards``; None where they are on the CPU or mapped.

    Also None on devices without float64, whose keys are copied block by block.

    Raises: InputError where shapes, indices or numbers are wrong.
    """
    keys = source.array if isinstance(source, MappedSource) else None
    if not isinstance(keys, Tensor) or keys.device.type in ON_THE_CPU:
        return None
    live = check_mask(mask, keys)  # type: ignore[arg-type]
    alpha, z, b = check_selected(selected, live), check_queries(queries, len(keys)), check_rhs(rhs, live)
    device = keys.device
    alive, at = torch.from_numpy(live.copy()).to(device), torch.from_numpy(alpha).to(device)
    key_norms, row_norms = _norms(keys, at, alive)
    _check_sizes(keys, key_norms, alive)
    rows = torch.arange(len(keys), device=device)
    alive[rows, at] = False
    equal = alive & (row_norms <= MERGE * torch.maximum(key_norms, key_norms[rows, at][:, None]))
    alive &= ~equal
    asked = alive.double() if b is None else torch.from_numpy(b).to(device) * alive
    lengths = None if z is None else torch.from_numpy(np.linalg.norm(z, axis=1)).to(device)
    on_device = None if z is None else torch.from_numpy(z).to(device)
    return DeviceShard(
        keys, at, alive, asked, key_norms, row_norms, z, on_device, lengths, int(equal.sum()), tokens, sequences,
        dtype=_product_dtype(keys, key_norms, lengths), padded=not live.all(),
    )  # fmt: skip


@dataclass(frozen=True)
class DeviceShard:
    """Some of the sequences, on an accelerator; a ``Shard``, made by :func:`shard_on_device`.

    keys (m, T, d) in their own dtype; the others in float64: rhs, key_norms, row_norms (m, T) without the queries'
    lengths (m,); queries (m, dq) also on the CPU, where the rows that matter are certified. dtype: of the products;
    padded: whether there are tokens that do not count.
    """

    keys: Tensor
    selected: Tensor
    alive: Tensor
    rhs: Tensor
    key_norms: Tensor
    row_norms: Tensor
    host_queries: Array | None
    queries: Tensor | None
    lengths: Tensor | None
    merged: int
    tokens: int
    sequences: Index
    dtype: torch.dtype
    padded: bool
    start: int = 0

    def live(self) -> Mask:
        """Which rows (m, T) count."""
        return np.asarray(self.alive.cpu().numpy())

    def with_rhs(self, by_sequence: Array) -> DeviceShard:
        """The same rows with one right-hand side (m,) for each sequence."""
        b = torch.from_numpy(np.ascontiguousarray(by_sequence)).to(self.keys.device)
        return replace(self, rhs=b[:, None] * self.alive)

    def mean_row(self) -> Array:
        """The sum over sequences of their mean row, of the direction's shape."""
        count = self.alive.sum(1)
        weight = self.alive.double() / count.clamp_min(1)[:, None]
        means = []
        for at, part in self._parts():
            here = slice(at, at + len(part))
            rows = torch.arange(len(part), device=part.device)
            chosen = part[rows, self.selected[here]].double() * (count[here] > 0)[:, None]
            means.append(chosen - (weight[here].to(part.dtype)[:, None, :] @ part)[:, 0].double())
        mean = torch.cat(means)
        return np.asarray((mean.sum(0) if self.queries is None else mean.T @ self.queries).cpu().numpy())

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> ShardSummary:
        """As ``LocalShard.worst_rows``: the rows it reports and the smallest one are computed in float64."""
        return self._worst_rows(direction, *self._margins(direction), k, everything)

    def evaluate(self, direction: Array, k: int) -> tuple[ShardSummary, ShardCertificate]:
        """``worst_rows`` and ``final`` of one product with the keys."""
        margins, error = self._margins(direction)
        return self._worst_rows(direction, margins, error, k), self._final(direction, margins, error)

    def _worst_rows(
        self, direction: Array, margins: Tensor, error: Tensor, k: int, everything: bool = False
    ) -> ShardSummary:
        short = margins - self.rhs
        least, t = short.topk(min(4, short.shape[1]), dim=1, largest=False)
        wanted = torch.zeros_like(self.alive)
        missed = torch.isfinite(least) if everything else least < error.gather(1, t)
        wanted.scatter_(1, t, missed)
        wanted &= self.alive
        if int(wanted.sum()) > 2 * k:
            depth = (short / self._sizes().clamp_min(1e-300)).masked_fill(~wanted, torch.inf).flatten()
            wanted = torch.zeros_like(wanted.flatten()).index_fill(0, depth.topk(2 * k, largest=False).indices, True)
            wanted = wanted.view_as(self.alive)
        rows = list(self._fetched(wanted | self._smallest(margins, error, direction)))
        return merge((part.worst_rows(direction, k, everything) for part in rows), k) if rows else self._no_rows()

    def final(self, direction: Array) -> ShardCertificate:
        """As ``LocalShard.final``: rows that may be tight, missed or the smallest are computed in float64."""
        return self._final(direction, *self._margins(direction))

    def _final(self, direction: Array, margins: Tensor, error: Tensor) -> ShardCertificate:
        live, on = bool(self.alive.any()), self.rhs > 0
        found, some = ShardCertificate.joined([]), bool(on.any())
        if not direction.any():
            return replace(found, smallest=0.0 if some else np.inf, merged=self.merged, live=live)
        # A row with right-hand side 0 that is missed is one that may be tight.
        size = self._sizes() * float(np.linalg.norm(direction))
        wanted = self.alive & ~on & (margins <= TOLERANCES.tight * size + error)
        if some:
            least = ((margins + error) / self.rhs)[on].min()
            # Where the smallest may be 0 or less none is tight; one row tells it.
            within = (1 + TOLERANCES.tight) * least.clamp_min(0.0) * self.rhs
            wanted |= on & (margins - error <= within) & bool(least > 0)
        parts = self._fetched(wanted | self._smallest(margins, error, direction))
        found = ShardCertificate.joined(part.final(direction) for part in parts)
        return replace(found, merged=self.merged, live=live)

    def _margins(self, direction: Array) -> tuple[Tensor, Tensor]:
        """All margins (m, T), inf where no row is live, and what their products may have lost."""
        length = float(np.linalg.norm(direction))
        unit = torch.from_numpy(direction / length if length > 0 else direction).to(self.keys.device)
        p = unit if self.queries is None else self.queries @ unit.T
        scores = []
        for at, part in self._parts():
            q = p.to(part.dtype)
            # Elementwise: what a matrix product rounds to depends on a setting of the whole process.
            scores.append((part * (q if q.ndim == 1 else q[at : at + len(part), None])).sum(2).double())
        found = torch.cat(scores)
        rows = torch.arange(len(found), device=found.device)
        margins = (found[rows, self.selected][:, None] - found) * length
        terms = self.keys.shape[2] + (0 if self.queries is None else self.queries.shape[1])
        sizes = self.key_norms + self.key_norms[rows, self.selected][:, None]
        sizes = sizes if self.lengths is None else sizes * self.lengths[:, None]
        error = 0.5 * torch.finfo(self.dtype).eps * (terms + 6) * length * sizes
        return margins.masked_fill(~self.alive, torch.inf), error

    def _parts(self) -> Iterator[tuple[int, Tensor]]:
        """(first sequence, keys) in the dtype of the products, a step at a time, zeros on padding."""
        for at, part in _steps(self.keys):
            if not self.padded:
                yield at, part.to(self.dtype)
                continue
            real = self.alive[at : at + len(part)].scatter(1, self.selected[at : at + len(part), None], True)
            yield at, part.to(self.dtype).masked_fill(~real[:, :, None], 0)

    def _sizes(self) -> Tensor:
        return self.row_norms if self.lengths is None else self.row_norms * self.lengths[:, None]

    def _smallest(self, margins: Tensor, error: Tensor, direction: Array) -> Tensor:
        """Which rows may have the smallest margin over their right-hand side; any one where all margins are 0."""
        on = self.rhs > 0
        if not bool(on.any()):
            return on
        if not direction.any():
            first = torch.zeros_like(on.flatten())
            first[on.flatten().int().argmax()] = True
            return first.view_as(on)
        least = ((margins + error) / self.rhs)[on].min()
        return on & (margins - error <= least * self.rhs)

    def _fetched(self, wanted: Tensor) -> Iterator[PairShard]:
        """The wanted rows on the CPU, a block at a time."""
        T = self.keys.shape[1]
        for ids in wanted.flatten().nonzero()[:, 0].split(max(1, NUMBERS // (2 * self.keys.shape[2]))):
            if len(ids):
                yield self._pairs(ids, ids // T, ids % T)

    def _pairs(self, ids: Tensor, i: Tensor, t: Tensor) -> PairShard:
        pairs = torch.stack([self.keys[i, self.selected[i]], self.keys[i, t]], 1).cpu().double().numpy()
        b, host = self.rhs.flatten()[ids].cpu().numpy(), i.cpu().numpy()
        m = len(b)
        live = np.column_stack([np.zeros(m, bool), np.ones(m, bool)])
        z = None if self.host_queries is None else self.host_queries[host]
        asked = np.column_stack([np.zeros(m), b])
        problem = RowProblem._build(pairs, np.zeros(m, np.int64), z, asked, live, merge=False)
        return PairShard(problem, 0, self.tokens, self.sequences[host] * self.tokens + t.cpu().numpy())

    def _no_rows(self) -> ShardSummary:
        nothing = np.zeros(0)
        z = None if self.host_queries is None else self.host_queries[:0]
        none = np.zeros(0, np.int64)
        return ShardSummary(np.zeros((0, self.keys.shape[2])), z, nothing, nothing, none, np.inf, np.zeros(0, bool))


def _steps(keys: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = max(1, NUMBERS_ON_DEVICE // (keys.shape[1] * keys.shape[2]))
    for at in range(0, len(keys), step):
        yield at, keys[at : at + step]


def _product_dtype(keys: Tensor, key_norms: Tensor, lengths: Tensor | None) -> torch.dtype:
    """float32 for keys that are no longer, unless sizes need float64."""
    sizes = key_norms.flatten() if lengths is None else torch.cat([key_norms.flatten(), lengths])
    plain = ((sizes > SMALLEST_SINGLE) & (sizes < LARGEST_SINGLE)) | (sizes == 0)
    return torch.float32 if keys.dtype != torch.float64 and bool(plain.all()) else torch.float64


def _norms(keys: Tensor, selected: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """||k_it|| and ||k_i,alpha - k_it|| in float64, (m, T), 0 on padding."""
    sizes, differences = [], []
    for at, part in _steps(keys):
        here = slice(at, at + len(part))
        long = part.double().masked_fill(~alive[here, :, None], 0)
        chosen = long[torch.arange(len(part), device=keys.device), selected[here]][:, None]
        sizes.append(long.norm(dim=2))
        differences.append((chosen - long).norm(dim=2))
    return torch.cat(sizes), torch.cat(differences)


def _check_sizes(keys: Tensor, norms: Tensor, alive: Tensor) -> None:
    """Refuses NaN, Inf and sizes that float64 cannot square."""
    bad = (~(norms <= LARGEST) | ((norms < SMALLEST) & (norms > 0))) & alive
    if not bool(bad.any()):
        return
    i, t = (int(x) for x in bad.nonzero()[0])
    key = keys[i, t].cpu().double()
    if bool(key.isfinite().all()):
        raise InputError(f"keys at [{i}, {t}] have a size that float64 cannot square; rescale the keys")
    j = int((~key.isfinite()).nonzero()[0])
    raise InputError(f"keys hold {float(key[j])} at {[i, t, j]}: remove or replace NaN and Inf")
