"""The documentation site, built by ``make docs`` from the whole repository, so that its links work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import django
from django.conf import settings
from docutils import nodes
from pygments.lexers import HtmlDjangoLexer
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# The docstrings are read from the modules, which need Django's applications, but no database and no Redis.
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "proxyhealth"], USE_TZ=True
)
django.setup()

from proxyhealth import __version__  # noqa: E402  models need the applications

project = "proxyhealth"
release = __version__
html_title = f"proxyhealth {release}"
html_show_copyright = False
root_doc = "docs/index"
include_patterns = ["*.md", "benchmarks/*.md", "docs/*.md"]
exclude_patterns = [".*", "build", "dist", "node_modules", "proxyhealth", "tests", "var"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
html_extra_path = ["redirect"]  # from the address of the site to its first page
html_show_sourcelink = False
html_static_path: list[str] = []
templates_path: list[str] = []

myst_heading_anchors = 4
myst_links_external_new_tab = False
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
nitpicky = True
# The site has no addresses of other documentation, because the build needs no network.
nitpick_ignore_regex = [("py:.*", r"(?!proxyhealth\b).*|.*\.(BeatEntry|Scope)")]

linkcheck_ignore = [r"http://(127\.0\.0\.1|localhost)\b"]  # of the demo

logger = logging.getLogger(__name__)


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the lists of links in docs/index.md the navigation. Sphinx warns about pages in none of them."""
    if docname != root_doc:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        links = re.findall(r"^- \[([^\]]+)\]\(([^)#:]+)\.md\)", section, re.MULTILINE)
        pages = "\n".join(f"{title} <{path}>" for title, path in links)
        caption = section.partition("\n")[0]
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def check_addresses(app: Sphinx, doctree: nodes.document) -> None:
    """Warn about addresses that cannot be right. ``make docs-links`` requests the others."""
    for reference in doctree.findall(nodes.reference):
        url = urlsplit(reference.get("refuri", ""))
        is_local = url.hostname in ("127.0.0.1", "localhost")
        is_valid = url.scheme == ("http" if is_local else "https") and url.hostname and "." in url.hostname
        if (url.scheme or url.netloc) and not is_valid:
            logger.warning("not an https:// address: %s", reference["refuri"], location=reference)


def setup(app: Sphinx) -> None:
    app.add_lexer("html", HtmlDjangoLexer)  # the examples are templates
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", check_addresses)
