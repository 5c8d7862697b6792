"""The limit problems, solved with certificates. ``p``, ``W`` and ``v`` are the papers' letters; see ``rows``."""

from lightning_maxmargin.svm.active_set import solve_finite_part, solve_kept_svm
from lightning_maxmargin.svm.api import solve_att_svm, solve_label_svm
from lightning_maxmargin.svm.certificate import Status
from lightning_maxmargin.svm.certify import certify
from lightning_maxmargin.svm.custom import CustomSolution, solve_cvxpy, solve_rows
from lightning_maxmargin.svm.distributed import DistributedShard
from lightning_maxmargin.svm.joint import JointSolution, solve_joint_svm
from lightning_maxmargin.svm.norms.names import dual_norm_of, norm_of, relative_margin_in
from lightning_maxmargin.svm.norms.registry import WorkingRows, register_norm
from lightning_maxmargin.svm.proofs import certify_infeasible
from lightning_maxmargin.svm.rows import RowProblem
from lightning_maxmargin.svm.solution import BatchSolution, Solution, only

__all__ = [
    "BatchSolution",
    "CustomSolution",
    "DistributedShard",
    "JointSolution",
    "RowProblem",
    "Solution",
    "Status",
    "WorkingRows",
    "certify",
    "certify_infeasible",
    "dual_norm_of",
    "norm_of",
    "only",
    "register_norm",
    "relative_margin_in",
    "solve_att_svm",
    "solve_cvxpy",
    "solve_finite_part",
    "solve_joint_svm",
    "solve_kept_svm",
    "solve_label_svm",
    "solve_rows",
]
