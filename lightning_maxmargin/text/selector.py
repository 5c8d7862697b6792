"""A saved selector, to be asked about texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.fields import LONE
from lightning_maxmargin.text.hidden import batches_by_length
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.pretrained import PretrainedEncoder, word_pieces
from lightning_maxmargin.text.readings import Reading, read, selector_norms, units_in
from lightning_maxmargin.text.records import Documents
from lightning_maxmargin.text.saving import load_model

PIECES_AT_ONCE = 4_096


class TextSelector:
    """Reads texts with a saved selector: label, probability, the words that decided, and how sure each of these is.

    Args:
        model: as ``save_pretrained`` keeps it.
        tokenizer: its fast tokenizer.

    Example:
        >>> selector = TextSelector.from_pretrained("runs/reviews/model")  # doctest: +SKIP
        >>> selector("a film of rare charm").label  # doctest: +SKIP
        'positive'
    """

    def __init__(self, model: MaxMarginForSequenceClassification, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.names = model.names

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TextSelector:
        """The selector of a directory, as ``fit`` leaves it in ``RUN/model``.

        Args:
            folder: with the files of ``save_pretrained``.

        Raises:
            InputError: there is none.
        """
        model = load_model(folder)
        return cls(model, PretrainedEncoder(str(folder), Path(folder)).tokenizer)

    def __call__(self, texts: str | Sequence[str]) -> Any:
        """The :class:`~lightning_maxmargin.text.readings.Reading` of a text, or a list of those of several."""
        if isinstance(texts, str):
            return next(self.read([texts]))
        return list(self.read(texts))

    def read(self, texts: Sequence[str]) -> Iterator[Reading]:
        """The readings, in the order of the texts.

        Args:
            texts: of any length; cut where the encoder's maximum is.

        Raises:
            InputError: a text is no string.
        """
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"text {wrong} is a {type(texts[wrong]).__name__}; expected a string")
        split = self._split([LONE.sub("\ufffd", text) for text in texts])
        found: dict[int, Reading] = {}
        for part in batches_by_length(split.pieces, range(len(split)), PIECES_AT_ONCE):
            found |= dict(zip(part, self._read(split, part), strict=True))
        yield from (found[i] for i in range(len(split)))

    def _split(self, texts: list[str]) -> Split:
        config = self.model.config
        pieces = word_pieces(self.tokenizer, texts, config.max_pieces)
        documents = Documents(texts, None, None, "texts", 0)
        layers = (config.key_layer, config.value_layer)
        return Split(documents, pieces, config.units, None, None, *layers, tuple(config.special_ids))

    @torch.inference_mode()
    def _read(self, split: Split, texts: list[int]) -> list[Reading]:
        batch = {name: x.to(self.model.device) for name, x in split[torch.tensor(texts)].items()}
        output = self.model(**{k: batch.get(k) for k in ("input_ids", "attention_mask", "unit_ids")})
        return list(readings(self.model, split, texts, {k: v.cpu() for k, v in output.items()}, batch["mask"].cpu()))


def readings(
    model: MaxMarginForSequenceClassification, split: Split, texts: Sequence[int], output: dict[str, Any], mask: Any
) -> Iterator[Reading]:
    """Readings of these documents of a split from the model's output.

    Args:
        model: whose output it is.
        split: of the documents.
        texts: their numbers in it.
        output: of the model, on the CPU.
        mask: (b, t) bool, true on pieces that may be selected.
    """
    names, norms = model.names, selector_norms(model)
    by_word = split.units == "pieces"
    for row, i in enumerate(texts):
        inside = mask[row]
        if not by_word:
            count = output["scores"].shape[-1]
            inside = torch.arange(count) < len(split.unit_spans(i))
        yield read(split.documents.texts[i], units_in(output, row, inside, norms), split.unit_spans(i), names, by_word)
