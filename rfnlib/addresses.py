"""Where the project is to be found: `[project.urls]` of pyproject.toml, from which all that names an address is made.

That is the README's badges, the lines of CITATION.cff, the links of the book, and the first cell of every notebook,
which fetches the repository on Colab. What is not known yet is left out; once it is in pyproject.toml,
`python -m rfnlib readme` puts it everywhere.
"""

from __future__ import annotations

import re
import tomllib
from urllib.parse import urlsplit

import nbformat

from rfnlib import paths
from rfnlib.files import write_atomic

# The code; a release, by its DOI (https://doi.org/…); where what `make book` makes is served.
KNOWN = ("Repository", "Archive", "Book")
FETCH = "!test -d rfn || git clone --quiet --depth 1 {repository} rfn"
UPLOADED = 'assert Path("rfn/rfnlib").is_dir(), "Put a copy of the repository here first, as the folder rfn."'
CELL = """\
# On Colab: the library with its records; what it needs is there already. Elsewhere this cell does nothing.
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("google") and find_spec("google.colab"):
    {fetch}
    %pip install --quiet --no-deps --editable ./rfn
    sys.path.insert(0, str(Path("rfn").resolve()))  # a running kernel looks for no new packages"""


def addresses() -> dict[str, str]:
    """What pyproject.toml knows of `KNOWN`; nothing outside a checkout.

    Raises:
        ValueError: it has another name, or what is no https address.
    """
    path = paths.root() / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = tomllib.loads(text).get("project", {}).get("urls", {})
    for name, url in found.items():
        if name not in KNOWN or not re.fullmatch(r"https://[\w.-]+/[\w./~-]+", url):
            raise ValueError(
                f"[project.urls] of pyproject.toml has {name} = {url!r}; it can have {', '.join(KNOWN)}, each an "
                "address such as https://example.org/owner/rfnlib."
            )
    return {name: url.rstrip("/") for name, url in found.items()}


def badges() -> str:
    """The README's badges, a line of links: no picture of another host. Empty where no address is known."""
    found = addresses()
    shown = []
    if repository := found.get("Repository"):
        start = f"{urlsplit(repository).path.strip('/')}/main?labpath=notebooks%2F00_start_here.ipynb"
        if repository.startswith("https://github.com/"):
            colab = f"https://colab.research.google.com/github/{start.partition('/main')[0]}"
            shown.append(f"[Open in Colab]({colab}/blob/main/notebooks/00_start_here.ipynb)")
            shown.append(f"[Open in Binder](https://mybinder.org/v2/gh/{start})")
        shown.append(f"[Repository]({repository})")
    if archive := found.get("Archive"):
        shown.append(f"[DOI {urlsplit(archive).path.strip('/')}]({archive})")
    if book := found.get("Book"):
        shown.append(f"[Read it as a book]({book})")
    return " · ".join(shown)


def first_cell() -> str:
    """The source of every notebook's first code cell."""
    repository = addresses().get("Repository")
    return CELL.format(fetch=FETCH.format(repository=repository) if repository else UPLOADED)


def citation(text: str) -> str:
    """CITATION.cff with the addresses that are known, and no others."""
    found = addresses()
    kept = re.sub(r"^(?:repository-code|doi|url): .*\n", "", text, flags=re.MULTILINE)
    lines = {"repository-code": found.get("Repository"), "url": found.get("Book")}
    lines["doi"] = urlsplit(found.get("Archive", "")).path.strip("/")
    added = "".join(f'{name}: "{value}"\n' for name, value in lines.items() if value)
    return re.sub(r"^license: .*\n", lambda line: line[0] + added, kept, flags=re.MULTILINE)


def update(write: bool = True) -> list[str]:
    """Put the addresses into CITATION.cff and the notebooks; the names of the files that this changes.

    Raises:
        ValueError: a notebook does not begin with that cell.
    """
    changed = []
    cff = paths.root() / "CITATION.cff"
    old = cff.read_text(encoding="utf-8")
    if (new := citation(old)) != old:
        changed.append(cff.name)
        if write:
            write_atomic(cff, new.encode())
    for path in sorted(paths.notebooks_dir().glob("*.ipynb")):
        content = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        cell = next(cell for cell in content.cells if cell.cell_type == "code")
        if "find_spec" not in cell.source:
            raise ValueError(f"{path.name} must begin with the cell of `rfnlib.addresses.first_cell`; put it there.")
        if cell.source != first_cell():
            changed.append(path.name)
            cell.source = first_cell()
            if write:
                write_atomic(path, (nbformat.writes(content) + "\n").encode())
    return changed
