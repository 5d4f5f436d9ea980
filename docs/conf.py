"""Sphinx settings: Markdown pages, one theme, warnings are errors (`make docs`)."""

import dynamics

project = "dynamics"
author = "the dynamics authors"
release = dynamics.__version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"dynamics {release}"
html_static_path: list[str] = []
myst_heading_anchors = 3
