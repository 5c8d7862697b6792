"""TextSelection through a Trainer: learning, tuning, checkpoints, options that do not go together."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import StepLR

from lightning_maxmargin.callbacks import FiniteGuard
from lightning_maxmargin.callbacks.text_monitor import TextMonitor
from lightning_maxmargin.errors import InputError, NonFiniteError
from lightning_maxmargin.modules.text import TextSelection, balanced
from lightning_maxmargin.text.data import TextData
from lightning_maxmargin.text.saving import load_model
from tests.text.conftest import reviews, tiny_encoder, write_rows  # noqa: F401  (a fixture)


def text_data(folder: Path, encoder: Path, **options: Any) -> TextData:
    train = write_rows(folder / "train.jsonl", reviews(300, 0))
    test = write_rows(folder / "test.jsonl", reviews(40, 9))
    given = {"train": str(train), "test": str(test), "encoder": str(encoder), "cache_dir": str(folder / "cache")}
    return TextData(**{**given, **options})


def trainer(epochs: int = 12, callbacks: Any = None, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=callbacks, **options,
    )  # fmt: skip


def fitted(module: TextSelection, data: TextData, epochs: int = 12, **options: Any) -> pl.Trainer:
    torch.manual_seed(0)
    run = trainer(epochs, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, datamodule=data)
    return run


def test_it_learns_and_finds_the_word_that_decides(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    # Of the embeddings: higher layers of random weights mix the words.
    module, data = TextSelection(lr=0.02), text_data(tmp_path, tiny_encoder, key_layer=0)
    run = fitted(module, data)
    tested = run.test(module, datamodule=data, verbose=False)[0]
    assert tested["test/accuracy"] >= 0.9
    # One word of about seven is marked.
    assert tested["rationale/auprc"] >= 0.6
    assert tested["rationale/documents"] == 40


@pytest.mark.parametrize(
    "options",
    [
        {"parametrization": "W"}, {"parametrization": "W", "query": "cls"}, {"parametrization": "KQ", "rank": 4},
        {"per_class": True}, {"class_weights": "balanced", "label_smoothing": 0.1, "dropout": 0.1},
    ],
)  # fmt: skip
def test_every_form_trains(tiny_encoder: Path, tmp_path: Path, options: dict[str, Any]) -> None:  # noqa: F811
    module, data = TextSelection(lr=0.02, **options), text_data(tmp_path, tiny_encoder, key_layer=0)
    run = fitted(module, data, 6, callbacks=[TextMonitor(samples=20, budget=1.0)])
    assert float(run.callback_metrics["val/loss"]) < 0.69  # log 2 is chance
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("options", [{"finetune_layers": 1}, {"lora_rank": 2}])
def test_the_encoder_is_tuned_from_the_frozen_solution(
    tiny_encoder: Path,  # noqa: F811
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    if "lora_rank" in options:
        pytest.importorskip("peft")
    module, data = (
        TextSelection(lr=0.02, finetune_epochs=1, finetune_lr=1e-3, **options),
        text_data(tmp_path, tiny_encoder),
    )
    before: dict[str, torch.Tensor] = {}

    class Remember(pl.Callback):
        def on_train_epoch_start(self, run: pl.Trainer, pl_module: Any) -> None:
            if run.current_epoch == 2:
                before.update({k: p.detach().clone() for k, p in pl_module.model.encoder.named_parameters()})

    run = fitted(module, data, 3, callbacks=[Remember()])
    assert module.model is not None
    moved = {k for k, p in module.model.encoder.named_parameters() if not torch.equal(p, before[k])}
    assert moved
    assert moved <= {k for k, p in module.model.encoder.named_parameters() if p.requires_grad}
    first = next(p for k, p in module.model.encoder.named_parameters() if "layer.0" in k and "lora" not in k)
    assert not first.requires_grad
    assert 0 <= run.test(module, datamodule=data, verbose=False)[0]["test/accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"attention": [1.0, 1.0, 1.0, 2 / 3, 1 / 3], "head": [1.0, 1.0, 1.0, 2 / 3, 1 / 3]}),
        ({"finetune_layers": 1, "finetune_epochs": 2}, {"encoder": [1.0, 1.0, 1.0, 1.0, 5 / 6]}),
        ({"cooldown": 0.0}, {"attention": [1.0] * 5}),
        ({"cooldown": 0.0, "lr_scheduler": lambda o: StepLR(o, 1, 0.5)}, {"head": [1.0, 0.5, 0.25, 0.125, 0.0625]}),
    ],
)
def test_rates_fall_at_the_end(
    tiny_encoder: Path,  # noqa: F811
    tmp_path: Path,
    options: dict[str, Any],
    expected: dict[str, list[float]],
) -> None:
    module, data = TextSelection(**{"cooldown": 0.6, **options}), text_data(tmp_path, tiny_encoder)
    data.batch_size = 1000  # a step an epoch
    seen: dict[str, list[float]] = {name: [] for name in expected}

    class Rates(pl.Callback):
        def on_train_batch_start(self, run: pl.Trainer, *_: Any) -> None:
            for group in run.optimizers[0].param_groups:
                if group["name"] in seen:
                    seen[group["name"]].append(group["lr"] / group.get("initial_lr", group["lr"]))

    fitted(module, data, 5, callbacks=[Rates()])
    for name, rates in expected.items():
        assert seen[name] == pytest.approx(rates)


def test_a_checkpoint_holds_what_is_trained_and_predicts_the_same(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    module, data = TextSelection(), text_data(tmp_path, tiny_encoder)
    run = fitted(module, data, 2)
    run.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in kept if ".encoder." in name]
    new = write_rows(tmp_path / "new.jsonl", [{"text": row["text"]} for row in reviews(10, 3)])
    again = TextData(predict=str(new), encoder=str(tiny_encoder), cache_dir=str(tmp_path / "cache"))
    found = trainer().predict(TextSelection(), datamodule=again, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.names == ["bad", "good"]
    assert found is not None
    assert module.model is not None
    batch = again.splits["predict"][torch.arange(10)]
    here = module.model(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.allclose(found[0]["logits"], here, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"finetune_layers": 1, "finetune_epochs": 1}, {"lora_rank": 2}])
def test_a_checkpoint_is_loaded_without_its_data(tiny_encoder: Path, tmp_path: Path, options: Any) -> None:  # noqa: F811
    module, data = TextSelection(**options), text_data(tmp_path, tiny_encoder)
    fitted(module, data, 2).save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = TextSelection.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert alone.model is not None
    assert module.model is not None
    mine, theirs = module.model.state_dict(), alone.model.state_dict()
    assert mine.keys() == theirs.keys()
    # Nobody reads the pooler, whose weights the encoder has not saved.
    assert [n for n in mine if not torch.equal(mine[n], theirs[n]) and ".pooler." not in n] == []
    batch = data.splits["train"][torch.arange(5)]
    with torch.no_grad():
        found, expected = alone.eval()(batch).logits, module.eval().model(batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(found, expected.logits, atol=1e-5)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.save({**kept, "text": {**kept["text"], "encoder": "another"}}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"it was trained on another .*, whose weights are no longer those"):
        TextSelection.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("options", [{"key_layer": 1}, {"units": "words"}])
def test_a_checkpoint_of_other_data_is_refused(tiny_encoder: Path, tmp_path: Path, options: Any) -> None:  # noqa: F811
    module, data = TextSelection(), text_data(tmp_path, tiny_encoder)
    fitted(module, data, 1).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="ckpt_path: it is of another spec"):
        trainer(2).fit(
            TextSelection(), datamodule=text_data(tmp_path, tiny_encoder, **options),
            ckpt_path=tmp_path / "last.ckpt", weights_only=True,
        )  # fmt: skip


def test_nan_in_a_document_stops_before_the_weights(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    module, data = TextSelection(), text_data(tmp_path, tiny_encoder)
    data.setup("fit")

    class Broken(pl.Callback):
        """Ruins the states of one document, as a broken encoder would."""

        def on_train_batch_start(self, run: pl.Trainer, part: Any, batch: Any, number: int) -> None:
            if run.global_step == 3:
                batch["keys"][1] = torch.nan
                self.document = int(batch["index"][1])

    broken, guard = Broken(), FiniteGuard()
    with pytest.raises(NonFiniteError, match=r"selectors\.0\.p is not finite at step 3 \(samples \d+\)") as caught:
        fitted(module, data, 2, callbacks=[guard, broken], default_root_dir=tmp_path)
    assert f"(samples {broken.document})" in str(caught.value)
    assert all(p.isfinite().all() for p in module.parameters())
    kept = torch.load(tmp_path / "checkpoints" / "last_good.ckpt", weights_only=True)
    assert kept["global_step"] == 3


def test_it_begins_where_an_earlier_selector_is(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    module, data = TextSelection(lr=0.02), text_data(tmp_path, tiny_encoder)
    fitted(module, data, 3)
    assert module.model is not None
    module.model.save_pretrained(tmp_path / "earlier")
    p = load_model(tmp_path / "earlier").parts[0].p
    later = TextSelection(init_from=str(tmp_path / "earlier"), train="head")
    fitted(later, text_data(tmp_path, tiny_encoder), 2)
    assert later.model is not None
    assert torch.equal(later.model.parts[0].p, p)
    assert not torch.equal(later.model.parts[0].v, module.model.parts[0].v)
    with pytest.raises(InputError, match=r"model.init_from: .* has token_scale 8.0, this model 4.0"):
        fitted(
            TextSelection(init_from=str(tmp_path / "earlier"), token_scale=4.0), text_data(tmp_path, tiny_encoder), 1
        )
    with pytest.raises(InputError, match="holds no saved selector"):
        fitted(TextSelection(init_from=str(tmp_path)), text_data(tmp_path, tiny_encoder), 1)


def test_the_monitor_keeps_to_its_budget_and_measures_all_at_the_end(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    monitor, module = TextMonitor(samples=30, budget=1e-6), TextSelection(lr=0.02)
    fitted(module, text_data(tmp_path, tiny_encoder), 6, callbacks=[monitor])
    assert len(monitor.history) == 1  # none is affordable but the one at the end
    assert monitor.last["status/attention"] == "certified"
    assert 0 < float(monitor.last["relative_margin/attention"] or 0) <= 1 + 1e-6
    assert float(monitor.last["margin/median_lead"] or 0) > 0
    assert monitor.last["monitor/final_seconds"] is not None


def test_what_was_cut_and_what_is_empty_is_counted_over_all_splits(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    data, monitor = text_data(tmp_path, tiny_encoder, max_length=6), TextMonitor(samples=10)
    write_rows(tmp_path / "train.jsonl", [*reviews(40, 0), {"text": " ", "label": "bad"}])
    fitted(TextSelection(), data, 1, callbacks=[monitor])
    cut = sum(int(split.pieces.truncated.sum()) for split in data.splits.values())
    assert monitor.last["text/truncated"] == cut > 40  # the test split's among them
    assert monitor.last["text/empty"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": "cls"}, "need parametrization W or KQ"),
        ({"parametrization": "W", "rank": 2}, "model.rank: is of K and Q"),
        ({"finetune_layers": 1, "lora_rank": 1}, "give one of them"),
        ({"train": "head"}, "name it with init_from"),
        ({"lr": 0.0}, "model.lr: 0.0; expected a positive number"),
        ({"attention_decay": -1.0}, "model.attention_decay: -1.0; expected zero or more"),
        ({"cooldown": 1.5}, "model.cooldown: 1.5; expected a share from 0 to 1"),
        ({"lr_scheduler": torch.optim.lr_scheduler.ConstantLR}, "give cooldown 0 beside a schedule"),
        ({"dropout": 1.0}, "model.dropout: 1.0; expected a number from 0 to below 1"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextSelection(**options)


def test_layers_that_are_not_there(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"model.finetune_layers: 7; up to the layer that is read the encoder has 2"):
        fitted(TextSelection(finetune_layers=7), text_data(tmp_path, tiny_encoder), 1)


def test_balanced_weights_make_classes_count_alike() -> None:
    labels = torch.tensor([0] * 9 + [1])
    weights = balanced(labels, 2)
    assert (weights[labels][labels == 0].sum() - weights[labels][labels == 1].sum()).abs() < 1e-6


def test_readings_are_json(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    from lightning_maxmargin.text.selector import TextSelector

    module, data = TextSelection(lr=0.02), text_data(tmp_path, tiny_encoder)
    fitted(module, data, 3)
    assert module.model is not None
    selector = TextSelector(module.model, data.encoder.tokenizer)
    one = selector("a good film .")
    assert json.loads(json.dumps(one.as_json()))["label"] in ("bad", "good")
    assert sum(word.weight for word in one.words) == pytest.approx(1, abs=1e-5)
    strange = selector(["", " ", "\ud800", "a" * 5000])
    assert [round(r.probability, 3) >= 0.5 for r in strange] == [True] * 4
    with pytest.raises(InputError, match="text 1 is a int; expected a string"):
        selector(["a", 1])  # type: ignore[list-item]


def test_hidden_states_are_left_out_while_the_encoder_is_trained(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    seen = []

    class Seen(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append((trainer.current_epoch, "keys" in batch))

    module = TextSelection(finetune_layers=1, finetune_epochs=1)
    fitted(module, text_data(tmp_path, tiny_encoder, batch_size=100), 3, callbacks=[Seen()])
    assert set(seen) == {(0, True), (1, True), (2, False)}


def test_weights_do_not_depend_on_who_makes_the_batches(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    """Nor the draws of dropout."""
    text_data(tmp_path, tiny_encoder).setup("fit")  # encoding draws: with the states on disk all runs begin alike
    found = []
    for options in ({"prefetch": 0}, {}, {"num_workers": 2}):
        module = TextSelection(dropout=0.3, finetune_layers=1, finetune_epochs=1)
        fitted(module, text_data(tmp_path, tiny_encoder, batch_size=100, **options), 2)
        found.append(module.state_dict())
    for other in found[1:]:
        assert [name for name, x in other.items() if not torch.equal(x, found[0][name])] == []
