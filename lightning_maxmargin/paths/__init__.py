"""Regularisation paths: the best attention of every norm, alone, in a cone around an SVM, or with the head."""

from lightning_maxmargin.paths.path import RegularizationPath, regularization_path

__all__ = ["RegularizationPath", "regularization_path"]
