"""Text on a device: model, module, selector, monitor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import TextData, TextSelection, TextSelector
from lightning_maxmargin.callbacks.text_monitor import TextMonitor
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification
from lightning_maxmargin.text.pooled import PoolingModel
from lightning_maxmargin.text.saving import load_model
from tests.device.compare import close, covers
from tests.device.pretend import GPU, Gpu
from tests.modules.test_text import text_data
from tests.text.conftest import finished, make_run, reviews, write_rows  # noqa: F401  (fixtures)
from tests.text.test_model import batch, make

Make = Callable[..., pl.Trainer]
FORMS: list[dict[str, Any]] = [
    {},
    {"parametrization": "KQ", "rank": 4, "query": "cls"},
    {"per_class": True, "class_weights": "balanced"},
    {"finetune_layers": 1, "finetune_epochs": 1},
]
#: The others differ from it in one module, of which tests/device/test_waits.py has them too.
QUICK = (FORMS[0],)


@pytest.mark.parametrize("form", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in FORMS], ids=str)
@covers("TextSelection", "TextData", "callbacks.text_monitor.TextMonitor")
def test_a_run(trainer: Make, tiny_encoder: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    seen = []
    new = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in reviews(6, 3)])
    for device in (False, True):
        data = text_data(tmp_path, tiny_encoder, units="words", predict=str(new))
        assert isinstance(data, TextData)
        data.setup("fit")  # the first run encodes, and draws an encoder's random start for that
        torch.manual_seed(0)
        module, monitor = TextSelection(**form), TextMonitor(samples=20, budget=1.0)
        run = trainer(device, max_epochs=2, callbacks=[monitor])
        run.fit(module, datamodule=data)
        numbers = run.test(module, datamodule=data, verbose=False)[0]
        run.save_checkpoint(tmp_path / f"{device}.ckpt")
        parts = run.predict(module, datamodule=data)
        assert parts is not None
        seen.append([numbers["test/accuracy"], [part["logits"].cpu() for part in parts]])
        has_svm = not (form.get("per_class") or form.get("finetune_layers"))
        assert not has_svm or monitor.last["status/attention"] in ("certified", "infeasible", "unverified")
    close(seen[1], seen[0], 1e-3)
    # What the device left is read on the CPU.
    trainer(False).test(TextSelection(**form), data, ckpt_path=tmp_path / "True.ckpt", weights_only=True, verbose=False)


@pytest.mark.parametrize("units", ["pieces", "words"])
@covers("text.model.MaxMarginForSequenceClassification")
def test_the_model(gpu: Gpu, tiny_encoder: Path, units: str) -> None:
    model = make(tiny_encoder, units=units)
    assert isinstance(model, MaxMarginForSequenceClassification)
    given = batch(tiny_encoder, ["a fine film .", "the plot is dull"], units)
    given = {k: x for k, x in given.items() if k in ("input_ids", "attention_mask", "unit_ids")}
    given["labels"] = torch.tensor([0, 1])
    expected = model(**given)
    found = model.to(GPU)(**{k: x.to(GPU) for k, x in given.items()})
    close(dict(found), dict(expected), 1e-4)


@covers("TextSelector")
def test_the_selector(gpu: Gpu, finished: Path) -> None:  # noqa: F811
    selector = TextSelector.from_pretrained(finished / "model")
    texts = ["a great film", "dull and cold"]
    expected = selector(texts)
    selector.model = selector.model.to(GPU)
    found = selector(texts)
    assert [reading.label for reading in found] == [reading.label for reading in expected]
    assert [reading.lead for reading in found] == pytest.approx([reading.lead for reading in expected], rel=1e-4)


@covers("text.pooled.PoolingModel")
def test_what_evaluations_read(gpu: Gpu, finished: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    given = {"train": str(finished / "train.jsonl"), "encoder": str(tiny_encoder), "cache_dir": str(finished)}
    data = TextData(**given, units="words")
    data.setup("fit")
    seen = []
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        pooling = PoolingModel(load_model(finished / "model"), data.splits["train"])
        assert pooling.model.selectors[0].p.is_cuda is there  # type: ignore[union-attr]
        seen.append([document.logits for document in pooling.documents[:5]])
    close(seen[1], seen[0], 1e-4)
