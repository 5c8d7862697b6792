"""Which tokens decided, example by example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.callbacks.token_table import log_tokens
from lightning_maxmargin.core import Sequences, select
from lightning_maxmargin.errors import InputError


class TokenMonitor(Callback):
    """At the end of fit, writes per example its tokens, the attention on each and the selected one.

    The first process writes ``tokens.jsonl`` into the run directory (one object a line: index, label, prediction,
    tokens, attention, selected, planted) and a table of shaded texts to W&B where that logs. Examples come from
    ``test``, else ``val``, else ``train``; data without texts are left out.

    Texts of more tokens than the keys have, as of an encoder that cuts them, are cut; what no UTF-8 can hold (a lone
    surrogate) is replaced.

    Args:
        examples: how many, from the first on.

    Raises:
        InputError: before training, where a sequence has more tokens than its text.
    """

    def __init__(self, examples: int = 200) -> None:
        if examples < 0:
            raise InputError(f"tokens.examples: {examples}; expected zero or more")
        self.examples = examples

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = self._texts(trainer)
        if found is None:
            return
        data, texts = found
        for i, length in zip(data.index.tolist(), _lengths(data), strict=True):
            if i >= len(texts) or len(texts[i]) < length:
                has = f"{len(texts[i])} tokens" if i < len(texts) else "no text"
                raise InputError(f"data.texts: sequence {i} has {length} tokens in its keys and {has} there")

    def _texts(self, trainer: pl.Trainer) -> tuple[Sequences, list[list[str]]] | None:
        """The examples and the texts of their split, where the data have any."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "texts"):
            return None
        split = next((s for s in ("test", "val", "train") if data.sequences(s) is not None), "train")
        texts = data.texts(split)
        return None if texts is None else (data.sequences(split)[: self.examples], texts)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = self._texts(trainer) if trainer.is_global_zero else None
        rows = [] if found is None else list(self.rows(pl_module, *found))
        if not rows:
            return
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(trainer.default_root_dir) / "tokens.jsonl", "".join(lines))
        log_tokens(trainer.loggers, rows, trainer.global_step)

    @torch.no_grad()
    def rows(self, pl_module: pl.LightningModule, data: Sequences, texts: list[list[str]]) -> Iterator[dict[str, Any]]:
        """One dictionary per example.

        Args:
            pl_module: whose ``selector`` is asked.
            data: the sequences.
            texts: the words of each.
        """
        output = pl_module(data.to(pl_module.device))
        alpha = select(output.scores.cpu(), data.mask)
        for i, length in enumerate(_lengths(data)):
            words = [writable(str(word)) for word in texts[int(data.index[i])][:length]]
            logits = output.logits[i]
            yield {
                "index": int(data.index[i]),
                "label": int(data.labels[i]),
                "prediction": float(logits) if logits.ndim == 0 else int(logits.argmax()),
                "tokens": words,
                "attention": [round(x, 6) for x in output.attention[i, : len(words)].tolist()],
                "selected": int(alpha[i]),
                "planted": None if data.planted is None else int(data.planted[i]),
            }


def writable(text: str) -> str:
    """The text with U+FFFD in place of what UTF-8 cannot hold.

    Example:
        >>> writable("caf\\udce9 noir") == "caf\\ufffd noir"
        True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lengths(data: Sequences) -> list[int]:
    """Tokens of each sequence up to the last one that is no padding."""
    T = data.keys.shape[1]
    return [T] * len(data) if data.mask is None else (T - data.mask.cpu().flip(1).int().argmax(1)).tolist()
