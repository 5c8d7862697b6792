"""The documentation site: ``bash scripts/docs.sh`` builds it into docs/_build/html."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from lightning_maxmargin import __version__  # noqa: E402

project = "lightning_maxmargin"
author = "The lightning_maxmargin authors"
copyright = "2026, The lightning_maxmargin authors"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "mathml",
    "command_help",
    "own_names",
    "plain_docstrings",
    "reached_by_keys",
]
# finetune_text.ipynb is scripts/finetune_text.py for Jupyter; the tutorials are what the site runs.
exclude_patterns = ["_build", "**.ipynb_checkpoints", "finetune_text.ipynb", "tutorials/*.py"]

# Pages read on GitHub too: no markup but what GitHub shows, and formulas in dollars.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
# A notebook shows widgets in plain text.
suppress_warnings = ["mystnb.unknown_mime_type"]

# Notebooks are stored without outputs and run here; a cell that fails ends the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
viewcode_line_numbers = True

# Every reference to a name of this package has to lead somewhere. What is of Python, torch, numpy, Lightning and others
# is named only: their pages are not on this machine, and the build asks no network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!lightning_maxmargin)[a-zA-Z_]+\..*")]
# What annotations name and no page is about: types inside the package that no user makes.
INTERNAL = {
    "core": ("copies.Copies", "exact.Reduce", "losses.Kind", "batch.Instances", "batch_directions.InstanceDirections"),
    "svm": (
        "sources.Source", "equalities.EqualityRows", "norms.registry.NormEntry", "rational.RationalRows",
        "distributed.Layout", "distributed.AttentionPart",
    ),
    "text": ("planted.Split", "pretrained.Pieces", "hidden.HiddenStates", "batches.Split"),
    "probe": ("text.TextUnits", "found.FoundAttention"),
    "figures": ("shaded.ShadedText",),
    "reproduce": ("panel.Panel",),
    "ranks": ("Failure",),
}  # fmt: skip
nitpick_ignore = [
    ("py:class", f"lightning_maxmargin.{room}.{name}") for room, names in INTERNAL.items() for name in names
]
# Annotations of generics, which autodoc does not split at their brackets, and names that are imported for types alone.
nitpick_ignore += [("py:class", name) for name in ("Tensor", "Value", "dict[str", "EqualityRows")]

html_theme = "furo"
html_title = "lightning_maxmargin"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
