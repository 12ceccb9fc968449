"""The Sphinx configuration of the site: python -m sphinx -W docs site"""

import re
from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "monocloud-async"
author = "The monocloud-async authors"
copyright = author  # noqa: A001  Sphinx calls it so
version = release = installed(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]
myst_heading_anchors = 3  # links to a heading are checked
smartquotes = False  # it would turn --domain into a dash
default_role = "code"  # docstrings use Markdown as far as possible

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"


def _fences(
    _app: object, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Convert fenced code blocks to reStructuredText."""
    text = re.sub(
        r"^( *)```(\w+)\n(.*?)^ *```$",
        lambda found: (
            f"{found[1]}.. code-block:: {found[2]}\n\n"
            + re.sub(r"^", "    ", found[3], flags=re.MULTILINE)
        ),
        "\n".join(lines),
        flags=re.MULTILINE | re.DOTALL,
    )
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _fences, priority=400)  # before napoleon's
