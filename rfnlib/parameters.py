"""What papermill injected into this notebook, held against the parameters that the notebook has.

Papermill runs a notebook whose parameter was misspelt, with a warning in its log: `-p sclae smoke` draws the scale that
the notebook begins with. The cell that it injects follows the one with the parameters, so the names can be compared.
Values are another matter: `lab.Lab` refuses those that it does not know.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

from IPython import get_ipython

from rfnlib.checks import require

INJECTED = "# Parameters\n"  # how papermill begins its cell


def check(run: Sequence[str] | None = None) -> None:
    """Refuse parameters that the notebook does not have.

    Args:
        run: the sources of the cells that were run so far; None: of this notebook.

    Raises:
        ValueError: papermill injected another name than the cell before defines.
    """
    shell = get_ipython()
    cells = run if run is not None else shell.user_ns["In"] if shell else ()
    for own, injected in pairwise(cells):
        if injected.startswith(INJECTED):
            names = _assigned(own)
            for name in _assigned(injected):
                meant = "".join(f"; {near!r} may be meant" for near in get_close_matches(name, names, 1))
                require(
                    name in names,
                    f"{name!r} is no parameter of this notebook, which takes {', '.join(names)}{meant}.",
                )


def _assigned(source: str) -> list[str]:
    """The names that a cell of assignments gives values to."""
    nodes = ast.parse(source).body
    targets = [t for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
