"""The mathematics of max-margin token selection, in pure torch: f(X_i) = v' X_i' softmax(a_i).

Notation, used under these names in the whole package:

========  ==================  ==================  ==========================================================
paper     name                shape               meaning
========  ==================  ==================  ==========================================================
X_i       ``values``          (n, T, d)           tokens the head reads
K_i       ``keys``            (n, T, d)           tokens the attention scores; ``values`` unless separate
Y_i       ``labels``          (n,)                -1 or +1, or a class index
z_i       ``queries``         (n, dq) or (dq,)    query: one per sequence, or the shared prompt
W         ``W``               (d, dq)             attention weights, a_it = k_it' W z_i
K Q'      ``K``, ``Q``        (d, m), (dq, m)     factors of W
p         ``p``               (d,)                W z for the shared prompt: a_it = k_it' p
v, V      ``v``, ``V``        (d,), (K, d)        head: linear binary, multiclass
a_it      ``scores``          (n, T)              before softmax
s_it      ``attention``       (n, T)              after softmax, zero on padding
gamma_it  ``token_scores``    (n, T)              Y_i v' x_it
alpha_i   ``selected``        (n,)                argmax_t a_it of the trained attention
m_i       ``label_margins``   (n,)                Y_i f(X_i)
rho       ``norm_ratio``      number              ||v|| / ||p||
========  ==================  ==================  ==========================================================

Sources: Ataee Tarzanagh, Li, Zhang, Oymak, "Max-Margin Token Selection in Attention Mechanism" (NeurIPS 2023);
Ataee Tarzanagh, Li, Thrampoulidis, Oymak, "Transformers as Support Vector Machines" (2023).
"""

from lightning_maxmargin.core.attention import centred_pool, masked_softmax, naive_pool
from lightning_maxmargin.core.exact import Directions, exact_directions
from lightning_maxmargin.core.losses import LOSSES, CrossEntropy, Loss, MarginLoss, find_loss, register_loss
from lightning_maxmargin.core.model import TokenSelector
from lightning_maxmargin.core.selection import select, take_token, without_copies
from lightning_maxmargin.core.sequences import Sequences, check_sequences
from lightning_maxmargin.core.updates import UpdateRule, register_update

__all__ = [
    "LOSSES",
    "CrossEntropy",
    "Directions",
    "Loss",
    "MarginLoss",
    "Sequences",
    "TokenSelector",
    "UpdateRule",
    "centred_pool",
    "check_sequences",
    "exact_directions",
    "find_loss",
    "masked_softmax",
    "naive_pool",
    "register_loss",
    "register_update",
    "select",
    "take_token",
    "without_copies",
]
