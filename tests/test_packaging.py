"""The three lists of dependencies agree, imports go down only, and nothing names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from graphlib import CycleError, TopologicalSorter
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
FLOORS = (
    {"paths", "progress", "checks", "keys", "specs", "files", "execution"},
    {"data", "fetch", "models"},
    {"vectors", "buffers", "sam"},
    {"minimizers", "attacks", "transforms", "surrogates", "features", "sharpness", "landscape", "lanczos"},
    {"adversaries", "objectives", "training", "transfer", "intervals"},
    {"recipes", "records", "scales", "series", "probes", "lab", "experiments", "jobs"},
    {"claims", "findings", "rivalry", "plots"},
    {"reproduce", "bench", "readme", "preregistration", "__main__", "__init__"},
)
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}

# Written so that this file does not match them itself.
MACHINE_PATH = re.compile(r"(?<![\w.}*])/(?:work|home|root|opt|Users|content)/")
TEMPORARY_PATH = re.compile(r"(?<![\w.}*])/(?:tmp|var)/")
INDEX_ADDRESS = re.compile(r"index-[u]rl|--find-[l]inks|file:[/]{2}")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> dict[str, Requirement]:
    """What pyproject.toml asks for, by name, the test extra included."""
    tables = project()
    lines = [*tables["dependencies"], *tables["optional-dependencies"]["test"]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def in_environment() -> dict[str, Requirement]:
    """What environment.yml asks for. Its list is so plain that it needs no YAML reader."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8").split("dependencies:")[1]
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
    del theirs["pip"]  # postBuild's, not ours
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


def imported(path: Path) -> set[str]:
    """The modules of rfnlib that a module imports anywhere, in functions too."""
    found = set()
    siblings = {p.stem for p in (ROOT / "rfnlib").iterdir()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "rfnlib" if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "rfnlib":
                module = rest.partition(".")[0]
                found.add(module if module in siblings else "__init__")
    return found - {path.stem}


def test_imports_go_down_only():
    modules = {path.stem: imported(path) for path in sorted((ROOT / "rfnlib").glob("*.py"))}
    assert modules, "rfnlib has no module"
    for module, below in modules.items():
        assert module in FLOOR, f"{module} is on no floor: give it one in FLOORS"
        for other in below:
            assert FLOOR[other] <= FLOOR[module], f"{module} imports {other}, which is above it"
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        pytest.fail(f"These import each other in a circle: {' < '.join(error.args[1])}")


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
    for name in ("postBuild", ".ci/run"):
        path = ROOT / name
        assert path.read_text(encoding="utf-8").startswith("#!/bin/bash\n")
        assert "\nset -e\n" in path.read_text(encoding="utf-8")
        assert path.stat().st_mode & 0o111, f"{name} is not executable"


def test_one_version_everywhere():
    version = project()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    init = (ROOT / "rfnlib" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE) in ([version], [])
