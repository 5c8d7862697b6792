"""The trained transformers of experiment 8: their data, what is watched, and their claims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce import transformer_data
from lightning_maxmargin.reproduce.command import FOLDER
from lightning_maxmargin.reproduce.experiment import read_experiment
from lightning_maxmargin.reproduce.maps import map_panels
from lightning_maxmargin.reproduce.sparsify import history_of, sparsify, train
from lightning_maxmargin.reproduce.transformer import ClsTransformer
from lightning_maxmargin.reproduce.transformer_data import digits, image_of, reviews

SMALL = {"epochs": 2, "every": 1, "samples": 8}


def test_patches_are_the_image_in_pieces() -> None:
    from sklearn.datasets import load_digits

    data = digits(seed=4, test=100)
    images = load_digits().images
    patches = torch.cat([s.tensors[0] for s in (data.train, data.test)])
    assert (len(data.train), len(data.test)) == (1697, 100)
    rebuilt = {image_of(p * 16).numpy().astype(int).tobytes() for p in patches}
    assert rebuilt == {image.astype(int).tobytes() for image in images}


def test_reviews_hide_padding_and_keep_the_words() -> None:
    data = reviews(length=10)
    x, labels, mask = data.train.tensors
    assert x.shape == (6530, 10, 384)
    assert set(labels.tolist()) == {0, 1}
    assert data.words is not None
    assert [len(words) for words in data.words] == mask.sum(1).tolist()
    places = {w: [(i, row.index(w)) for i, row in enumerate(data.words) if w in row][:20] for w in ("the", "film")}
    the, film = (torch.stack([x[at] for at in places[w]]) for w in ("the", "film"))
    assert torch.equal(the, the[:1].expand_as(the)), "a static embedding is that of the word wherever it stands"
    assert not torch.equal(the, film)


def test_without_scikit_learn_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_data, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^reproduce: scikit-learn is missing; install it with: pip install .*reprod"):
        digits()


def test_padding_changes_no_answer() -> None:
    torch.manual_seed(0)
    module = ClsTransformer(3, 6, 2, dim=8).eval()
    x = torch.randn(4, 6, 3)
    mask = torch.arange(6) < torch.tensor([6, 3, 2, 1])[:, None]
    changed = torch.where(mask[:, :, None], x, 100 * torch.randn(4, 6, 3))
    torch.testing.assert_close(module(x, mask), module(changed, mask))
    assert not torch.allclose(module(x), module(changed))


@pytest.mark.parametrize("name", ["digits", "reviews"])
def test_the_rows_watched_are_those_the_module_attends_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits() if name == "digits" else reviews(length=12)
    module, monitor = train(data, lambda _: None, 1, 1, 8, 0, {"dim": 8})
    seen: list[torch.Tensor] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        seen.append((scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)[:, :, 0])
        return real(q, k, v, mask)

    monkeypatch.setattr("lightning_maxmargin.reproduce.transformer.scaled_dot_product_attention", spy)
    x, _, *mask = (t[:8] for t in data.train.tensors)
    with torch.no_grad():
        module.eval()(x, *mask)
    assert monitor.heads is not None
    for layer in range(2):
        for head in range(2):
            rows = monitor.heads.attention[f"layer{layer + 1}/head{head}"].float()
            torch.testing.assert_close(rows, seen[layer][:, head], atol=1e-5, rtol=1e-4)


def test_a_run_repeats_itself_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    ticks: list[float] = []
    first, again = (sparsify(ticks.append, "digits", **SMALL, model={"dim": 8}) for _ in range(2))
    assert first.numbers == again.numbers
    assert torch.equal(torch.get_rng_state(), before)
    assert ticks == [0.5, 1.0, 0.5, 1.0]
    assert not [k for k, x in first.numbers.items() if not np.isfinite(x)]
    for line in (line for panel in first.panels for line in panel.lines):
        assert line.x.tolist() == [0, 1, 2]


def test_maps_show_the_last_layer_without_cls() -> None:
    data = digits()
    _, monitor = train(data, lambda _: None, 1, 1, 8, 0, {"dim": 8})
    (panel,) = map_panels(data, monitor.rows, history_of(monitor)["epoch"])
    assert panel.image is not None
    rows = monitor.rows[-1][1]
    expected = (rows["layer2/head0"] + rows["layer2/head1"])[0, 1:].view(4, 4) / 2
    # After the image and the map at the start; a patch is 2 x 2 pixels.
    np.testing.assert_allclose(panel.image[:8:2, 18:26:2], expected, rtol=1e-6)


def test_unknown_data_is_refused() -> None:
    with pytest.raises(InputError, match="none of digits, reviews"):
        sparsify(lambda _: None, "cifar")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer_digits", "transformer_text"])
def test_claims_hold_with_quick_settings(name: str) -> None:
    experiment = read_experiment(FOLDER / f"{name}.yaml")
    numbers = experiment.run(lambda _: None, quick=True).numbers
    assert [c.claim for c in experiment.claims if not c.holds(numbers)] == []
