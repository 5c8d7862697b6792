"""The packages: those of the folder and, inside it, the configs. Everything else is said in pyproject.toml."""

from setuptools import find_packages, setup

CONFIGS = "lightning_maxmargin.configs"

setup(packages=[*find_packages(include=["lightning_maxmargin*"]), CONFIGS], package_dir={CONFIGS: "configs"})
