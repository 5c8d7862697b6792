"""Formulas as MathML, made at build time by docutils: a page needs no script and no network to show them."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError


def markup(node: nodes.Element, *, block: bool) -> str:
    """The ``<math>`` element of a formula.

    Raises:
        ExtensionError: docutils does not know a command of it.
    """
    try:
        return latex2mathml.tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        raise ExtensionError(f"{node.source}:{node.line}: formula {node.astext()!r}: {error}") from error


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(markup(node, block=False))
    raise nodes.SkipNode


def displayed(translator: Any, node: nodes.math_block) -> None:
    # A wide formula scrolls on a telephone; the keyboard reaches it.
    translator.body.append(f'<div class="formula" tabindex="0">{markup(node, block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
