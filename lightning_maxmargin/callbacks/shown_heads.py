"""What a HeadMonitor shows: the grid of all heads, and texts shaded by the attention of one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from markupsafe import Markup
from torch import Tensor

from lightning_maxmargin.callbacks.shown import Shown
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.shaded import ShadedText, ShadedTexts
from lightning_maxmargin.html_table import CELL, faint, number, paragraph, text
from lightning_maxmargin.keys_of_heads import short_names, table_of_heads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_maxmargin.figures.read import Metrics
    from lightning_maxmargin.probe.attention import HeadSnapshot
    from lightning_maxmargin.probe.visible import QueryToken

KEY = "relative_margin/attention"
#: Of the scale of colours, from where on black is read better than white: a contrast of 4.4 and more on both sides.
INK = 0.45
#: Names that a batch may have for its tokens, and for which of these are tokens.
IDS, MASK = "input_ids", "attention_mask"


def grid_of_heads(values: Mapping[str, object], key: str = KEY) -> Markup:
    """Layer by head as a table, coloured by a number of each as in the figure; a dash where it is undefined.

    Args:
        values: of a HeadMonitor.
        key: of the number; the share of its SVM's margin that a head reached.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    from lightning_maxmargin.figures.heads import norm_of, short_number

    norm = norm_of(key)
    layers, rows = table_of_heads(values, key)
    statuses, short = table_of_statuses(values), short_names(layers)
    heads = range(max(map(len, rows), default=0))
    head_cells = Markup("").join(Markup('<th scope="col" style="{}">{}</th>').format(CELL, h) for h in heads)
    lines = []
    for layer, row in zip(layers, rows, strict=True):
        cells = []
        for h, x in enumerate(row):
            name = f"{layer}/head{h}".removeprefix("/")
            title = f"{name}: {statuses.get(name, 'unknown')}, {key} {number(x)}"
            style, shown = "border:1px dashed rgba(128,128,128,.6);background:none", "–"
            if x is not None and math.isfinite(x):
                color = to_hex(colormaps["viridis"](float(norm(x))))
                ink = "#000000" if norm(x) > INK else "#FFFFFF"
                style, shown = f"border:none;background:{color};color:{ink}", short_number(x)
            style = f"text-align:center;padding:2px 6px;{style}"
            cells.append(Markup('<td style="{}" title="{}">{}</td>').format(style, text(title), shown))
        named = Markup('<th scope="row" style="{};font-weight:400">{}</th>').format(CELL, text(short[layer] or "layer"))
        lines.append(Markup("<tr>{}{}</tr>").format(named, Markup("").join(cells)))
    return Markup(
        '<table style="border-collapse:separate;border-spacing:1px;margin:4px 0">'
        '<thead><tr><th scope="col" style="{}">head</th>{}</tr></thead><tbody>{}</tbody></table>'
    ).format(CELL, head_cells, Markup("").join(lines))


def table_of_statuses(values: Mapping[str, object]) -> dict[str, str]:
    """The status of every head's SVM, by head."""
    end = "/status/attention"
    return {name.removesuffix(end): str(x) for name, x in values.items() if name.endswith(end)}


def find_head(given: str | None, attention: Mapping[str, Tensor], values: Mapping[str, object]) -> str:
    """The head of this name; where None the one that is nearest to its SVM's margin.

    Raises:
        InputError: there is none.
    """
    if given is None:
        known = {head: x for head in attention if isinstance(x := values.get(f"{head}/{KEY}"), float)}
        return max(known, key=lambda head: known[head]) if known else next(iter(attention))
    if given not in attention:
        raise InputError(f"HeadMonitor.show: no head {given!r}; one of {', '.join(attention)}")
    return given


def token_rows(batches: Sequence[Any]) -> Iterator[tuple[list[int], list[bool]]]:
    """Ids of the tokens of every sample, and which of them are tokens.

    Args:
        batches: that were watched: dictionaries or objects with ``input_ids``, tuples with, or tensors of, ids.

    Raises:
        InputError: a batch has no ids.
    """
    for batch in batches:
        ids, mask = _find_ids(batch), _entry(batch, MASK)
        kept = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.shape != ids.shape else mask != 0
        yield from zip(ids.tolist(), kept.tolist(), strict=True)


def _entry(batch: Any, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)


def _find_ids(batch: Any) -> Tensor:
    entries = [_entry(batch, IDS)]
    if isinstance(batch, Tensor):
        entries = [batch]
    elif isinstance(batch, tuple | list):
        entries = [*batch, *(_entry(part, IDS) for part in batch)]
    for x in entries:
        if isinstance(x, Tensor) and x.ndim == 2 and not x.is_floating_point():
            return x.cpu()
    raise InputError(f"HeadMonitor.show: a watched batch has no {IDS}, integers (n, T); it holds no text")


class ShownHeads(Shown):
    """The part of a :class:`~lightning_maxmargin.callbacks.head_monitor.HeadMonitor` that a notebook shows."""

    headlines = ("heads/certified", "heads/infeasible")
    curve = KEY

    heads: HeadSnapshot | None
    rows: list[tuple[int, dict[str, Tensor]]]
    query_token: QueryToken

    def overview(self, metrics: Metrics) -> Figure | None:
        from lightning_maxmargin.figures.heads import draw_heads

        return draw_heads(self.numbers())

    def panels(self, metrics: Metrics) -> dict[str, Any]:
        from lightning_maxmargin.figures.heads import margin_heatmap, mass_heatmap

        drawn = {"relative_margin": margin_heatmap, "selected_mass": mass_heatmap}
        return {name: partial(draw, values=self.numbers()) for name, draw in drawn.items()}

    def draw_key(self, metrics: Metrics, key: str, against: str | None, ax: Axes | None) -> Figure:
        from lightning_maxmargin.figures.monitors import draw_heads_key

        return super().draw_key(metrics, key, against, ax) if against else draw_heads_key(metrics, key, ax)

    def has_picture(self) -> bool:
        return False  # the grid says the same

    def body(self) -> object:
        margins = faint("share of its Att-SVM's margin that each head reached, – where that SVM is not certified")
        masses = faint("share of its attention on the selected token, 1 for a hard selection")
        both = [(margins, KEY), (masses, "attention/selected_mass")]
        return Markup("").join(x for about, key in both for x in (paragraph(about), grid_of_heads(self.numbers(), key)))

    def batches(self) -> list[Any]:
        """What is watched; nothing before training."""
        watch = getattr(self, "_watch", None)
        return [] if watch is None else list(watch.batches)

    def show(self, tokenizer: Any, head: str | None = None, samples: int = 4) -> ShadedTexts:
        """The first watched samples with their tokens shaded by a head's attention at the last evaluation.

        Args:
            tokenizer: of the batches; ``convert_ids_to_tokens(ids)`` gives the tokens.
            head: ``LAYER/head3``; where None the one that is nearest to its SVM's margin.
            samples: how many are shown.

        Raises:
            InputError: nothing was measured, no such head, no tokenizer, or the batches hold no ``input_ids``.
        """
        attention = self.heads.attention if self.heads is not None else self.rows[-1][1] if self.rows else {}
        if self.query_token == "all":
            raise InputError("HeadMonitor.show: with query_token='all' rows are of positions, and of no sample alone")
        if not attention or not self.batches():
            raise InputError("HeadMonitor.show: train first, with pl.Trainer(callbacks=[monitor])")
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            kind = type(tokenizer).__name__
            raise InputError(f"HeadMonitor.show: a {kind} is no tokenizer; give that of the batches")
        name, numbers = find_head(head, attention, self.numbers()), self.numbers()
        found = []
        for i, (ids, kept) in zip(range(min(samples, len(attention[name]))), token_rows(self.batches()), strict=False):
            row, tokens = attention[name][i].tolist(), tokenizer.convert_ids_to_tokens(ids)
            at = [t for t in range(len(ids)) if kept[t]]
            found.append(ShadedText(f"sample {i}", [str(tokens[t]) for t in at], [row[t] for t in at]))
        share, entropy = (numbers.get(f"{name}/{key}") for key in (KEY, "attention/entropy"))
        facts = [f"step {self.history[-1]['step']:,}"]
        facts += [f"relative margin {share:.2f}"] if isinstance(share, float) else []
        facts += [f"entropy {entropy:.2f}"] if isinstance(entropy, float) else []
        return ShadedTexts(f"{name} at {', '.join(facts)}", found)
