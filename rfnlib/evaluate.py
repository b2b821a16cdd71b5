"""How well one's own surrogate transfers, or how vulnerable one's own target is, by the protocol of the studies.

    python -m rfnlib evaluate mine.py:model --scale laptop
    python -m rfnlib evaluate mine.py:model --scale laptop --role target

Nothing is trained: targets and surrogates are those whose weights are released. What is measured goes into the records.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from rfnlib import adapters, outside, paths, recipes, words, zoo
from rfnlib.checks import require
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At
from rfnlib.outside import Outside
from rfnlib.probes import Probe
from rfnlib.progress import Progress
from rfnlib.scale import Target
from rfnlib.snapshots import weights_digest
from rfnlib.specs import parse
from rfnlib.studies import state_of_the_art
from rfnlib.training import steps_per_epoch

ROLES = ("surrogate", "target")
DOUBTED = 200  # test images that show whether a model is used as it should be


def evaluate(model: nn.Module, name: str, lab: Lab, role: str = "surrogate") -> pd.DataFrame:
    """A row of notebook 05 for `model` beside the recorded ones; or, as a target, a row for each released network.

    Args:
        model: from images in [0, 1] to logits; put in eval mode and frozen.
        name: what records and tables call it.
        lab: in mode "run".

    Returns:
        The table, the most successful first; what is to be said beside it is in its `attrs["notes"]`, a sentence each.

    Raises:
        ValueError: another role, a model that seems to be used wrongly, or targets that are not released.
    """
    require(role in ROLES, f"role is {role!r}; give one of {', '.join(map(repr, ROLES))}.")
    of, (images, labels) = lab.dataset(), lab.bench.test_images(DOUBTED)
    theirs = outside.register(name, lab.bench.how.place(model))
    try:
        doubt = adapters.doubt(model, images, labels, of.mean, of.std)
    except RuntimeError as error:  # torch's word for shapes that do not fit
        shape, why = tuple(images.shape[1:]), str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{name} does not take images {shape} of {of.name} ({why}); give Adapted(model, size=…), or "
                         "another scale.") from error  # fmt: skip
    require(not doubt, f"{name} is not measured: {doubt}")
    before = set(lab.folder.glob("*.json"))
    table = as_surrogate(theirs, lab) if role == "surrogate" else as_target(theirs, lab)
    table.attrs["notes"].append(_written(theirs, lab.folder, len({*lab.folder.glob("*.json")} - before)))
    return table


def _written(theirs: Outside, folder: Path, new: int) -> str:
    """What is new among the records, and how to be rid of it."""
    here = paths.shown(folder)
    return (
        f"New records in {here}: {new}; they are served from there the next time. "
        f"`grep -l {theirs.digest} {here}/*.json | xargs rm` removes all of {theirs.name}; to keep such records "
        f"elsewhere, name a copy of {paths.shown(folder.parent)} in RFN_RECORDS."
    )


# --- as a surrogate -------------------------------------------------------------------------------------------------


def arm_of(theirs: Outside, lab: Lab) -> Arm:
    """What notebook 05 asks of each surrogate, asked of `theirs`."""
    return Arm(theirs.name, [theirs], *(At(probe, (1.0,)) for probe in state_of_the_art.questions(lab.scale)))


def as_surrogate(theirs: Outside, lab: Lab) -> pd.DataFrame:
    """A row a surrogate, the most successful first: `theirs`, and those of notebook 05 whose success is recorded."""
    _require_released(lab, "standard")
    targets, _, digests = lab.clean("standard")
    own = weights_digest(outside.model_of(theirs).state_dict())
    same = [target.name for target, digest in zip(targets, digests, strict=True) if digest == own]
    white_box = f"{theirs.name} is the target {''.join(same[:1])} itself, which is a white box to it"
    require(not same, f"{white_box}; give another model, or the role 'target'.")
    view, notes = lab.replaying(), []
    try:
        every = state_of_the_art.arms(view)
    except MissingRecord as choice:  # that the others rest on
        read = f"Records are read from {paths.shown(lab.folder.parent)}; RFN_RECORDS names another folder."
        every, notes = {}, [f"No surrogate of notebook 05 stands beside it: {choice} {read}"]
    taken = f"{theirs.name} is a surrogate of notebook 05"
    require(theirs.name not in every, f"{taken}, which stands beside it; give the model another name.")
    shown = view.shown(every)
    rows = {theirs.name: row(lab, arm_of(theirs, lab)), **{name: row(view, arm) for name, arm in shown.items()}}
    if left_out := [_recorded_of(view, arm) for name, arm in every.items() if name not in shown]:
        notes.append(
            f"{len(left_out)} of {len(every)} surrogates of notebook 05 are left out until the success of all their "
            f"seeds is recorded: {', '.join(left_out)}; `python -m rfnlib run --scale {lab.scale.name}` records it."
        )
    return _table(rows, "success", notes)


def row(lab: Lab, arm: Arm) -> dict[str, str]:
    """What notebook 05 says of a surrogate, as far as it can be measured or, in replay, is recorded."""
    standard, resisting, sharpness, robustness = state_of_the_art.questions(lab.scale)
    weak, *_ = robustness.attacks()

    def beside(probe: Probe) -> Any:
        return lab.curves({arm.name: arm}, probe).get(arm.name)

    seen, sharp = lab.read(arm, standard), None
    unseen = lab.mode == "run" and _unreleased(lab, "robust")
    with suppress(ValueError):  # no second derivatives, or weights in half precision: see `sharpness`
        sharp = beside(sharpness)
    return {
        "seeds": str(seen.seeds),
        "success": words.percent(seen.at()),
        **state_of_the_art.cells(seen, None if unseen else beside(resisting), sharp, beside(robustness), weak),
    }


def _recorded_of(view: Lab, arm: Arm) -> str:
    """How many of its seeds have their success recorded, such as "SAT (2 of 5)"."""
    recorded = sum(not view.missing(arm.measurements(seed)[0]) for seed in range(len(arm.specs)))
    return f"{arm.name} ({recorded} of {len(arm.specs)})"


def _table(rows: dict[str, dict[str, str]], by: str, notes: list[str]) -> pd.DataFrame:
    """A row a surrogate, the largest `by` first; what is to be said beside goes into `attrs["notes"]`."""
    table = pd.DataFrame(rows).T.rename_axis("surrogate")
    table = table.sort_values(by, key=lambda s: s.map(_leading), ascending=False, kind="stable")
    table.attrs["notes"] = notes
    return table


def _leading(percent: str) -> float:
    return float(percent.split(" ")[0])


def _unreleased(lab: Lab, against: str) -> list[str]:
    targets = {t: lab.scale.target(t) for t in lab.scale.targets_of(against)}
    return [t.name for t, spec in targets.items()
            if not isinstance(spec, Outside) and not zoo.path_of(lab.weights, spec).exists()]  # fmt: skip


def _require_released(lab: Lab, against: str) -> None:
    lacking, name = _unreleased(lab, against), lab.scale.name
    train = f"train them with `python -m rfnlib run --scale {name}`, or give another scale"
    require(
        not lacking,
        f"{len(lacking)} targets of {name} scale are not released ({', '.join(lacking[:3])} …); "
        f"{train if any(lab.weights.glob('*.safetensors')) else zoo.none_in(lab.weights)}.",
    )


# --- as a target ----------------------------------------------------------------------------------------------------


def as_target(theirs: Outside, lab: Lab) -> pd.DataFrame:
    """A row a released network of the scale: how often the attack on it fools `theirs`, and the scale's own targets.

    Success counts the images that `theirs` classifies correctly; on the scale's targets, as everywhere, those that all
    of them do.
    """
    released = zoo.files(lab.scale.name, lab.weights.parent)
    require(len(released) > 0, f"no network of {lab.scale.name} scale is released; {zoo.none_in(lab.weights)}.")
    mirror, success = mirrored(theirs, lab), f"success on {theirs.name}"
    view, rows, counted = lab.replaying(), {}, 0
    with Progress(len(released), f"released networks attacked, to fool {theirs.name}") as bar:
        for name, path in released.items():
            about = zoo.read(path)[1]
            spec = parse(about["spec"])
            epoch = about["iteration"] / steps_per_epoch(spec, lab.trained_on(spec))
            arm = Arm(name, [spec], At(lab.scale.transfer, (epoch,), recipes.parse(about.get("recipe"))))
            seen, usual = mirror.read(arm), view.curves({name: arm}).get(name)
            counted = seen.at().images
            rows[name] = {
                success: words.percent(seen.at()),
                "on the scale's targets": words.percent(usual.at() if usual else None),
                "natural accuracy of the surrogate": words.percent(seen.mean("accuracy")),
            }
            bar.advance(1, name)
    accuracy = words.percent(mirror.target_table()["natural accuracy"].iloc[0])
    note = (
        f"{theirs.name} has a natural accuracy of {accuracy}; success on it counts the {counted} of "
        f"{lab.scale.test_images} attacked images that it classifies correctly."
    )
    return _table(rows, success, [note])


def mirrored(theirs: Outside, lab: Lab) -> Lab:
    """The lab whose only target is `theirs`; its records and weights are those of `lab`."""
    folders: dict[str, Any] = {"records_dir": lab.folder.parent, "cache_dir": lab.cache.parent}
    scale = replace(lab.scale, targets=(Target(theirs, 1),))
    return Lab(scale, lab.mode, lab.seeds, lab.device, weights_dir=lab.weights.parent, tick=lab.tick, **folders)


# --- what is given --------------------------------------------------------------------------------------------------


def given(what: str) -> tuple[str, nn.Module]:
    """The name and the model that `what` says: "mine.py:model", or a released network such as "laptop/rfn-0".

    In the file, `model` is a module, or a function without arguments that makes one.

    Raises:
        ValueError: no such file, name or module.
    """
    path, _, name = what.partition(":")
    if not name:
        require("/" in what, f"{what!r} names no model; give FILE.py:NAME, or a released network such as smoke/NAME.")
        return what.partition("/")[2].replace(".", "_"), zoo.load(what)
    file = Path(path)
    require(file.suffix == ".py" and file.is_file(), f"{path!r} is no Python file; give FILE.py:NAME.")
    spec = importlib.util.spec_from_file_location(f"given_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[module.__name__] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    known = _public(vars(module))
    require(name in known, f"{path} has no {name!r}; it has {', '.join(known) or 'nothing'}.")
    model = known[name]
    if not isinstance(model, nn.Module) and callable(model) and not _arguments(model):
        model = model()
    kind = type(model).__name__
    require(isinstance(model, nn.Module), f"{what} is a {kind}; give a module, or a function that makes one without "
                                          "arguments (adapters.Asked makes one of any function).")  # fmt: skip
    return name.replace("_", "-") if name != "model" else file.stem, model


@contextmanager
def blaming(file: str) -> Iterator[None]:
    """What fails in `file`, a module of the user's, says where: such an error alone is often but a word.

    Raises:
        ValueError: in place of any error that passes through the file.
    """
    try:
        yield
    except Exception as error:
        at = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            at.append((error.filename, error.lineno))
        lines = [line for name, line in at if Path(name).resolve() == Path(file).resolve()]
        if not lines:
            raise
        said = " ".join(str(error).split())  # torch's are of many lines
        raise ValueError(f"{file}:{lines[-1]} failed: {type(error).__name__}: {said}") from error


def _public(names: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in names.items() if not n.startswith("_") and not inspect.ismodule(v)}


def _arguments(function: Any) -> bool:
    """Whether it must be given some."""
    found = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found)
