"""The documentation site. `make docs` builds it offline and treats every warning as an error."""

from fastvision import __version__

project = "fastvision"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"fastvision {release}"
html_show_copyright = False

myst_heading_anchors = 3  # for [text](page.md#heading)

add_module_names = False
maximum_signature_line_length = 100
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

# every cross-reference resolves, except those to other packages, whose inventories are online
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch\.|nn\.|numpy\.|PIL\.|pathlib\.|os\.|Tensor|collections\.|list\[|dict\[).*"),
]
