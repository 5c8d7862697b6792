"""What monitors show before, during and after a run, their figures without a run directory, and texts by attention."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_maxmargin import AttentionSource, Ensemble, HeadMonitor, JointSelection, MarginMonitor
from lightning_maxmargin.callbacks import EnsembleMonitor
from lightning_maxmargin.callbacks.shown_heads import grid_of_heads
from lightning_maxmargin.callbacks.text_monitor import TextMonitor
from lightning_maxmargin.data import PaperData, RandomInstances
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.heads import short_number
from lightning_maxmargin.figures.monitors import draw_heads_key, metrics_of
from tests.callbacks.test_margin_monitor import trainer
from tests.notebook.test_shown import said
from tests.text.conftest import reviews, tiny_encoder, write_rows  # noqa: F401  (a fixture)

WORDS = 9


class Tagger(pl.LightningModule):
    """A transformer of one layer on ids, in batches as Hugging Face's tokenizers make them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.embed(batch["input_ids"])
        x, _ = self.attention(x, x, x, key_padding_mask=batch["attention_mask"] == 0)
        return self.out(x[:, 0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Tokenizer:
    """Of ids."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"<w{i}>" for i in ids]


def batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(1, WORDS, (6, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, 3:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": (ids[:, 1] > 4).long()}
    return [{name: x[at : at + 3] for name, x in batch.items()} for at in (0, 3)]


@pytest.fixture(scope="module")
def heads() -> HeadMonitor:
    torch.manual_seed(0)
    source = AttentionSource(attention="attention")
    monitor = HeadMonitor({"block": source}, batches(), samples=6)
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    trainer([monitor], 10).fit(Tagger(), loader)
    return monitor


@pytest.fixture(scope="module")
def margins() -> MarginMonitor:
    monitor = MarginMonitor()
    trainer([monitor], 100).fit(JointSelection(dim=2, attention_lr=0.1, head_lr=0.1), PaperData("joint_relaxed"))
    return monitor


@pytest.fixture(scope="module")
def ensembles() -> EnsembleMonitor:
    monitor = EnsembleMonitor()
    data = RandomInstances(B=6, n=2, T=3, d=4)
    trainer([monitor], 200).fit(Ensemble(dim=4, attention_lr=1.0, head_lr=1.0), data)
    return monitor


def test_every_monitor_shows_that_it_has_measured_nothing() -> None:
    source = AttentionSource(attention="attention")
    for monitor in (MarginMonitor(), EnsembleMonitor(), TextMonitor(), HeadMonitor(source, batches())):
        assert "nothing measured yet" in said(monitor)
        with pytest.raises(InputError, match="nothing measured yet"):
            monitor.plot()


def test_a_margin_monitor_shows_its_numbers_in_words_and_a_picture(margins: MarginMonitor) -> None:
    page = margins._repr_html_()
    shown = said(page)
    assert shown.startswith(f"MarginMonitor at step 100, {len(margins.history)} evaluations")
    assert f"svm/limit {margins.last['svm/limit']}" in shown
    assert "direction_gap/strict" in shown, "behind the fold"
    assert re.search('<img src="data:image/png;base64,iVBOR', page)
    assert "SVM of the attention is certified" in shown


def test_the_message_is_shown_escaped(margins: MarginMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margins, "message", "<b>stalled</b>")
    assert "&lt;b&gt;stalled&lt;/b&gt;" in margins._repr_html_()


def test_a_monitor_of_a_checkpoint_shows_its_history(margins: MarginMonitor) -> None:
    restored = MarginMonitor()
    restored.load_state_dict(margins.state_dict())
    assert restored.last == {}
    assert "direction_gap/strict" in said(restored)
    assert isinstance(restored.plot(), Figure)


def test_a_head_monitor_shows_every_head_and_its_status(heads: HeadMonitor) -> None:
    page = heads._repr_html_()
    for head in range(2):
        share = heads.last[f"block/head{head}/relative_margin/attention"]
        shown = "–" if share is None else short_number(share)
        status = heads.last[f"block/head{head}/status/attention"]
        assert re.search(f'title="block/head{head}: {status}, relative_margin/attention [^"]*">{shown}</td>', page)
    assert "heads/certified" in said(page)


@pytest.mark.parametrize("share", [float("nan"), float("inf"), None, -0.5, 0.0, 2.0])
def test_a_head_is_shown_whatever_its_share(share: float | None) -> None:
    page = str(grid_of_heads({"block/head0/relative_margin/attention": share}))
    assert "head0: unknown" in page
    assert ("–</td>" in page) == (share is None or not math.isfinite(share))


def test_an_ensemble_shows_its_shares(ensembles: EnsembleMonitor) -> None:
    assert "ensemble/instances 6" in said(ensembles)


# --- figures -----------------------------------------------------------------------------------------------------


def points(figure: Any) -> dict[str, list[tuple[float, float]]]:
    """What was drawn, by the label of the line."""
    lines = (line for ax in figure.axes for line in ax.get_lines())
    return {str(line.get_label()): list(zip(*map(list, line.get_data()), strict=True)) for line in lines}


def test_a_number_is_drawn_as_it_was_measured(margins: MarginMonitor) -> None:
    drawn = next(iter(points(margins.plot("norm_ratio")).values()))
    assert drawn == [(row["step"], row["norm_ratio"]) for row in margins.history if row["norm_ratio"] is not None]
    against = next(iter(points(margins.plot("attention/entropy", against="norm/attention")).values()))
    assert against == [(row["norm/attention"], row["attention/entropy"]) for row in margins.history]


def test_the_overview_of_a_margin_monitor_has_three_panels(margins: MarginMonitor) -> None:
    assert len(margins.plot().axes) == 3
    assert {"attention", "head", "mass on the selected token"} <= points(margins.plot()).keys()


def test_the_axes_of_a_user_are_drawn_into(margins: MarginMonitor, heads: HeadMonitor) -> None:
    figure = Figure()
    axes = figure.subplots(1, 3)
    assert margins.plot("relative_margin", ax=axes[0]) is figure
    assert margins.plot(ax=axes[1]) is figure
    assert heads.plot(ax=axes[2]) is figure
    assert all(ax.get_lines() for ax in axes[:2])
    assert axes[2].get_images()


def test_all_heads_are_drawn_and_the_median_of_a_layer(heads: HeadMonitor) -> None:
    panels = [ax for ax in heads.plot().axes if ax.get_images()]
    assert [ax.get_images()[0].get_array().shape for ax in panels] == [(1, 2), (1, 2)]
    drawn = points(heads.plot("attention/entropy"))
    entropies = [[row[f"block/head{h}/attention/entropy"] for h in range(2)] for row in heads.history]
    assert [y for _, y in drawn["block"]] == pytest.approx([sum(both) / 2 for both in entropies])


def test_one_head_and_a_count_are_drawn_by_their_whole_names(heads: HeadMonitor) -> None:
    for key in ("block/head1/attention/entropy", "heads/certified"):
        assert len(points(heads.plot(key))) == 1


def test_an_ensemble_is_drawn_without_a_file(ensembles: EnsembleMonitor) -> None:
    assert len(ensembles.plot().axes) == 2
    assert ensembles.plot("ensemble/settled").axes[0].get_lines()


@pytest.mark.parametrize("key", ["attention/entrpy", "<script>"])
def test_an_unknown_number_is_refused_with_the_nearest(heads: HeadMonitor, margins: MarginMonitor, key: str) -> None:
    for monitor in (heads, margins):
        with pytest.raises(InputError, match=f"no numbers '{key}'" + ("; near it .*entropy" if "ent" in key else "")):
            monitor.plot(key)


def test_a_head_without_a_number_at_some_step_is_drawn_where_it_has_one() -> None:
    keys = ("head0/attention/entropy", "head1/attention/entropy")
    history = [{"step": step, keys[0]: x, keys[1]: None} for step, x in ((1, None), (2, 0.5))]
    assert points(draw_heads_key(metrics_of(history), "attention/entropy"))["heads"] == [(2, 0.5)]


def test_a_figure_shows_itself_without_pyplot(margins: MarginMonitor) -> None:
    data, size = margins.plot("norm_ratio")._repr_png_()  # type: ignore[attr-defined]
    assert data.startswith(b"\x89PNG")
    assert size["width"] == 720


# --- texts -------------------------------------------------------------------------------------------------------


def test_texts_are_shaded_by_the_attention_of_a_head(heads: HeadMonitor) -> None:
    shown = heads.show(Tokenizer(), head="block/head1", samples=3)
    ids, mask = (torch.cat([batch[name] for batch in batches()]) for name in ("input_ids", "attention_mask"))
    attention = heads.heads.attention["block/head1"]  # type: ignore[union-attr]
    for i, text in enumerate(shown.texts):
        kept = mask[i] > 0
        assert text.words == [f"<w{x}>" for x in ids[i][kept].tolist()]
        assert text.weights == attention[i][kept].tolist()
        assert sum(text.weights) == pytest.approx(1)
    assert len(shown) == 3
    assert "<w" in said(shown)
    assert "block/head1 at step 10" in str(shown)


def test_a_number_of_samples_beyond_those_there_are_is_all(heads: HeadMonitor) -> None:
    assert len(heads.show(Tokenizer(), samples=100)) == 6


def other_forms() -> list[Any]:
    """Batches that are no dictionaries."""
    ids = batches()[0]["input_ids"]
    return [ids, (ids, torch.zeros(3)), type("Batch", (), {"input_ids": ids})(), [torch.zeros(3, 5), ids]]


@pytest.mark.parametrize("batch", other_forms(), ids=["tensor", "tuple", "object", "list"])
def test_ids_are_found_in_batches_of_all_forms(batch: Any) -> None:
    from lightning_maxmargin.callbacks.shown_heads import token_rows

    assert [row for row, _ in token_rows([batch])] == batches()[0]["input_ids"].tolist()


def wrong_calls() -> dict[str, Callable[[HeadMonitor], Any]]:
    unfit = HeadMonitor(AttentionSource(attention="attention"), batches())
    return {
        "no head 'block/head7'; one of block/head0": lambda heads: heads.show(Tokenizer(), head="block/head7"),
        "a str is no tokenizer": lambda heads: heads.show("bert"),
        "train first": lambda heads: unfit.show(Tokenizer()),
    }


@pytest.mark.parametrize("told", wrong_calls())
def test_what_cannot_be_shown_is_refused_in_a_line(heads: HeadMonitor, told: str) -> None:
    with pytest.raises(InputError, match=told):
        wrong_calls()[told](heads)


def test_batches_without_text_are_refused() -> None:
    from lightning_maxmargin.callbacks.shown_heads import token_rows

    with pytest.raises(InputError, match="no input_ids"):
        list(token_rows([torch.zeros(3, 4, 5)]))


def test_sequences_are_shaded_by_the_attention_as_it_is(margins: MarginMonitor) -> None:
    shown = margins.show([["origin", "corner"]] * 3, samples=2)
    assert [text.words for text in shown.texts] == [["origin", "corner"]] * 2
    mass = sum(max(text.weights) for text in margins.show([["a", "b"]] * 3).texts) / 3
    assert mass == pytest.approx(margins.last["attention/selected_mass"], rel=1e-5)


def test_sequences_without_words_are_refused(margins: MarginMonitor) -> None:
    with pytest.raises(InputError, match="these tokens are numbers"):
        margins.show()
    with pytest.raises(InputError, match="sequence 0 has 2 tokens and 1 words"):
        margins.show([["a"]] * 3)
    with pytest.raises(InputError, match="train first"):
        MarginMonitor().show([["a"]])


def test_a_text_monitor_shows_documents_as_they_are_read(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    from lightning_maxmargin import TextData, TextSelection

    train = write_rows(tmp_path / "train.jsonl", reviews(60, 0))
    data = TextData(str(train), encoder=str(tiny_encoder), cache_dir=str(tmp_path), seed=0)
    assert "not read yet" in said(data)
    monitor = TextMonitor(samples=20, budget=1.0)
    module = TextSelection(lr=0.02)
    with pytest.raises(InputError, match="train first"):
        monitor.show()
    run = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[monitor],
    )  # fmt: skip
    run.fit(module, datamodule=data)
    modes = [part.training for part in module.modules()]
    shown = monitor.show(samples=3)
    assert [part.training for part in module.modules()] == modes
    texts = data.splits["train"].documents.texts
    for text in shown.texts:
        number, title = text.title.split(": ", 1)
        assert " ".join(text.words).replace(" .", ".") == texts[int(number)].replace(" .", ".")
        assert sum(text.weights) == pytest.approx(1, abs=1e-4)
        assert title.endswith(("labelled good", "labelled bad"))
    assert "margin/median_lead" in said(monitor)
    assert len(next(iter(points(monitor.plot()).values()))) == 3
    assert "train 54 27 of" in said(data)


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "notebooks.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, {})
    assert (tmp_path / "convergence.png").stat().st_size > 10_000
