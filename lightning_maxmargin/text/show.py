"""What a notebook shows of texts: a reading with its words shaded, and the documents of a data module."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lightning_maxmargin.data.show import NOT_READ, options_line
from lightning_maxmargin.figures.shaded import shaded_words
from lightning_maxmargin.html_table import block, faint, mark, number, paragraph, table, words

if TYPE_CHECKING:
    from lightning_maxmargin.text.batches import Split
    from lightning_maxmargin.text.data import TextData
    from lightning_maxmargin.text.readings import Reading

#: Labels of a split that are counted by name.
MOST_LABELS = 8


def reading_html(reading: Reading) -> str:
    """The words of a document, darker the heavier, blue for the predicted label and orange against it."""
    rows = [
        ("probability", number(reading.probability), faint("of this label")),
        ("lead", number(reading.lead), faint("(best score − second) / ‖p‖: whether the selection is stable")),
        ("entropy", number(reading.entropy), faint("of the attention in nats: how few words decided")),
    ]
    shown = shaded_words(
        [word.text for word in reading.words],
        [word.weight for word in reading.words],
        [word.evidence for word in reading.words],
    )
    return block(mark(reading.label), paragraph(shown), table(rows))


def _split_row(name: str, split: Split) -> tuple[object, ...]:
    labels = split.documents.labels
    counts = Counter(labels or ()).most_common()
    listed = ", ".join(f"{n:,} of {label}" for label, n in counts[:MOST_LABELS])
    more = f", … {len(counts):,} labels in all" if len(counts) > MOST_LABELS else ""
    lengths = np.diff(split.pieces.starts)
    spread = f"median {np.median(lengths):.0f}, at most {lengths.max():,}" if len(lengths) else "—"
    cut = int(split.pieces.truncated.sum())
    return words(name), f"{len(split):,}", words(listed + more or "unknown"), spread, f"{cut:,}"


def text_data_html(data: TextData) -> str:
    """Sources and options, and of the splits that are read documents, labels and lengths; nothing is read for it."""
    spec = data.spec
    sources = [(name, words(source)) for name, source in data.sources.items() if source is not None]
    options = {
        "units": spec.units, "key_layer": spec.key_layer, "value_layer": spec.value_layer,
        "max_length": spec.max_length, "batch_size": data.batch_size, "seed": data.seed,
    }  # fmt: skip
    body: object = paragraph(NOT_READ)
    if data.splits:
        rows = [_split_row(name, split) for name, split in data.splits.items()]
        body = table(rows, ("split", "documents", "labels", "word pieces", "cut"))
    encoder = paragraph(f"encoder {spec.encoder}")
    return block(type(data).__name__, table(sources), encoder, options_line(options), body)
