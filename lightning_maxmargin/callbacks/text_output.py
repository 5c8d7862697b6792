"""What a run on text leaves: the model as Hugging Face keeps it, which words decided, and what is wrong where it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import distributed as dist

from lightning_maxmargin.atomic import rust_errors, whole_folder, write_text
from lightning_maxmargin.callbacks.token_table import log_tokens

#: Of ``tokens.jsonl``: a single text may be of any length.
BYTES = 32_000_000
#: Documents of an encoder that was trained.
ENCODED = 200
#: Documents in the table of W&B, which draws each as a frame of its own.
IN_TABLE = 200


class SaveModel(Callback):
    """Writes ``model/`` (``save_pretrained``, with tokenizer and card), ``tokens.jsonl`` and ``corpus.json`` of a fit.

    W&B gets a table of the tokens as well, with shaded texts.
    A test with the same trainer then leaves ``test.json``: confusion matrix, and what lead and entropy foretold.

    Args:
        examples: documents in ``tokens.jsonl``, of the test split, else of validation; fewer where they take more than
            :data:`BYTES`, and at most :data:`ENCODED` of an encoder that was trained, which reads each of them again.
    """

    def __init__(self, examples: int = 2_000) -> None:
        self.examples = examples
        self._outcomes: Any = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.gather_model()  # type: ignore[operator]
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        save_whole(pl_module, data, run_dir / "model")
        pl_module.model.eval()  # type: ignore[union-attr]
        split = data.labelled("test" if "test" in data.splits else "val")
        kept = not pl_module.tunes_encoder and split.hidden is not None
        rows = _examples(pl_module, split, self.examples if kept else min(self.examples, ENCODED))
        log_tokens(trainer.loggers, write_rows(run_dir / "tokens.jsonl", rows), trainer.global_step)
        write_json(run_dir / "corpus.json", corpus_of(trainer, pl_module))
        _write_card(run_dir)

    # --- test -------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from lightning_maxmargin.text.outcome import Outcomes

        self._outcomes = Outcomes()

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        from lightning_maxmargin.text.outcome import answers, unit_mask
        from lightning_maxmargin.text.readings import selector_norms

        if not len(batch["index"]):
            return
        # A test step that returns the model's output saves the second look at the batch.
        output = outputs if outputs is not None and "logits" in outputs else pl_module(batch)
        split = trainer.datamodule.splits["test"]  # type: ignore[attr-defined]
        found = answers(output, unit_mask(batch), selector_norms(pl_module.model))
        self._outcomes.update(split, batch["index"].tolist(), found)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(parts, self._outcomes.rows)
            self._outcomes.rows = [row for part in parts for row in part]
        run_dir = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (run_dir / "model").is_dir():
            names = trainer.datamodule.names  # type: ignore[attr-defined]
            write_json(run_dir / "test.json", self._outcomes.compute(names, "test"))
            _write_card(run_dir)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Writes objects a line, up to :data:`BYTES` and at least one, and returns the first :data:`IN_TABLE` of them."""
    lines: list[str] = []
    first: list[dict[str, Any]] = []
    used = 0
    for row in rows:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        used += len(line.encode())
        if lines and used > BYTES:
            break
        lines.append(line)
        if len(first) < IN_TABLE:
            first.append(row)
    write_text(path, "".join(lines))
    return first


def write_json(path: Path, values: dict[str, Any]) -> None:
    """An object, whole or not there."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def corpus_of(trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
    """What ``corpus.json`` holds: see :func:`~lightning_maxmargin.text.corpus.measure_corpus`."""
    from lightning_maxmargin.text.corpus import measure_corpus

    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    names = ("lr", "token_scale", "attention_decay", "head_decay", "class_weights")
    options = {name: pl_module.hparams[name] for name in names}
    options |= {"max_epochs": trainer.max_epochs, "steps": trainer.global_step, "max_length": data.spec.max_length}
    options |= {"longest": data.encoder.longest(None)}
    train, val = data.labelled("train"), data.labelled("val")
    kept = not pl_module.tunes_encoder and train.hidden is not None and val.hidden is not None
    return measure_corpus(pl_module.model, train, val, None if kept else pl_module, options, data.seed)


def _write_card(run_dir: Path) -> None:
    from lightning_maxmargin.text.card import write_card

    write_card(run_dir)


def save_whole(pl_module: Any, data: Any, folder: Path) -> None:
    """The model and its tokenizer in this directory, whole or not there."""
    from lightning_maxmargin.text.pretrained import quiet_loading
    from lightning_maxmargin.text.tuning import merge_lora

    # A run that goes on in its own directory has left one there before.
    with whole_folder(folder, replace=True) as part, quiet_loading(), rust_errors():
        pl_module.model.encoder = merge_lora(pl_module.model.encoder)
        pl_module.model.save_pretrained(part)
        data.encoder.tokenizer.save_pretrained(part)


@torch.no_grad()
def _examples(pl_module: Any, split: Any, count: int) -> Iterator[dict[str, Any]]:
    from lightning_maxmargin.text.selector import readings

    model = pl_module.model
    names = model.names
    for start in range(0, min(count, len(split)), 32):
        texts = list(range(start, min(start + 32, count, len(split))))
        batch = {k: x.to(pl_module.device) for k, x in split[torch.tensor(texts)].items()}
        output = {k: v.cpu() for k, v in pl_module(batch).items()}
        for i, reading in zip(texts, readings(model, split, texts, output, batch["mask"].cpu()), strict=True):
            weights = [round(word.weight, 6) for word in reading.words]
            yield {
                "index": i,
                "label": None if split.labels is None else names[int(split.labels[i])],
                "prediction": reading.label,
                "tokens": [word.text for word in reading.words],
                "attention": weights,
                "selected": max(range(len(weights)), key=weights.__getitem__, default=0),
                "planted": None,
                "evidence": [round(word.evidence, 6) for word in reading.words],
                "probability": reading.probability,
                "lead": reading.lead,
                "entropy": reading.entropy,
                "size": reading.size,
                "rationale": _marked(split, i, reading),
            }


def _marked(split: Any, i: int, reading: Any) -> list[int] | None:
    """The numbers of the words of document i that people marked; None where nothing is."""
    from lightning_maxmargin.text.units import marked

    rationale = (split.documents.rationales or {i: None})[i]
    if not rationale:
        return None
    found = marked([(word.start, word.end) for word in reading.words], rationale, split.documents.texts[i])
    return [k for k, is_marked in enumerate(found) if is_marked]
