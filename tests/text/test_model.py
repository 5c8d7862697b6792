"""The model as Hugging Face knows it: what it selects, and that their tools take it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.data import TextSpec
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification, SelectionOutput
from lightning_maxmargin.text.pretrained import PretrainedEncoder, pretrained_encoder, without_final_norm
from lightning_maxmargin.text.records import Documents
from lightning_maxmargin.text.saving import build_model, load_model
from lightning_maxmargin.text.selector import TextSelector
from tests.text.words import SPECIAL, WORDS, save_encoder, word_tokenizer

TEXTS = [
    "a fine film .",
    "the plot is dull and the movie is cold . not good !",
    "warm",
    "it was a great day , very funny ?",
]
FORMS = [
    {},
    {"parametrization": "W"},
    {"parametrization": "W", "query": "cls"},
    {"parametrization": "KQ", "rank": 2},
    {"parametrization": "KQ", "rank": 2, "query": "cls", "per_class": True},
    {"per_class": True},
]


def make(folder: Path, classes: int = 3, units: str = "pieces", layers: tuple[int, int] = (2, 1), **shape: Any) -> Any:
    """A model whose weights are not at their start."""
    torch.manual_seed(0)
    encoder = pretrained_encoder(str(folder))
    spec = TextSpec(str(folder), *layers, units, encoder.longest(None))
    model = build_model(spec, encoder, [f"label {k}" for k in range(classes)], shape).eval()
    for parameter in model.selectors.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def saved(model: Any, folder: Path, encoder: Path) -> Path:
    model.save_pretrained(folder)
    PretrainedEncoder("", encoder).tokenizer.save_pretrained(folder)
    return folder


def batch(encoder: Path, texts: list[str], units: str = "pieces") -> dict[str, torch.Tensor]:
    own = pretrained_encoder(str(encoder))
    split = Split(Documents(texts, None, None, "here", 0), own.pieces(texts), units, None, None, 2, 1, 0)
    return split[torch.arange(len(texts))]


@torch.no_grad()
def ask(model: Any, inputs: dict[str, torch.Tensor]) -> SelectionOutput:
    return model(**{k: inputs[k] for k in ("input_ids", "attention_mask", "unit_ids") if k in inputs})


# --- what it computes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("units", ["pieces", "words", "sentences"])
def test_logits_are_the_sum_of_selection_times_evidence(
    word_encoder: Path, classes: int, form: dict[str, Any], units: str
) -> None:
    output = ask(make(word_encoder, classes, units, **form), batch(word_encoder, TEXTS, units))
    assert output.logits.shape == (4, classes)
    assert next(iter(output)) == "logits"
    selection = output.selection if output.selection.ndim == 3 else output.selection[:, None]
    torch.testing.assert_close(
        output.logits, torch.einsum("bkt,btk->bk", selection.expand(-1, classes, -1), output.evidence)
    )
    torch.testing.assert_close(selection.sum(-1), torch.ones(selection.shape[:2]))
    assert output.scores.shape == output.selection.shape
    if classes == 2 and not form.get("per_class"):
        assert torch.equal(output.evidence[..., 0], -output.evidence[..., 1])


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("units", ["pieces", "words", "sentences"])
def test_padding_changes_nothing(word_encoder: Path, form: dict[str, Any], units: str) -> None:
    model = make(word_encoder, units=units, **form)
    together = ask(model, batch(word_encoder, TEXTS, units))
    for i, text in enumerate(TEXTS):
        alone = ask(model, batch(word_encoder, [text], units))
        torch.testing.assert_close(together.logits[i], alone.logits[0])
        count = alone.selection.shape[-1]
        torch.testing.assert_close(together.selection[i, ..., :count], alone.selection[0])
        assert not together.selection[i, ..., count:].any()


@pytest.mark.parametrize("mask", ["given", "none", "ones"])
def test_special_tokens_are_never_selected(word_encoder: Path, mask: str) -> None:
    inputs = batch(word_encoder, [*TEXTS, "good [SEP] bad [PAD] [MASK] zzz"])
    given = {"given": inputs["attention_mask"], "none": None, "ones": torch.ones_like(inputs["input_ids"])}[mask]
    with torch.no_grad():
        selection = make(word_encoder)(input_ids=inputs["input_ids"], attention_mask=given).selection
    special = (inputs["input_ids"] < len(SPECIAL)) & (inputs["input_ids"] != 1)  # an unknown word is text
    assert not selection[special].any()
    assert (selection[~special] > 0).all()
    assert torch.equal(inputs["mask"], ~special)  # so it is where hidden states come from the cache


@pytest.mark.parametrize("units", ["pieces", "words", "sentences"])
@pytest.mark.parametrize("classes", [2, 3])
def test_an_empty_text_has_logits_zero(word_encoder: Path, tmp_path: Path, units: str, classes: int) -> None:
    model = make(word_encoder, classes, units)
    for texts in (["", " \n"], ["", "good film"]):
        output = ask(model, batch(word_encoder, texts, units))
        assert output.logits[0].tolist() == [0.0] * classes
        assert not output.selection[0].any()
    reading = TextSelector(model, pretrained_encoder(str(word_encoder)).tokenizer)("")
    assert reading.probability == pytest.approx(1 / classes)
    assert reading.words == []
    assert reading.lead is None


def test_layers_of_the_config_are_read(word_encoder: Path) -> None:
    model, inputs = make(word_encoder, layers=(3, 0)), batch(word_encoder, TEXTS)
    network = pretrained_encoder(str(word_encoder)).model(3)
    with torch.no_grad():
        states = network(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True).hidden_states
        found = model.select(states[3], states[0], inputs["mask"], states[3][:, 0])
    torch.testing.assert_close(ask(model, inputs).logits, found.logits)


def test_units_without_ids_are_refused(word_encoder: Path) -> None:
    inputs = batch(word_encoder, TEXTS)
    with pytest.raises(InputError, match="units are words; give unit_ids, or use TextSelector"):
        make(word_encoder, units="words")(input_ids=inputs["input_ids"])


def test_impossible_models_are_refused(word_encoder: Path) -> None:
    with pytest.raises(InputError, match="1 label; expected two or more"):
        make(word_encoder, classes=1)
    with pytest.raises(InputError, match="cls needs parametrization W or KQ"):
        make(word_encoder, query="cls")


# --- saving and Hugging Face's tools ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_saved_model_is_the_same(word_encoder: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    from transformers import AutoModelForSequenceClassification

    model, inputs = make(word_encoder, **form), batch(word_encoder, TEXTS)
    saved(model, tmp_path, word_encoder)
    for found in (
        MaxMarginForSequenceClassification.from_pretrained(tmp_path),
        AutoModelForSequenceClassification.from_pretrained(str(tmp_path)),
        load_model(tmp_path),
    ):
        assert type(found) is MaxMarginForSequenceClassification
        assert not found.training
        for name, value in ask(found, inputs).items():
            assert torch.equal(value, ask(model, inputs)[name]), name
        assert found.config.id2label == {k: f"label {k}" for k in range(3)}
        assert found.config.special_ids == [0, 2, 3, 4]


def test_a_pipeline_says_what_the_selector_says(word_encoder: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    saved(make(word_encoder), tmp_path, word_encoder)
    selector = TextSelector.from_pretrained(tmp_path)
    theirs = pipeline("text-classification", str(tmp_path), device="cpu")
    for size in (1, 4):
        for found, reading in zip(theirs(TEXTS, batch_size=size, top_k=None), selector(TEXTS), strict=True):
            assert {x["label"]: x["score"] for x in found} == pytest.approx(reading.probabilities, abs=1e-6)
    assert theirs(TEXTS[0])[0]["label"] == selector(TEXTS[0]).label


def documents(encoder: Path, labels: list[int]) -> list[dict[str, Any]]:
    tokenizer = PretrainedEncoder("", encoder).tokenizer
    return [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, labels, strict=True)]


def trainer(model: Any, encoder: Path, folder: Path, **options: Any) -> Any:
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), max_steps=2, report_to=[], use_cpu=True, learning_rate=0.1, disable_tqdm=True, save_strategy="no",
        **{"per_device_train_batch_size": 4, **options},
    )  # fmt: skip
    collator = DataCollatorWithPadding(PretrainedEncoder("", encoder).tokenizer)
    rows: Any = documents(encoder, [0, 1, 2, 0])
    return Trainer(model, arguments, data_collator=collator, train_dataset=rows, eval_dataset=rows)


def test_a_trainer_trains_it(word_encoder: Path, tmp_path: Path) -> None:
    model = make(word_encoder)
    before = {name: x.clone() for name, x in model.named_parameters()}
    theirs = trainer(model, word_encoder, tmp_path)
    start = theirs.evaluate()["eval_loss"]
    theirs.train()
    assert theirs.evaluate()["eval_loss"] < start
    moved = {name for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    assert moved == {"selectors.0.p", "selectors.0.V"}  # the encoder is frozen
    predictions = theirs.predict(theirs.eval_dataset).predictions
    assert predictions.shape == (4, 3)


def test_a_trainer_divides_the_loss_when_it_accumulates(word_encoder: Path, tmp_path: Path) -> None:
    found = []
    for steps in (1, 2):
        model = make(word_encoder)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        options = {"per_device_train_batch_size": 4 // steps, "gradient_accumulation_steps": steps, "optim": "sgd"}
        trainer(model, word_encoder, tmp_path, max_grad_norm=0.0, **options).train()
        found.append(torch.cat([x.detach().flatten() for x in model.selectors.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_peft_wraps_it(word_encoder: Path) -> None:
    import peft

    model, inputs = make(word_encoder), batch(word_encoder, TEXTS)
    before = ask(model, inputs).logits
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["selectors.0"], task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(model, lora)
    torch.testing.assert_close(ask(wrapped, inputs).logits, before)
    trained = {name for name, x in wrapped.named_parameters() if x.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any(name.endswith("selectors.0.modules_to_save.default.p") for name in trained)
    labels = torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD([x for x in wrapped.parameters() if x.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = wrapped(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    merged = wrapped.merge_and_unload()
    assert type(merged) is MaxMarginForSequenceClassification
    assert not torch.equal(ask(merged, inputs).logits, before)


# --- encoders ---------------------------------------------------------------------------------------------------

COUNT = len(SPECIAL) + len(WORDS.split())
SIZES = {
    "vocab_size": COUNT, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "distilbert": {},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": 66},
    "mpnet": {"pad_token_id": 1, "max_position_embeddings": 66},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    "eurobert": {},
    "electra": {"embedding_size": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"},
    "roberta-prelayernorm": {"pad_token_id": 1, "max_position_embeddings": 66},
    "longformer": {"attention_window": [8, 8, 8], "pad_token_id": 1, "max_position_embeddings": 66},
}


def family(name: str, folder: Path) -> Path:
    from transformers import AutoConfig

    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    return save_encoder(folder, AutoConfig.for_model(name, **{**SIZES, **FAMILIES[name]}), tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_of_many_families(tmp_path: Path, name: str) -> None:
    from transformers import AutoModel

    folder = family(name, tmp_path / "encoder")
    encoder = pretrained_encoder(str(folder))
    assert (encoder.depth, encoder.dim, encoder.default_layer) == (3, 16, 2)
    assert encoder.longest(None) == 64
    inputs, network = batch(folder, TEXTS), AutoModel.from_pretrained(folder).eval()
    inside = inputs["attention_mask"].bool()
    asked = {"attention_mask": inputs["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        whole = network(inputs["input_ids"], **asked).hidden_states
        for layers in (0, 1, 2):
            part = encoder.model(layers)(inputs["input_ids"], **asked).hidden_states
            assert len(part) == max(layers, 1) + 1
            # Also of the last layer that is left: the norm behind all layers is not applied to it.
            torch.testing.assert_close(part[layers][inside], whole[layers][inside])
    model = make(folder)
    saved(model, tmp_path / "model", folder)
    again = load_model(tmp_path / "model")
    assert torch.equal(ask(again, inputs).logits, ask(model, inputs).logits)
    long = batch(folder, ["good " * 100])
    assert long["input_ids"].shape == (1, 64)
    assert ask(model, long).logits.isfinite().all()


def test_the_final_norm_is_dropped(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = family("modernbert", tmp_path)
    network = without_final_norm(AutoModel.from_pretrained(folder))
    assert isinstance(network.final_norm, nn.Identity)
    assert not any("final_norm" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(("name", "positions", "longest"), [("roberta", 514, 512), ("bert", 512, 512)])
def test_positions_of_roberta_start_behind_padding(tmp_path: Path, name: str, positions: int, longest: int) -> None:
    from transformers import AutoConfig

    padding = 1 if name == "roberta" else 0
    sizes = {**SIZES, "max_position_embeddings": positions, "pad_token_id": padding}
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    encoder = pretrained_encoder(str(save_encoder(tmp_path, AutoConfig.for_model(name, **sizes), tokenizer)))
    assert encoder.longest(None) == longest
    assert encoder.longest(100) == 100
    with pytest.raises(InputError, match=f"takes from 3 to {longest} word pieces"):
        encoder.longest(longest + 1)


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    folder = save_encoder(tmp_path, T5Config(vocab_size=COUNT, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match=r"has a decoder; name an encoder, as of BERT's family$"):
        pretrained_encoder(str(folder)).depth  # noqa: B018


def test_a_slow_tokenizer_is_refused(word_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, CanineTokenizer

    AutoModel.from_pretrained(word_encoder).save_pretrained(tmp_path)
    CanineTokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has a slow tokenizer, which knows no character spans"):
        pretrained_encoder(str(tmp_path)).tokenizer  # noqa: B018


def test_a_tokenizer_without_a_maximum_takes_the_encoders(word_encoder: Path) -> None:
    encoder = pretrained_encoder(str(word_encoder))
    encoder.tokenizer.model_max_length = 10**30
    assert encoder.longest(None) == 64


def test_relative_positions_have_no_maximum(tmp_path: Path) -> None:
    from transformers import XLNetConfig

    config = XLNetConfig(vocab_size=COUNT, d_model=16, n_layer=2, n_head=2, d_inner=32)
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    assert pretrained_encoder(str(save_encoder(tmp_path, config, tokenizer))).longest(None) == 512


def test_layers_that_cannot_be_left_out_are_told_in_a_line(tmp_path: Path) -> None:
    from transformers import FunnelConfig

    config = FunnelConfig(
        architectures=["FunnelModel"], vocab_size=COUNT, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=32
    )
    encoder = pretrained_encoder(str(save_encoder(tmp_path, config)))
    with pytest.raises(InputError, match=r"layers of a funnel cannot be left out; name another$"):
        encoder.model(1)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_directory_is_told_in_a_line(word_encoder: Path, tmp_path: Path, broken: str) -> None:
    folder = shutil.copytree(word_encoder, tmp_path / "encoder")
    (folder / broken).write_text("{")

    def use() -> None:
        encoder = pretrained_encoder(str(folder))
        encoder.pieces(["good"])
        encoder.model(1)

    with pytest.raises(InputError) as error:
        use()
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("data.encoder: ")
