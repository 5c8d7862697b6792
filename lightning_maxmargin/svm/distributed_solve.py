"""The limit problems of sequences on several processes: what each tells of its part, and what the first one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ranks import Ask
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.checks import check_selected
from lightning_maxmargin.svm.distributed import (
    AskedRows,
    AttentionPart,
    DistributedShard,
    Facts,
    LabelPart,
    Layout,
)
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.limits import Mask, relaxed_rhs, spare_margins
from lightning_maxmargin.svm.norms.registry import Norm, check_norm
from lightning_maxmargin.svm.one_joint import rate_coupled, selected_values
from lightning_maxmargin.svm.rows import Array
from lightning_maxmargin.svm.shards import GOAL, solve_shards_from, working_shard
from lightning_maxmargin.svm.solution import BatchSolution, Solution, only, undefined
from lightning_maxmargin.svm.sources import MappedSource, ShardSummary, Source, as_source, longest

#: Attention, head, and of the attention's right-hand sides one (n,) for each sequence and which rows (n, T) count.
Joint = tuple[Solution, Solution, Array | None, Mask | None]


def attention_of_ranks(
    shard: DistributedShard,
    selected: Tensor,
    queries: Tensor | None,
    mask: Tensor | None,
    rhs: Tensor | None,
    norm: Norm,
    whole: Callable[..., Solution | BatchSolution],
) -> Solution:
    """``solve_att_svm`` of the sequences of all processes; ``whole`` solves a small one in one piece."""

    def describe() -> Facts:
        facts = _attention_facts("solve_att_svm", shard, selected, queries, mask, rhs)
        facts.alike["the norm is"] = check_norm(norm, queries is not None)
        return facts

    layout = Layout.agreed(shard.ranks, describe)
    part = shard.part(lambda: _source(shard.keys), selected, queries, mask, rhs, layout)

    def lead(ask: Ask) -> Any:
        if shard.is_small(layout):
            return _packed(only(whole(**_pieces(layout, ask("piece")), norm=norm)))
        _refuse_other_norms(norm)
        rows = AskedRows(ask)
        first = _asked(part.working, layout, np.ones(layout.n)) if layout.known and rhs is None else None
        solution, part.working = solve_shards_from(lambda: [rows], layout.grid, GOAL, first)
        return _packed(solution)

    return _unpacked(shard.ranks.led(lead, lambda name, *args: getattr(part, name)(*args)))


def labels_of_ranks(
    shard: DistributedShard,
    labels: Tensor,
    num_classes: int | None,
    norm: Norm,
    whole: Callable[..., Solution | BatchSolution],
    warm: Solution | None = None,
) -> Solution:
    """``solve_label_svm`` of the samples of all processes; ``whole`` solves a small one in one piece, from ``warm``."""

    def describe() -> Facts:
        facts = _label_facts("solve_label_svm", shard.keys, shard.index, labels, num_classes)
        facts.alike["the norm is"] = norm
        return facts

    layout = Layout.agreed(shard.ranks, describe)
    part = LabelPart(shard.keys, labels, layout.classes, layout.sequences())

    def lead(ask: Ask) -> Any:
        if shard.is_small(layout):
            pieces = _pieces(layout, ask("piece"))
            return _packed(only(whole(**pieces, num_classes=layout.classes, norm=norm, warm_start=warm)))
        _refuse_other_norms(norm)
        return _packed(_label_svm(layout, AskedRows(ask)))

    return _unpacked(shard.ranks.led(lead, lambda name, *args: getattr(part, name)(*args)))


def joint_of_ranks(
    shard: DistributedShard,
    values: Any,
    labels: Tensor,
    selected: Tensor,
    *,
    limit: str,
    norms: tuple[Norm, Norm | None],
    check_limit: Callable[[], float],
    queries: Tensor | None,
    mask: Tensor | None,
    head: Solution | None,
    whole: Callable[..., tuple[Solution, Solution, Tensor | None]],
) -> tuple[Solution, Solution, Tensor | None]:
    """``solve_joint_svm`` of the sequences of all processes: attention, head and right-hand sides (n, T)."""
    x: Array
    rho = 0.0

    def describe() -> Facts:
        nonlocal x, rho
        rho = check_limit()
        facts = _attention_facts("solve_joint_svm", shard, selected, queries, mask, None)
        m, T = facts.count, facts.tokens
        alpha = check_selected(selected, np.ones((m, T), bool))
        x = selected_values(values, alpha, T) if m else np.zeros((0, int(np.shape(values)[-1])))
        told = _label_facts("solve_joint_svm", x, shard.index, labels, None)
        more = {"limit is": limit, "norm_ratio is": rho, "head is": "given" if head is not None else "left out"}
        more |= {"the norms are": norms}
        return replace(told, **{k: getattr(facts, k) for k in ("count", "tokens", "numbers", "shape", "known")},
                       alike={**facts.alike, **told.alike, **more})  # fmt: skip

    layout = Layout.agreed(shard.ranks, describe)
    classes = layout.classes if head is None or head.direction.ndim == 1 else len(head.direction)
    rows = shard.part(lambda: _source(shard.keys), selected, queries, mask, None, layout)
    parts = {
        "attention": rows,
        "head": LabelPart(x, labels, classes, layout.sequences()),
    }

    def lead(ask: Ask) -> Any:
        if shard.is_small(layout):
            pieces = _pieces(layout, ask("attention", "piece")) | _pieces(layout, ask("head", "piece"))
            pieces.pop("rhs")
            attention, found, rhs = whole(**pieces, head=head)
            return _packed(attention), _packed(found), rhs
        for norm in norms:
            _refuse_other_norms(norm)
        attention, found, b, live = _joint(layout, ask, limit, rho, head, rows)
        return _packed(attention), _packed(found), None if live is None else (b, np.packbits(live))

    attention, found, rhs = shard.ranks.led(lead, lambda which, name, *args: getattr(parts[which], name)(*args))
    if isinstance(rhs, tuple):
        live = np.unpackbits(rhs[1], count=layout.n * layout.tokens).reshape(layout.grid)
        rhs = torch.from_numpy(live * rhs[0][:, None])
    return _unpacked(attention), _unpacked(found), rhs


def _refuse_other_norms(norm: Norm | None) -> None:
    if norm not in ("l2", None):
        raise InputError(f"norm {norm!r} needs the keys on one rank: pass one tensor, or use 'l2'")


# --- what the first process does ---------------------------------------------------------------------------------


def _label_svm(layout: Layout, rows: AskedRows) -> Solution:
    binary = layout.classes is None
    grid = (layout.n, 2 if layout.classes is None else layout.classes)
    solution, _ = solve_shards_from(lambda: [rows], grid, f"separates the {'labels' if binary else 'classes'}")
    if not binary:
        return solution
    return replace(solution, dual=solution.dual[:, 1].clone(), support=solution.support[:, 0].clone())


def _asked(working: ShardSummary | None, layout: Layout, b: Array) -> ShardSummary | None:
    """The rows of the last answer, with what is asked of each sequence now, (n,)."""
    return None if working is None else replace(working, rhs=b[working.ids // layout.tokens])


def _joint(
    layout: Layout, ask: Ask, limit: str, rho: float, head: Solution | None, part: AttentionPart
) -> Joint:  # fmt: skip
    rows = AskedRows(ask, "attention")
    head = _label_svm(layout, AskedRows(ask, "head")) if head is None else head
    b = np.ones(layout.n)
    working = part.working if layout.known else None

    def solve(rhs: Array) -> Solution:
        nonlocal b, working
        b = rhs
        ask("attention", "ask_for", b)
        solution, working = solve_shards_from(lambda: [rows], layout.grid, GOAL, _asked(working, layout, b))
        if rhs.all():
            # Those of a relaxed problem are a few of these.
            part.working = working
        return solution

    if limit == "strict":
        attention = solve(b)
    else:
        parts = ask("head", "margins", head)
        if any(part is None for part in parts):
            merged = rows.final(np.zeros(layout.shape)).merged
            return undefined(layout.shape, layout.grid, limit, head.status, merged), head, None, None
        margins = layout.together(parts)[None]
        if limit == "relaxed":
            attention = solve(relaxed_rhs(margins)[0])
        else:
            strict, spare = solve(b), rho * spare_margins(margins)[0]
            start = _root_of(working, layout, strict, spare)
            attention = rate_coupled(strict, spare, solve, start)
    return attention, head, b, layout.together(ask("attention", "live"))


def _root_of(working: ShardSummary | None, layout: Layout, strict: Solution, spare: Array) -> float | None:
    """The margin of the rate-coupled answer to the working rows alone, without a look at the others."""
    if working is None or not strict.certified:
        return None
    rows = working_shard(working, layout.tokens)

    def solve(b: Array) -> Solution:
        asked = rows.with_rhs(b[working.ids // layout.tokens])
        return solve_shards_from(lambda: [asked], layout.grid, GOAL, _asked(working, layout, b))[0]

    near = rate_coupled(strict, spare, solve)
    return near.margin if near.certified else None


# --- what is told and handed over --------------------------------------------------------------------------------


def _source(keys: Any) -> Source:
    source = as_source(keys)
    if source is None:
        if np.ndim(keys) != 3:
            raise InputError(f"keys have shape {list(np.shape(keys))}: pass (sequences, tokens, features)")
        return MappedSource(keys)
    return source


def _attention_facts(
    call: str,
    shard: DistributedShard,
    selected: Tensor,
    queries: Tensor | None,
    mask: Tensor | None,
    rhs: Tensor | None,
) -> Facts:
    source = _source(shard.keys)
    first: Any = source.array if isinstance(source, MappedSource) else next((x for _, x in source.blocks()), None)
    if first is None:
        raise InputError("keys hold no block: yield at least one (m, T, d), with m = 0 where there is no sequence")
    count, (_, own, d) = len(selected), np.shape(first)
    tokens, dq = longest(mask, own), None if queries is None else int(queries.shape[1])
    alike = {
        "the call is": call, "keys have dimension": d, "keys are": _dtype(first), "queries have dimension": dq,
        "right-hand sides are": "left out" if rhs is None else "given",
    }  # fmt: skip
    known, shape = shard.is_known(selected, queries, mask, rhs), (d,) if dq is None else (d, dq)
    return Facts(count, tokens, count * tokens * d, shard.index, alike, shape, known=known)


def _label_facts(call: str, values: Any, index: Any, labels: Tensor, num_classes: int | None) -> Facts:
    shape, y = np.shape(values), to_array(labels, "labels")
    if len(shape) != 2 or shape[1] == 0:
        raise InputError(f"values have shape {list(shape)}: pass (samples, features)")
    if y.shape != shape[:1]:
        raise InputError(
            f"labels have shape {list(y.shape)} for {shape[0]} samples: pass one label each, ({shape[0]},)"
        )
    signs = num_classes is None and bool(np.isin(y, (-1, 1)).all())
    largest = int(y.max()) + 1 if len(y) and np.isfinite(y).all() else 2
    alike = {
        "the call is": call, "values have dimension": shape[1], "values are": _dtype(values),
        "num_classes is": num_classes,
    }  # fmt: skip
    return Facts(shape[0], 0, shape[0] * shape[1], index, alike, (shape[1],), signs, num_classes or max(2, largest))


def _dtype(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def _pieces(layout: Layout, parts: list[dict[str, Array | None]]) -> dict[str, Tensor | None]:
    """The parts of all ranks as one problem; a mask that some lack is true there."""
    whole: dict[str, Tensor | None] = {}
    for name in parts[0]:
        found = [part[name] for part in parts]
        if name == "mask" and any(x is not None for x in found):
            counts = [facts.count for facts in layout.facts]
            found = [np.ones((m, layout.tokens)) if x is None else x for m, x in zip(counts, found, strict=True)]
        whole[name] = None if found[0] is None else torch.from_numpy(layout.together(found))  # type: ignore[arg-type]
    return whole


def _packed(solution: Solution) -> tuple[Solution, tuple[int, ...], Tensor, Tensor]:
    """Without the zeros of its multipliers."""
    dual = solution.dual.flatten()
    at = dual.nonzero()[:, 0]
    return replace(solution, dual=dual[:0].clone()), tuple(solution.dual.shape), at, dual[at]


def _unpacked(packed: tuple[Solution, tuple[int, ...], Tensor, Tensor]) -> Solution:
    solution, shape, at, values = packed
    # numpy's zeros take no memory where nothing is written.
    dual = np.zeros(shape)
    dual.ravel()[at.numpy()] = values.numpy()
    return replace(solution, dual=torch.from_numpy(dual))
