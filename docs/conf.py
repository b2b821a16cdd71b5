"""How `make book` builds one site from README, notebooks, how-tos and docstrings: offline, and executing nothing.

The source folder is the checkout itself, so that every link that works there works in the book. What is not written
by hand, a page a module, is put into docs/api, which git ignores.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.domains.python import PythonDomain

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from test_packaging import FLOORS, MODULES, project, resolved  # noqa: E402  (the floors are those that tests hold)

from rfnlib import __version__  # noqa: E402
from rfnlib.addresses import addresses  # noqa: E402

project_table = project()
repository = addresses().get("Repository")
project = "rfnlib"
author = project_table["authors"][0]["name"]
copyright = f"{author}, MIT licence"
release = version = __version__

root_doc = "README"
include_patterns = ["*.md", "notebooks/*.ipynb", "docs/how-to/*.md", "docs/api/*", "data/README.md"]
exclude_patterns = [".*", "build", "data/records", "data/weights", "data/cache", "data/cifar*", "rfnlib", "tests"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
]

nb_execution_mode = "off"  # what is committed is what is shown
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "html_image"]
myst_heading_anchors = 4

default_role = "py:obj"  # `name` in a docstring: a link where there is such a thing, else code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what torch says of `forward` says nothing of ours
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
python_maximum_signature_line_length = 100
add_module_names = False  # the page's title has it
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_theme_options = {"source_repository": f"{repository}/", "source_branch": "main"} if repository else {}
html_title = f"rfnlib {release}"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_show_sphinx = False

# One file of MathJax: SVG needs no fonts, so nothing else is ever asked for. It comes in a package whose own
# extension would copy twenty times as much.
MATHJAX = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg.js"
mathjax_path = MATHJAX.name
mathjax3_config = {"options": {"enableMenu": False}, "svg": {"fontCache": "local"}}

CONTENTS = """

```{toctree}
:hidden:
:caption: Notebooks
:glob:
notebooks/*
```

```{toctree}
:hidden:
:caption: How to
:glob:
docs/how-to/*
```

```{toctree}
:hidden:
:caption: Reference
docs/api/index
Records and weights <data/README>
Preregistration <PREREGISTRATION>
Contributing <CONTRIBUTING>
Changes <CHANGELOG>
```
"""


def write_reference() -> None:
    """A page a module, and one that lists them by floor."""
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    index = ["# API reference", "", "Each module imports only from those above it in this list, and from its own part."]
    pages = {}
    for floor, modules in FLOORS.items():
        index += ["", f"## {floor.capitalize()}", "", "| module | |", "|---|---|"]
        for module in modules.split():
            name = ".".join(["rfnlib", *module.split(".")]).removesuffix(".__init__")
            says = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))).split("\n")[0]
            index.append(f"| [`{name}`]({name}.rst) | {says} |")
            pages[f"{name}.rst"] = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"
    listed = "\n".join(name.removesuffix(".rst") for name in pages)
    pages["index.md"] = "\n".join(index) + f"\n\n```{{toctree}}\n:hidden:\n{listed}\n```\n"
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else all of it is built anew
            path.write_text(text, encoding="utf-8")


class Python(PythonDomain):
    """Links a name only to the one thing that it can mean; `steps` is an argument, whatever else is called so."""

    def find_obj(self, *args, **options):
        found = super().find_obj(*args, **options)
        return found if len(found) == 1 and found[0][1].objtype != "attribute" else []


def literal_bars(app, what, name, obj, options, lines) -> None:
    """|w| is an absolute value, and no substitution; *shape are arguments, and no emphasis."""
    lines[:] = [re.sub(r"(?<![\w`*])(\|(?=\w+\|)|\*(?=\w+\)))", r"\\\1", line) for line in lines]


def literal_commands(app, what, name, obj, options, lines) -> None:
    """What one types at a prompt is code, in which two hyphens stay two; else it would be a quotation."""
    for i in range(len(lines) - 1, 0, -1):
        if not lines[i - 1] and re.match(r"    (python -m|RFN_)", lines[i]):
            lines[i:i] = ["::", ""]


def untyped(app, what, name, obj, options, lines) -> None:
    """What stands before a colon in the docstring of an attribute is no type of it; napoleon reads no second line."""
    if what in ("attribute", "data", "property") and lines:
        lines[:1] = lines[0].replace(": ", ":\n", 1).split("\n")


def add_contents(app, docname, source) -> None:
    """The README is the front page, and GitHub shows it too: so its table of contents is added here."""
    if docname == root_doc:
        source[0] += CONTENTS


def describe_figures(app, doctree) -> None:
    """Give the figures of a notebook the alternative text and size that its outputs state."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    outputs = [out for cell in nbformat.read(path, as_version=4).cells for out in cell.get("outputs", ())]
    stated = [out.metadata["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    boxes = [box for box in doctree.findall(nodes.container) if box.get("mime_type") == "image/png"]
    shown = [image for box in boxes for image in box.findall(nodes.image)]
    for image, about in zip(shown, stated, strict=True):
        image.attributes.update(alt=about["alt"], width=f"{about['width']}px")


def without_list(signature: re.Match) -> str:
    """A signature whose arguments are plain lines."""
    plain = re.sub("</?dl>", "", signature[0])
    return plain.replace("<dd>", '<span class="argument">').replace("</dd>", "</span>")


def mend_lists(app, page, template, context, doctree) -> None:
    """What others write in a way that screen readers stumble over, or narrow screens."""
    tree = context["furo_navigation_tree"]  # its captions are headings of no level
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    if page.startswith("docs/api/"):  # a signature of several lines is a list of definitions that define nothing
        body = re.sub('<dt class="sig.*?</dt>', without_list, context["body"], flags=re.DOTALL)
        context["body"] = re.sub(r"<h1>\S+", lambda title: re.sub("([._])", r"\1<wbr>", title[0]), body)  # for phones
    if page.startswith("_modules/rfnlib/"):  # what another module offers too leads back to where it is defined

        def home(link: re.Match) -> str:
            name = link[1].removeprefix(f"rfnlib.{resolved(link[1])}.")
            return f"docs/api/{module}.html#{module}.{name}" if name != link[1] else link[0]

        module = page.removeprefix("_modules/").replace("/", ".")
        context["body"] = re.sub(r"docs/api/[\w.]+\.html#(rfnlib[\w.]+)", home, context["body"])
    if page == "_modules/index":  # a list directly in a list, and a module that has no page
        items = re.findall('<li><a href="rfnlib.*?</li>', context["body"])
        context["body"] = f"<h1>{context['title']}</h1>\n<ul>{''.join(items)}</ul>"


def finish(app, error) -> None:
    """The front page under the name that servers look for."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")
        shutil.copyfile(MATHJAX, Path(app.outdir) / "_static" / MATHJAX.name)


def setup(app) -> None:
    """Connect all that to Sphinx."""
    write_reference()
    app.add_domain(Python, override=True)
    for mend in (literal_bars, literal_commands, untyped):
        app.connect("autodoc-process-docstring", mend, priority=400)  # before napoleon
    app.connect("source-read", add_contents)
    app.connect("doctree-read", describe_figures)
    app.connect("html-page-context", mend_lists, priority=900)  # after the theme, which makes the tree
    app.connect("build-finished", finish)
