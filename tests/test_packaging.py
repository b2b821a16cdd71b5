"""The three lists of dependencies agree, imports go down only, and nothing names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge's differs
TORCHVISION_FOR = {"2.6": "0.21", "2.7": "0.22", "2.8": "0.23", "2.9": "0.24", "2.10": "0.25"}
TORCHVISION_FOR |= {"2.11": "0.26", "2.12": "0.27"}

# Bottom first: a module imports from floors below its own, and from its own without a circle.
FLOORS = {
    "ground": "paths progress checks files keys execution extensions",
    "materials": "specs outside data datasets fetch bricks models",
    "tools": "vectors buffers sam minimizers attacks transforms folding surrogates features built sharpness landscape "
    "lanczos adapters",
    "procedures": "adversaries objectives snapshots training transfer intervals",
    "experiment": "recipes records zoo curves measurements probes similarity planes scale scales subjects lab costs "
    "workers",
    "presentation": "claims words cards plots.__init__ plots.style plots.examples plots.overview plots.lr_decay "
    "plots.sharpness_drop plots.rfn_gains plots.state_of_the_art plots.features plots.threat_model "
    "plots.better_surrogate plots.explore plots.why",
    "studies": "studies.__init__ studies.counting studies.pilots studies.lr_decay studies.sharpness_drop "
    "studies.rfn_gains studies.state_of_the_art studies.features studies.threats studies.threat_model "
    "studies.better_surrogate studies.reviewers studies.explore studies.why studies.interventions studies.predictors "
    "studies.edge studies.journey",
    "doors": "addresses parameters jobs status export evaluate release reproduce bench readme preregistration "
    "__main__ __init__",
}
FLOOR = {module: number for number, modules in enumerate(FLOORS.values()) for module in modules.split()}
MODULES = {
    ".".join(path.relative_to(ROOT / "rfnlib").with_suffix("").parts): path
    for path in sorted((ROOT / "rfnlib").rglob("*.py"))
}
MOST_LINES = 320  # of code a module

# Modules whose tests have another name, and what tests them instead.
TESTED_BY = {
    "__init__": ("test_packaging", "holds the version alone"),
    "__main__": ("test_cli", "is the command line"),
    "status": ("test_cli", "is what `python -m rfnlib status` prints"),
    "vectors": ("test_minimizers", "is a part of every minimizer, held by its closed forms"),
    "buffers": ("test_minimizers", "is a part of every minimizer, held by BatchNorm's statistics"),
    "sam": ("test_minimizers", "is the step that all of them share, compared with other implementations"),
    "built": ("test_features", "holds what `features` builds"),
    "lanczos": ("test_sharpness", "is compared with dense algebra where sharpness is"),
    "landscape": ("test_sharpness", "is compared with dense algebra where sharpness is"),
    "bricks": ("test_models", "holds the parts of what is built there"),
    "scale": ("test_scales", "is what every scale is"),
    "costs": ("test_jobs", "decides what runs at the same time, and how long it will take"),
    "workers": ("test_jobs", "are the processes that a run starts, and kills"),
    "extensions": ("test_extending", "is how such things reach other processes"),
    "studies.__init__": ("test_extending", "is a list, to which one is appended"),
    "plots.__init__": ("test_plots", "holds nothing"),
    "plots.style": ("test_plots", "is what all figures share"),
    "plots.examples": ("test_plots", "is the figure that needs no study"),
    "plots.overview": ("test_verdict_table", "draws the verdicts that are put in a table there"),
}

# Written so that this file does not match them itself.
MACHINE_PATH = re.compile(r"(?<![\w.}*])/(?:work|home|root|opt|Users|content)/")
TEMPORARY_PATH = re.compile(r"(?<![\w.}*])/(?:tmp|var)/")
INDEX_ADDRESS = re.compile(r"index-[u]rl|--find-[l]inks|file:[/]{2}")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> dict[str, Requirement]:
    """What pyproject.toml asks for, by name, the extras included."""
    tables = project()
    lines = [*tables["dependencies"], *chain.from_iterable(tables["optional-dependencies"].values())]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def in_environment(name: str = "environment.yml") -> dict[str, Requirement]:
    """What an environment.yml asks for. Its list is so plain that it needs no YAML reader."""
    text = (ROOT / name).read_text(encoding="utf-8").split("dependencies:")[1]
    lines = re.findall(r"^ +- (.+[^:\n])$", text, re.MULTILINE)  # pip's part too, but not the line "pip:"
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def locked() -> dict[str, list[Requirement]]:
    """The lock's lines by name; one that differs between Pythons has several."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{pin} is not exact"
    return Version(specifier.version)


def test_environment_asks_for_what_pyproject_asks_for():
    theirs = in_environment()
    assert theirs.pop("python").specifier == SpecifierSet(project()["requires-python"])
    del theirs["pip"]  # for conda, to install what is on PyPI
    ours = {CONDA_NAMES.get(name, name): need.specifier for name, need in declared().items()}
    assert {name: need.specifier for name, need in theirs.items()} == ours


def test_lock_has_an_exact_version_of_everything_within_the_ranges():
    lock = locked()
    for name, need in declared().items():
        assert name in lock, f"{name} is not locked: run `make lock`"
        for pin in lock[name]:
            assert version(pin) in need.specifier, f"{pin} is outside {need}: run `make lock`"
    for pins in lock.values():
        for pin in pins:
            assert version(pin).local is None and pin.url is None, f"{pin} is of one machine"


@pytest.mark.parametrize("python", ["3.11.0", "3.11.9", "3.12.0", "3.13.0"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_lock_decides_each_package_once(python, system):
    where = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    where |= {"sys_platform": system, "os_name": "nt" if system == "win32" else "posix"}
    for name, pins in locked().items():
        chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(where)]
        assert len(chosen) <= 1, f"{name} has {len(chosen)} versions there"
        assert chosen or name not in declared(), f"{name} has no version there"


def test_torch_and_torchvision_are_a_pair():
    def release(text: Version) -> str:
        return f"{text.major}.{text.minor}"

    (torch,), (vision,) = locked()["torch"], locked()["torchvision"]
    assert release(version(vision)) == TORCHVISION_FOR[release(version(torch))]
    bounds = [{one.operator: one.version for one in declared()[name].specifier} for name in ("torch", "torchvision")]
    for operator in (">=", "<"):
        assert TORCHVISION_FOR[bounds[0][operator]] == bounds[1][operator]


def imported(module: str) -> set[str]:
    """The modules of rfnlib that one imports anywhere, in functions too; for annotations alone does not count."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    unread = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively: name the module in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {resolved(name) for name in names if name.partition(".")[0] == "rfnlib"}
    return found - {module}


def resolved(name: str) -> str:
    """The module that holds `name`, such as "studies.pilots" for "rfnlib.studies.pilots.gates"."""
    parts = name.split(".")[1:]
    for n in range(len(parts), 0, -1):
        for module in (".".join(parts[:n]), ".".join([*parts[:n], "__init__"])):
            if module in MODULES:
                return module
    return "__init__"


def test_imports_go_down_only():
    modules = {module: imported(module) for module in MODULES}
    for module, below in modules.items():
        assert module in FLOOR, f"{module} is on no floor: give it one in FLOORS"
        for other in below:
            assert FLOOR[other] <= FLOOR[module], f"{module} imports {other}, which is above it"
    assert set(FLOOR) <= set(modules), f"there is no module {set(FLOOR) - set(modules)}: take it out of FLOORS"
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(f"These import each other in a circle: {' < '.join(error.args[1])}")


def test_tools_know_nothing_of_the_experiment():
    """Whoever imports a tool gets none of the floors above it, whatever is imported on the way."""
    top = [floor.split() for floor in FLOORS.values()][2]
    command = f"import sys, {', '.join('rfnlib.' + m for m in top)}; print(*[m for m in sys.modules if 'rfnlib.' in m])"
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, capture_output=True, text=True)
    found = {resolved(name) for name in run.stdout.split()}
    assert found and max(FLOOR[module] for module in found) == 2


def lines_of_code(path: Path) -> int:
    """Lines without docstrings, comments and blank ones."""
    text = path.read_text(encoding="utf-8")
    documents = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documents) and ast.get_docstring(node, clean=False) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and number not in prose for number, line in lines)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_small_enough_to_be_read_at_once(module):
    assert lines_of_code(MODULES[module]) <= MOST_LINES, "split it: one idea a module"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_of_its_name(module):
    """The tests of `rfnlib/x.py` are in `tests/test_x.py`, those of `studies/x.py` too, or as TESTED_BY says."""
    name, reason = TESTED_BY.get(module, (f"test_{module.rpartition('.')[2]}", "its name"))
    assert reason and (ROOT / "tests" / f"{name}.py").is_file()
    assert module in MODULES


def test_no_exception_is_kept_that_nothing_needs():
    for module in TESTED_BY:
        assert module in MODULES
        assert not (ROOT / "tests" / f"test_{module.rpartition('.')[2]}.py").exists(), f"{module} has a namesake now"


def tracked() -> list[Path]:
    """What git keeps, or would keep: text files only."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so nothing says which files are ours")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    binary = {".png", ".pdf", ".npz", ".safetensors"}
    return [path for path in files if path.is_file() and path.suffix not in binary]


def test_nothing_names_a_machine_or_an_index():
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        patterns = [MACHINE_PATH, INDEX_ADDRESS]
        patterns += [TEMPORARY_PATH] if path.suffix == ".ipynb" else []
        for pattern in patterns:
            match = pattern.search(text)
            line = text.count("\n", 0, match.start()) + 1 if match else 0
            assert match is None, f"{path.relative_to(ROOT)}:{line} says {match.group()!r}"


def test_shell_scripts_stop_at_the_first_error():
    for name in (".binder/postBuild", ".ci/run"):
        path = ROOT / name
        assert path.read_text(encoding="utf-8").startswith("#!/bin/bash\n")
        assert "\nset -e\n" in path.read_text(encoding="utf-8")
        assert path.stat().st_mode & 0o111, f"{name} is not executable"


def test_one_version_everywhere():
    version = project()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    init = (ROOT / "rfnlib" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE) in ([version], [])
