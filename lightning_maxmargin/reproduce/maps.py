"""Attention maps at several epochs: over the image, or over the words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.reproduce.panel import Array, Panel
from lightning_maxmargin.reproduce.transformer_data import Tokens, image_of

Rows = list[tuple[int, dict[str, Tensor]]]
#: White between two pictures of a mosaic, in pixels.
GAP_PIXELS = 1
#: Examples shown, and the most words of one: more would not fit beside the map.
MAX_EXAMPLES, MAX_WORDS = 4, 14
TITLE = "[CLS] attention, last layer, mean of heads"


def map_panels(tokens: Tokens, rows: Rows, epochs: Array) -> list[Panel]:
    """[CLS] attention of the last layer, mean over its heads, at five evaluations from the first to the last.

    Args:
        tokens: what was trained on.
        rows: :attr:`HeadMonitor.rows`.
        epochs: (evaluations,), of each of them.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, 5).round().astype(int))
    layer = list(rows[0][1])[-1].split("/")[0]
    # (evaluations, samples, T): without [CLS] itself, so a row need not sum to 1.
    seen = torch.stack(
        [torch.stack([s for head, s in rows[i][1].items() if head.startswith(f"{layer}/")]).mean(0) for i in chosen]
    )[:, :, 1:]
    names = [str(epochs[i]) for i in chosen]
    if tokens.words is None:
        return [_mosaic(tokens.train.tensors[0], seen[:, :MAX_EXAMPLES], names)]
    short = [i for i in range(seen.shape[1]) if len(tokens.words[i]) <= MAX_WORDS][:MAX_EXAMPLES]
    return [_over_words(tokens.words[i], seen[:, i], names) for i in short]


def _mosaic(patches: Tensor, seen: Tensor, names: list[str]) -> Panel:
    """One image a row: itself, then its maps."""
    tiles = []
    for i in range(seen.shape[1]):
        image = image_of(patches[i])
        # On the scale of the maps, which the colours are for.
        row = [image * float(seen.max() / image.max())]
        row += [image_of(s[:, None].float()).repeat_interleave(2, 0).repeat_interleave(2, 1) for s in seen[:, i]]
        tiles.append(
            torch.cat([torch.nn.functional.pad(t, (0, GAP_PIXELS, 0, GAP_PIXELS), value=torch.nan) for t in row], 1)
        )
    picture = torch.cat(tiles)[:-GAP_PIXELS, :-GAP_PIXELS].numpy()
    columns = [""] * picture.shape[1]
    for at, name in enumerate(["image", *names]):
        columns[at * (8 + GAP_PIXELS) + 4] = name
    return Panel(TITLE, "epoch", image=picture, columns=columns, digits=False, square=True)


def _over_words(words: list[str], seen: Tensor, epochs: list[str]) -> Panel:
    """One word a row, one epoch a column."""
    return Panel(
        TITLE, "epoch", image=seen[:, : len(words)].T.numpy(), rows=words, columns=epochs,
        digits=False,
    )  # fmt: skip
