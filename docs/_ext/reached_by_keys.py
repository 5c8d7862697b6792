"""What the theme leaves out for readers without a mouse: code that scrolls takes the focus, captions have a level."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

CAPTION = 'class="caption" role="heading"'


def mended(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = context["body"].replace("<pre>", '<pre tabindex="0">')
    if "furo_navigation_tree" in context:
        tree = context["furo_navigation_tree"]
        context["furo_navigation_tree"] = tree.replace(CAPTION, CAPTION + ' aria-level="2"')


def setup(app: Sphinx) -> dict[str, Any]:
    # After the theme's own, at 500.
    app.connect("html-page-context", mended, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
