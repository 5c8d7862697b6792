"""```` ```{command-help} fit ````: what ``maxmargin fit --help`` prints, asked when the site is built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """The words after ``{command-help}`` are those of the command; ``:module:`` asks another module than maxmargin."""

    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {"module": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        words = self.arguments[0].split() if self.arguments else []
        module = self.options.get("module", "lightning_maxmargin")
        text = asked([sys.executable, "-m", module, *words, "--help"], Path(self.env.srcdir).parent)
        block = nodes.literal_block(text, text, language="text")
        return [block]


def asked(command: list[str], folder: Path) -> str:
    """What the command prints, in lines of 100 characters.

    Raises:
        CalledProcessError: its status is not 0.
    """
    place = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": str(folder)}
    place.pop("FORCE_COLOR", None)
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
