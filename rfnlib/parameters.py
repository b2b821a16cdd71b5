"""What a notebook is given, held against the parameters that it has: from inside of it, and before it is run.

Papermill runs a notebook whose parameter was misspelt, with a warning in its log: `-p sclae smoke` draws the scale that
the notebook begins with. The cell that it injects follows the one with the parameters, so the names can be compared.
Values are another matter: `lab.Lab` refuses those that it does not know.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rfnlib.checks import meant, require

PARAMETERS = ("mode", "scale", "seeds", "device")  # of every notebook
MODES = ("replay", "run")
INJECTED = "# Parameters\n"  # how papermill begins its cell


def check(run: Sequence[str] | None = None) -> None:
    """Refuse parameters that the notebook does not have.

    Args:
        run: the sources of the cells that were run so far; None: of this notebook.

    Raises:
        ValueError: papermill injected another name than the cell before defines.
    """
    from IPython import get_ipython  # here: `reproduce`, which needs it not, starts a process a notebook

    shell = get_ipython()
    cells = run if run is not None else shell.user_ns["In"] if shell else ()
    for own, injected in pairwise(cells):
        if injected.startswith(INJECTED):
            names = _assigned(own)
            for name in _assigned(injected):
                known = f"which takes {', '.join(names)}{meant(name, names)}"
                require(name in names, f"{name!r} is no parameter of this notebook, {known}.")


def _assigned(source: str) -> list[str]:
    """The names that a cell of assignments gives values to."""
    nodes = ast.parse(source).body
    targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def defaults(notebook: Path, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Refuse what `notebook` would not take; return its own parameters with their defaults.

    Raises:
        ValueError: for a parameter it lacks, or a value whose type is not the default's.
    """
    from papermill import inspect_notebook  # here: it takes a second to import

    own, annotated, given = {}, {}, given or {}
    for name, about in inspect_notebook(notebook).items():
        annotated[name] = about["inferred_type_name"]
        try:
            own[name] = ast.literal_eval(about["default"])
        except (SyntaxError, ValueError):
            raise ValueError(
                f"{notebook.name}: the parameter {name} = {about['default']} must be a literal, "
                "because nothing can be put in its place otherwise."
            ) from None
    for name in (*PARAMETERS, *given):
        if name not in own:
            raise ValueError(
                f"{notebook.name} has no parameter {name!r}: its cell tagged 'parameters' defines "
                f"{', '.join(own) or 'nothing'}, and must define {', '.join(PARAMETERS)}."
            )
    for name, value in given.items():
        default = own[name]
        if default is None and type(value).__name__ != annotated[name]:
            raise ValueError(f"{name} is {value!r} ({_type(value)}); {notebook.name} takes {annotated[name]}.")
        if default is not None and not _like(value, default):
            raise ValueError(
                f"{name} is {value!r} ({_type(value)}); {notebook.name} takes {_type(default)}, such as {default!r}."
            )
    if (mode := given.get("mode", own["mode"])) not in MODES:
        raise ValueError(f"mode is {mode!r}; it can be {' or '.join(map(repr, MODES))}.")
    return own


def _like(value: Any, default: Any) -> bool:
    """Whether `value` has exactly the type of `default`; lists also that of its items."""
    if type(value) is not type(default):  # not isinstance: True is no seed
        return False
    if isinstance(default, list):
        return bool(value) and all(type(item) is type(default[0]) for item in value if default)
    return True


def _type(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {'/'.join(sorted({_type(item) for item in value})) or 'nothing'}"
    return type(value).__name__
