"""A user's own arrays: what goes in comes out, and whatever is wrong is said in one line before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_maxmargin.core import LOSSES, Sequences, TokenSelector, check_sequences, exact_directions
from lightning_maxmargin.data import TensorData
from lightning_maxmargin.data.tensors import read_arrays
from lightning_maxmargin.errors import InputError

Arrays = dict[str, Tensor]


def arrays(n: int = 3, T: int = 4, d: int = 2, dtype: torch.dtype = torch.float64) -> Arrays:
    g = torch.Generator().manual_seed(0)
    return {
        "keys": torch.randn(n, T, d, generator=g, dtype=dtype),
        "labels": torch.tensor([1, -1, 1][:n]).to(dtype),
        "values": torch.randn(n, T, 5, generator=g, dtype=dtype),
        "queries": torch.randn(n, 3, generator=g, dtype=dtype),
        "mask": torch.arange(T) < torch.tensor([[4], [2], [1]][:n]),
        "planted": torch.tensor([3, 0, 0][:n]),
    }


def write(path: Path, content: Arrays) -> str:
    if path.suffix == ".npz":
        np.savez(path, **{k: t.numpy() for k, t in content.items()})  # type: ignore[arg-type]
    else:
        save_file(content, path)
    return str(path)


both = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    want = arrays(dtype=dtype)
    data = TensorData(write(tmp_path / f"a{suffix}", want))
    got = data.sequences("train")
    assert got is not None
    for name, tensor in want.items():
        assert torch.equal(getattr(got, name).to(tensor.dtype), tensor), name
    assert got.keys.dtype == got.values.dtype == dtype
    assert got.mask is not None
    assert got.mask.dtype == torch.bool
    assert (data.dim, data.value_dim, data.query_dim) == (2, 5, 3)


@both
def test_keys_and_labels_are_enough(tmp_path: Path, suffix: str) -> None:
    full = arrays()
    data = TensorData(write(tmp_path / f"a{suffix}", {k: full[k] for k in ("keys", "labels")}))
    got = data.sequences("train")
    assert got is not None
    assert got.values is got.keys
    assert got.mask is None
    assert got.queries is None
    assert data.query_dim is None


@both
def test_splits(tmp_path: Path, suffix: str) -> None:
    paths = {}
    for n, split in ((3, "train"), (2, "val"), (1, "test")):
        paths[split] = write(tmp_path / f"{split}{suffix}", arrays(n))
    data = TensorData(paths["train"], paths["val"], paths["test"], batch_size=2)
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 3, "val": 2, "test": 1}
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
    assert [sum(len(b) for b in loader) for loader in loaders] == [3, 2, 1, 1]  # type: ignore[arg-type, misc]
    with pytest.raises(InputError, match=r"data \(val\): label 7"):
        TensorData(paths["train"], write(tmp_path / f"bad{suffix}", {**arrays(2), "labels": torch.tensor([1, 7])}))


@both
def test_integers_are_welcome(tmp_path: Path, suffix: str) -> None:
    content = {
        "keys": torch.arange(6).view(3, 2, 1),
        "labels": torch.tensor([1, -1, 1], dtype=torch.int8),
        "mask": torch.tensor([[1, 1], [1, 0], [0, 1]], dtype=torch.uint8),
    }
    got = TensorData(write(tmp_path / f"a{suffix}", content)).sequences("train")
    assert got is not None
    assert got.mask is not None
    assert got.keys.dtype == got.labels.dtype == torch.float64
    assert got.mask.tolist() == [[True, True], [True, False], [False, True]]


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_classes(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    content = {**arrays(), "labels": torch.tensor([0, 2, 1], dtype=dtype)}
    got = TensorData(write(tmp_path / f"a{suffix}", content), num_classes=3).sequences("train")
    assert got is not None
    assert got.labels.dtype == torch.int64
    assert got.labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("filler", [torch.nan, torch.inf])
def test_padding_may_hold_nan(tmp_path: Path, filler: float) -> None:
    content = arrays()
    padding = ~content["mask"][..., None]
    content = {**content, **{k: content[k].masked_fill(padding, filler) for k in ("keys", "values")}}
    assert len(TensorData(write(tmp_path / "a.npz", content)).splits["train"]) == 3


def test_nan_on_padding_is_harmless(tmp_path: Path) -> None:
    content = arrays()
    padding = ~content["mask"][..., None]
    clean = TensorData(write(tmp_path / "a.npz", content)).sequences("train")
    for filler in (torch.nan, torch.inf):
        dirty_arrays = {**content, **{k: content[k].masked_fill(padding, filler) for k in ("keys", "values")}}
        dirty = TensorData(write(tmp_path / "b.npz", dirty_arrays)).sequences("train")
        for got, want in zip(measured(dirty), measured(clean), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-15)


def measured(data: Sequences | None) -> list[Tensor]:
    """Everything a training step reads of a batch: output, exact direction, autograd gradient."""
    assert data is not None
    model = TokenSelector(2, 5, query="separate", query_dim=3).double()
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(torch.linspace(-1, 1, w.numel()).view(w.shape))
    output = model(data)
    loss = LOSSES["logistic"]
    loss(output.logits, data.labels).mean().backward()
    d = exact_directions(data, output.scores.detach(), model.v.detach(), loss)  # type: ignore[arg-type]
    return [output.logits, output.attention, d.attention, d.head, d.loss, *(w.grad for w in model.parameters())]


Change = Callable[[Arrays], Any]
N = torch.nan
BAD: dict[str, tuple[Change, str]] = {
    "flat keys": (
        lambda a: a.update(keys=torch.ones(3, 4)),
        r"keys have shape \(3, 4\); expected \(sequences, tokens, dim",
    ),
    "no sequence": (lambda a: a.update(keys=torch.ones(0, 4, 2)), r"keys have shape \(0, 4, 2\); at least one"),
    "no token": (lambda a: a.update(keys=torch.ones(3, 0, 2)), r"keys have shape \(3, 0, 2\); at least one"),
    "labels too many": (lambda a: a.update(labels=torch.ones(4)), r"labels have shape \(4,\); expected \(3\)"),
    "labels 2-d": (lambda a: a.update(labels=torch.ones(3, 1)), r"labels have shape \(3, 1\)"),
    "mask shape": (lambda a: a.update(mask=torch.ones(3, 5)), r"mask have shape \(3, 5\).*expected \(3, 4\)"),
    "values shape": (lambda a: a.update(values=torch.ones(3, 3, 5)), r"values have shape.*expected \(3, 4, dv\)"),
    "values flat": (lambda a: a.update(values=torch.ones(3, 4)), r"values have shape \(3, 4\)"),
    "queries per token": (lambda a: a.update(queries=torch.ones(3, 4, 2)), r"queries have shape.*expected \(3, dq\)"),
    "planted too many": (lambda a: a.update(planted=torch.zeros(5)), r"planted have shape \(5,\); expected \(3\)"),
    "mask added to scores": (
        lambda a: a.update(mask=torch.where(a["mask"].bool(), 0.0, -1e4)),
        r"mask holds -10000 at \[\d, \d\]; expected 1",
    ),
    "mask of shares": (lambda a: a.update(mask=a["mask"] * 0.5), r"mask holds 0\.5 at \[0, 0\]; expected 1"),
    "planted between": (lambda a: a.update(planted=torch.tensor([0, 0.5, 0])), r"planted holds 0\.5 at \[1\]"),
    "planted NaN": (lambda a: a.update(planted=torch.tensor([0, N, 0])), r"planted holds nan at \[1\]"),
    "instance between": (lambda a: a.update(instance=torch.tensor([0, 1, 1.5])), r"instance holds 1\.5 at \[2\]"),
    "row hidden": (lambda a: a["mask"][1].zero_(), r"sequence 1 has no token"),
    "NaN keys": (lambda a: a["keys"][2, 0].fill_(N), r"keys of sequence 2 hold NaN or Inf"),
    "Inf values": (lambda a: a["values"][1, 1, 4].fill_(torch.inf), r"values of sequence 1 hold NaN or Inf"),
    "NaN queries": (lambda a: a["queries"][0, 2].fill_(N), r"queries of sequence 0 hold NaN or Inf"),
    "NaN without mask": (lambda a: (a.pop("mask"), a["keys"][1, 3].fill_(N)), r"keys of sequence 1 hold NaN or Inf"),
    "label 0": (lambda a: a["labels"][1].zero_(), r"label 0 of sequence 1 is outside \{-1, 1\}"),
    "label .5": (lambda a: a["labels"][2].fill_(0.5), r"label 0\.5 of sequence 2 is outside"),
    "label NaN": (lambda a: a["labels"][0].fill_(N), r"label nan of sequence 0 is outside"),
    "unknown array": (lambda a: a.update(weights=torch.ones(3)), r"unknown array 'weights'; keys, labels, values"),
    "misspelt array": (lambda a: a.update(Keys=a.pop("keys")), r"no array 'keys'; it holds .*Keys"),
    "no labels": (lambda a: a.pop("labels"), r"no array 'labels'; it holds .*keys"),
    "nothing": (lambda a: a.clear(), r"no array 'keys'; it holds nothing"),
}


def refused(message: str, *arguments: Any, **named: Any) -> None:
    with pytest.raises(InputError, match=message) as error:
        TensorData(*arguments, **named)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@both
@pytest.mark.parametrize("case", BAD)
def test_bad_arrays(tmp_path: Path, suffix: str, case: str) -> None:
    change, message = BAD[case]
    content = arrays()
    change(content)
    refused(message, write(tmp_path / f"a{suffix}", content))


OTHER_MAKERS: dict[str, Callable[[Any], Any]] = {
    "Fortran order": np.asfortranarray,
    "strided": lambda keys: np.repeat(keys, 2, 0)[::2],
    "reversed": lambda keys: keys[:, ::-1][:, ::-1],
    "float16": lambda keys: keys.astype("f2").astype("f8").astype("f2"),
    "big endian": lambda keys: keys.astype(">f8"),
    "big endian single": lambda keys: keys.astype(">f4"),
    "long double": lambda keys: keys.astype(np.longdouble),
    "int8": lambda keys: keys.astype("i1"),
    "big endian uint16": lambda keys: np.abs(keys).astype(">u2"),
    "bool": lambda keys: keys > 0,
}


@pytest.mark.parametrize("maker", OTHER_MAKERS)
def test_arrays_as_other_programs_write_them(tmp_path: Path, maker: str) -> None:
    rng = np.random.default_rng(0)
    keys, labels = np.round(8 * rng.normal(size=(6, 5, 4))), rng.choice([-1.0, 1.0], 6)
    given = OTHER_MAKERS[maker](keys)
    np.savez(tmp_path / "a.npz", keys=given, labels=labels.astype(">f4"))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz").keys.double().numpy(), given.astype("f8"))
    if given.dtype.kind == "f" and given.dtype.isnative and given.dtype != np.longdouble:
        mapped = read_arrays(tmp_path / "a.npz", mapped=True).keys
        np.testing.assert_array_equal(mapped.double().numpy(), given.astype("f8"))
    else:
        message = r"stays? in (its|their) file; store (it|them) as float32, or mapped: false"
        refused(message, str(tmp_path / "a.npz"), mapped=True)


@pytest.mark.parametrize("kind", ["U8", object, "M8[s]", complex, [("a", "f8")]], ids=str)
def test_arrays_of_no_real_numbers(tmp_path: Path, kind: Any) -> None:
    keys = np.zeros((3, 4, 2), dtype=kind)
    np.savez(tmp_path / "a.npz", keys=keys, labels=np.ones(3))
    refused("expected real numbers", str(tmp_path / "a.npz"))
    refused("expected real numbers", str(tmp_path / "a.npz"), mapped=True)


@pytest.mark.parametrize("label", [3.0, -1.0, 0.5])
def test_labels_outside_the_classes(tmp_path: Path, label: float) -> None:
    path = write(tmp_path / "a.npz", {**arrays(), "labels": torch.tensor([0, 1, label])})
    refused(rf"label {label:g} of sequence 2 is outside the classes 0\.\.2", path, num_classes=3)


def test_message_names_the_split() -> None:
    bad = Sequences(torch.ones(1, 1, 1), torch.zeros(1))
    with pytest.raises(InputError, match=r"^here: label 0"):
        check_sequences(bad, where="here")
    good = Sequences(torch.ones(1, 1, 1), torch.ones(1))
    assert check_sequences(good) is good


def test_missing_file(tmp_path: Path) -> None:
    refused("no such file", str(tmp_path / "none.npz"))
    refused("no such file", str(tmp_path))


@pytest.mark.parametrize("name", ["a.pt", "a.npy", "a.csv", "a"])
def test_wrong_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    refused(r"unknown format .*\.npz and \.safetensors are read", str(tmp_path / name))


@both
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "headless"])
def test_damaged_file(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, arrays())
    whole = path.read_bytes()
    half = len(whole) // 2
    broken = {"empty": b"", "text": b"keys,labels\n1,2\n", "truncated": whole[:half], "headless": whole[64:]}
    path.write_bytes(broken[damage])
    refused("cannot be read", str(path))


def test_flipped_bit_is_noticed_in_npz(tmp_path: Path) -> None:
    """The zip carries a checksum; .safetensors carries none."""
    path = tmp_path / "a.npz"
    write(path, arrays())
    whole = bytearray(path.read_bytes())
    at = whole.index(arrays()["keys"].numpy().tobytes()[:8])
    whole[at] ^= 1
    path.write_bytes(whole)
    refused("cannot be read", str(path))


class Payload:
    """What a hostile file would hold."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_object_arrays_are_refused_and_run_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "a.npz", tmp_path / "owned"
    hostile = np.empty(3, dtype=object)
    hostile[:] = [Payload(target)] * 3
    np.savez(path, keys=hostile, labels=np.ones(3))
    refused("an array is of Python objects; expected real numbers", str(path))
    assert not target.exists()


def test_a_pickle_with_our_suffix_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    import pickle

    path, target = tmp_path / "a.npz", tmp_path / "owned"
    path.write_bytes(pickle.dumps(Payload(target)))
    refused("cannot be read", str(path))
    assert not target.exists()


def test_text_and_complex_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, keys=np.full((3, 4, 2), "x"), labels=np.ones(3))
    refused("array 'keys' is str32; expected real numbers", str(path))
    np.savez(path, keys=np.full((3, 4, 2), 1j), labels=np.ones(3))
    refused("complex", str(path))


@pytest.mark.parametrize("planted", [[0, 4, 0], [-1, 0, 0]])
def test_planted_outside_the_sequence_is_refused(planted: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {**arrays(), "planted": torch.tensor(planted)})
    with pytest.raises(InputError, match="planted token"):
        TensorData(path)
