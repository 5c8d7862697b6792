"""From the papers' relaxed example to a certificate: train, watch, solve, check, and then your own arrays."""

# %% [markdown]
# # From an example to a certificate
#
# Attention is trained by gradient descent together with a linear head. Its direction converges to a hard-margin SVM
# that can be stated, solved and certified. This notebook trains the *relaxed* example of "Max-Margin Token Selection"
# (arXiv 2306.13596), watches it converge, and checks the certificate of the SVM with its own numbers. It takes less
# than a minute.

# %%
from lightning_maxmargin import JointSelection, MarginMonitor, solve_att_svm, solve_joint_svm, solve_label_svm
from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import PaperData
import pytorch_lightning as pl
import torch

data = PaperData("joint_relaxed")
train = data.sequences("train")
train

# %% [markdown]
# Three sequences of two tokens in the plane. The first token of each is the origin; the second carries the label, and a
# trained attention selects it. What these tokens are:

# %%
for i, (tokens, label) in enumerate(zip(train.keys.tolist(), train.labels.tolist(), strict=True)):
    print(f"sequence {i}, label {label:+.0f}: {tokens}")

# %% [markdown]
# ## The limit, before anything is trained
#
# With the second tokens selected, the head converges to the label SVM of these tokens, and the attention to the SVM
# that puts the selected token ahead of the others: by 1 where the input supports the head, by 0 where it does not.
# The third input does not, so the strict SVM, (5/4, 1/4), is not the limit: the relaxed one, (1, 0), is.

# %%
selected = torch.tensor([1, 1, 1])
strict = solve_joint_svm(train.keys, train.values, train.labels, selected, limit="strict")
relaxed = solve_joint_svm(train.keys, train.values, train.labels, selected, limit="relaxed")
relaxed

# %% [markdown]
# ## What "certified" means
#
# The answer carries its proof: a direction w that meets all rows, and multipliers u whose combination of the rows is w.
# Any w' that meets the rows has ‖w'‖² ≥ 2 b'u − ‖D'u‖², so nothing shorter exists once both sides agree. In numbers:

# %%
w, dual, rhs = relaxed.attention.direction, relaxed.attention.dual, relaxed.rhs
rows = train.keys[torch.arange(3), selected][:, None] - train.keys  # x_alpha - x_t, (n, T, d)
competes = torch.tensor([[True, False]] * 3)  # every token but the selected one

lead = (rows @ w)[competes]
combined = (dual[..., None] * rows)[competes].sum(0)
length = w.square().sum()
bound = 2 * (rhs * dual)[competes].sum() - combined.square().sum()
print(f"leads {lead.tolist()} of at least {rhs[competes].tolist()}: {bool((lead >= rhs[competes] - 1e-7).all())}")
print(f"multipliers {dual[competes].tolist()}, none negative: {bool((dual >= 0).all())}")
print(f"their combination of the rows is w to within {(combined - w).abs().max():.1e}")
print(f"squared length {length:.15f}, lower bound {bound:.15f}, relative gap {abs(length - bound) / length:.1e}")
assert (lead >= rhs[competes] - 1e-7).all()
assert (dual >= 0).all()
assert abs(length - bound) <= 1e-8 * length

# %% [markdown]
# ## Train, and watch
#
# `JointSelection` is a LightningModule, `MarginMonitor` a callback: at geometrically spaced steps it measures margins
# and directions against the SVMs of the tokens that are selected then. The monitor shows itself.


# %%
def fitted(gradient: str) -> MarginMonitor:
    monitor = MarginMonitor()
    trainer = pl.Trainer(
        max_steps=3000, max_epochs=-1, callbacks=[monitor], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(JointSelection(dim=2, attention_lr=0.1, head_lr=0.1, gradient=gradient), data)
    return monitor


exact = fitted("exact")
exact

# %% [markdown]
# The gap to the relaxed SVM falls as 1 / norm², while that to the strict one levels off: the relaxed limit is where the
# run goes. With ordinary gradients the attention saturates, softmax rounds to 0 and 1, and the run stalls:

# %%
naive = fitted("naive")
print(naive.message)
print(f"gap to the relaxed SVM: exact {exact.last['direction_gap/relaxed']:.1e}, naive "
      f"{naive.last['direction_gap/relaxed']:.1e}")  # fmt: skip
assert exact.last["direction_gap/relaxed"] < naive.last["direction_gap/relaxed"]

# %% [markdown]
# Both in one picture. `plot` draws any number of the history, against the step or another number, also into your axes.

# %%
figure = exact.plot("direction_gap/relaxed", against="norm/attention")
naive.plot("direction_gap/relaxed", against="norm/attention", ax=figure.axes[0])
for line, name in zip(figure.axes[0].get_lines(), ("exact", "naive"), strict=True):
    line.set_label(name)
    line.set_linestyle("-" if name == "exact" else "--")
figure.axes[0].set_ylim(1e-7, 1)
figure.axes[0].legend()
figure

# %% [markdown]
# ## No limit, with a proof
#
# Where no direction meets the rows the answer is `infeasible`, and the multipliers are a Farkas vector: they combine
# the rows to zero while their right-hand sides sum to 1, which no direction can satisfy.

# %%
point = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
opposed = solve_label_svm(point, torch.tensor([1, -1]))
labelled = torch.tensor([1.0, -1.0])[:, None] * point
print("combination of the rows:", (opposed.dual[:, None] * labelled).sum(0).tolist(), "sum:", opposed.dual.sum().item())
assert opposed.infeasible
opposed

# %% [markdown]
# ## Your own arrays
#
# `Sequences` takes keys (n, T, d) and labels; a mask where they are padded, queries where each sequence asks in its own
# way. The monitor takes them as they are, and so does a file of them (`TensorData("mine.npz")`,
# `maxmargin fit --config tensor --data.path mine.npz`).

# %%
generator = torch.Generator().manual_seed(3)
keys = torch.nn.functional.normalize(torch.randn(8, 6, 12, generator=generator, dtype=torch.float64), dim=-1)
labels = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
mine = Sequences(keys, labels)


class Mine(pl.LightningDataModule):
    """Your loader: batches of Sequences."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader([mine], batch_size=None)


watch = MarginMonitor(data=mine)
trainer = pl.Trainer(
    max_steps=2000, max_epochs=-1, callbacks=[watch], accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(JointSelection(dim=12, attention_lr=1.0, head_lr=1.0), Mine())
watch

# %% [markdown]
# The tokens that the attention selects at the end, and the SVM that belongs to them:

# %%
print("selected:", watch.snapshot.selected.tolist())
solve_att_svm(keys, watch.snapshot.selected)
