"""References by the last part of a name: ``:class:`Solution``` finds the one Solution of the API's pages.

A class is documented at the address where users import it, and annotated by the file that holds it. Both lead there.
"""

from __future__ import annotations

import pydoc
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def find(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """The documented object whose name ends as the target does, where there is exactly one of the same last part."""
    if node.get("refdomain") != "py":
        return None
    objects = env.domains["py"].objects  # type: ignore[attr-defined]
    if node["reftype"] == "attr" and (owner_name := _owner_of(node)) in objects:
        return _link(app, node, content, owner_name, objects[owner_name])
    last = node["reftarget"].rsplit(".", 1)[-1]
    owner = node["reftarget"].split(".")[-2:-1]
    found = [name for name, entry in objects.items() if name.rsplit(".", 1)[-1] == last and not entry.aliased]
    if owner and owner[0][:1].isupper():
        # Class.method: of that class alone.
        found = [name for name in found if name.split(".")[-2] == owner[0]]
    elif node["reftarget"].startswith("lightning_maxmargin.") or not owner:
        # A class or function, not the method of that name of another one.
        found = [name for name in found if not name.split(".")[-2][:1].isupper()]
    else:
        return None
    return _link(app, node, content, found[0], objects[found[0]]) if len(found) == 1 else None


def _link(app: Sphinx, node: pending_xref, content: nodes.Element, name: str, entry: Any) -> nodes.Element:
    target = app.builder.get_relative_uri(node["refdoc"], entry.docname) + "#" + entry.node_id
    return nodes.reference("", "", content, internal=True, refuri=target, reftitle=name)


def _owner_of(node: pending_xref) -> str:
    """The class around a reference to one of the Attributes that its docstring lists, which have no entry alone."""
    name = f"{node.get('py:module')}.{node.get('py:class')}"
    text = getattr(pydoc.locate(name), "__doc__", None) or ""
    listed = text.partition("Attributes:")[2]
    return name if re.search(rf"^ +{re.escape(node['reftarget'])}:", listed, re.MULTILINE) else ""


BACK = re.compile(r'(<a class="viewcode-back" href="[^"#]*#)([\w.]+)"')


def mended(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Links from source back to the API: viewcode takes the address of one name of a file for that of all."""
    if not pagename.startswith("_modules/"):
        return
    objects = app.env.domains["py"].objects  # type: ignore[attr-defined]

    def address(match: re.Match[str]) -> str:
        parts = match[2].split(".")
        tails = [".".join(parts[-count:]) for count in (2, 1)]
        tail = tails[0] if parts[-2][:1].isupper() else tails[1]
        found = [name for name, entry in objects.items() if name.endswith("." + tail) and not entry.aliased]
        return f'{match[1]}{match[2] if match[2] in objects or len(found) != 1 else found[0]}"'

    context["body"] = BACK.sub(address, context.get("body", ""))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("missing-reference", find)
    app.connect("html-page-context", mended)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
