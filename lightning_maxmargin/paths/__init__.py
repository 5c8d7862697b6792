"""Regularisation paths: the best attention of every norm: fixed head, cone around an SVM, or joint."""

from lightning_maxmargin.paths.path import RegularizationPath, regularization_path

__all__ = ["RegularizationPath", "regularization_path"]
