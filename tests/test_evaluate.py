"""`evaluate`: one's own surrogate or target by the protocol of the studies, from released weights alone."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
import torch
from scenes import TINY
from torch import nn

from rfnlib import __main__ as cli
from rfnlib import evaluate, outside, records, scales, training, zoo
from rfnlib.adapters import Adapted, Asked
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.scale import Arch, Target
from rfnlib.specs import Adversary
from rfnlib.studies import state_of_the_art

SMALL = replace(
    TINY, name="small", epochs=1, decays=(1,), standard=(1,), seeds=(0,), surrogates=(Arch("cnn", 4),), n_train=1000,
    targets=(Target(Arch("cnn", 4), 2, "validation"), Target(Arch("cnn", 4), 2, seed=1001),
             Target(Arch("cnn", 8), 2, "robust", adversary=Adversary("l2", 0.5, steps=1))),
)  # fmt: skip
SGD = SMALL.flat(None, 0)
MINE = """
import torch
from torch import nn
from rfnlib.adapters import Asked
from rfnlib import zoo

def model():
    return zoo.load("small/ours")

labels = Asked(lambda x: model()(x).argmax(1), "ours", classes=10)
untrained = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
width = 3

def broken():
    return {}["width"]

class Unlike(nn.Linear):
    def forward(self, x):
        return super().forward(x.sizes)

unlike = Unlike(64, 10)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Records, targets and one released surrogate of the scale."""
    at = {f"{name}_dir": tmp_path_factory.mktemp(name) for name in ("records", "cache", "weights")}
    lab = Lab(SMALL, "run", device="cpu", **at)
    for asked in (At(SMALL.transfer, (1.0,)), At(SMALL.sharpness, (1.0,)), At(SMALL.robustness, (1.0,))):
        lab.measure(Measurement(SGD, asked))
    lab.clean("robust")
    lab.release(SGD, name="ours")
    return at


@pytest.fixture
def lab(folders, monkeypatch):
    """A lab that may not train; the folders are the project's."""

    def fail(*_, **__):
        raise AssertionError("it trained")

    monkeypatch.setattr(training, "train", fail)
    monkeypatch.setattr(outside, "_MODELS", {})
    monkeypatch.setitem(scales.SCALES, "small", SMALL)
    for name, folder in folders.items():
        monkeypatch.setenv(f"RFN_{name.removesuffix('_dir').upper()}", str(folder))
    return Lab(SMALL, "run", device="cpu")


def test_the_released_network_has_the_recorded_row_to_the_hit(lab):
    recorded = lab.find(Measurement(SGD, At(SMALL.transfer, (1.0,)))).at(1)
    theirs = outside.register("theirs", zoo.load("small/ours"))
    row = lab.measure(Measurement(theirs, At(SMALL.transfer, (1.0,)))).at(1)
    same = ("adv_wrong", "surrogate_wrong", "whitebox", "l2", "accuracy", "targets")
    assert {name: row[name] for name in same} == {name: recorded[name] for name in same}


def test_a_surrogate_stands_beside_the_recorded_ones(lab, monkeypatch):
    asked = evaluate.arm_of(outside.Outside("x", "0" * 16), lab).asked
    ours = Arm("SGD", [SGD], *(replace(at, epochs=(1.0,)) for at in asked))
    lab.measure(ours.measurements()[1])
    monkeypatch.setattr(state_of_the_art, "arms", lambda lab: {"SGD": ours})
    table = evaluate.evaluate(zoo.load("small/ours"), "mine", lab)
    assert sorted(table.index) == ["SGD", "mine"] and list(table.columns)[:2] == ["seeds", "success"]
    mine, sgd = table.loc["mine"], table.loc["SGD"]
    assert (mine.drop("cost, epochs of SGD") == sgd.drop("cost, epochs of SGD")).all(), "they are the same network"
    assert mine["cost, epochs of SGD"] == "not measured" and sgd["cost, epochs of SGD"] == "1"
    written = {records.read(path).kind for path in lab.folder.glob("*-mine-outside-*.json")}
    assert written == {"transfer", "sharpness", "robustness"}


def test_an_arm_is_shown_once_its_success_is_recorded_and_the_others_are_named(lab, monkeypatch):
    seeds = [SMALL.flat(None, seed) for seed in (0, 1)]
    asked = [replace(at, epochs=(1.0,)) for at in evaluate.arm_of(outside.Outside("x", "0" * 16), lab).asked]
    arms = {"SGD": Arm("SGD", seeds[:1], *asked), "SAT": Arm("SAT", seeds, *asked)}
    monkeypatch.setattr(state_of_the_art, "arms", lambda lab: arms)
    del lab.records[lab.find(Measurement(SGD, asked[2])).key]
    table = evaluate.evaluate(zoo.load("small/ours"), "mine", lab)
    assert sorted(table.index) == ["SGD", "mine"]
    assert table.loc["SGD", "λ₁"] == "not measured" != table.loc["mine", "λ₁"]
    note, _ = table.attrs["notes"]
    assert "1 of 2 surrogates of notebook 05 are left out" in note and "SAT (1 of 2); `python -m rfnlib run" in note
    with pytest.raises(ValueError, match="SAT is a surrogate of notebook 05, which stands beside it; give the model"):
        evaluate.evaluate(zoo.load("small/ours"), "SAT", lab)

    def choose(lab):
        raise MissingRecord("pilots lack 1 of 2 rows.")

    monkeypatch.setattr(state_of_the_art, "arms", choose)
    table = evaluate.evaluate(zoo.load("small/ours"), "mine", lab)
    assert list(table.index) == ["mine"]
    note, _ = table.attrs["notes"]
    assert "beside it: pilots lack 1 of 2 rows. Records are read from" in note and "RFN_RECORDS" in note


def test_a_target_is_attacked_by_every_released_network(lab):
    own, before = zoo.load("small/ours"), set(lab.folder.glob("*.json"))
    table = evaluate.evaluate(Asked(lambda x: own(x).argmax(1), "ours", classes=10), "labels-only", lab, "target")
    assert sorted(table.index) == sorted(zoo.files("small")) and "ours" in table.index
    assert table.loc["ours", "on the scale's targets"] != "not measured"
    best = table["success on labels-only"].map(lambda s: float(s.split()[0]))
    assert best.is_monotonic_decreasing and best["ours"] == best.max(), "the network itself is the white box"

    about, written = table.attrs["notes"]
    row = lab.find(Measurement(SGD, At(SMALL.transfer, (1.0,)))).at(1)
    wrong = records.unpack(row["surrogate_wrong"], (SMALL.test_images + SMALL.validation_images,))
    assert f"accuracy of {100 * row['accuracy']:.1f} %" in about
    assert f"counts the {(~wrong[: SMALL.test_images]).sum()} of {SMALL.test_images} attacked" in about
    new = set(lab.folder.glob("*.json")) - before
    assert f"New records in {lab.folder}: {len(new)};" in written
    (digest,) = re.findall(r"grep -l (\w+)", written)
    assert {path for path in lab.folder.glob("*.json") if digest in path.read_text()} == new


def test_without_second_derivatives_or_robust_targets_a_cell_is_empty(lab, tmp_path):
    half = Adapted(zoo.load("small/ours").bfloat16())
    other = Lab(SMALL, "run", device="cpu", weights_dir=tmp_path)
    (tmp_path / "small").mkdir()
    for target in SMALL.targets_of("standard"):
        path = zoo.path_of(lab.weights, SMALL.target(target))
        (tmp_path / "small" / path.name).write_bytes(path.read_bytes())
    found = evaluate.evaluate(half, "half", other).loc["half"]
    assert found["λ₁"] == found["success on robust targets"] == "not measured" and "%" in found["success"]


def test_targets_that_are_not_released_are_not_trained(lab, tmp_path):
    nothing = Lab(SMALL, "run", device="cpu", weights_dir=tmp_path)
    (tmp_path / "small").mkdir()
    for role, said in (("surrogate", "2 targets of small scale are not released"), ("target", "no network of small")):
        with pytest.raises(ValueError, match=f"{said}.* there is none in {nothing.weights}; .* in RFN_WEIGHTS"):
            evaluate.evaluate(zoo.load("small/ours"), "mine", nothing, role)
    shutil.copy(zoo.files("small")["ours"], nothing.weights)
    with pytest.raises(ValueError, match="2 targets of small scale are not released .* train them with"):
        evaluate.evaluate(zoo.load("small/ours"), "mine", nothing)


def test_a_model_that_is_used_wrongly_is_not_measured(lab):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="guess is not measured: the model is right on .* chance for its 10 classes"):
        evaluate.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "guess", lab)
    with pytest.raises(ValueError, match="role is 'victim'; give one of 'surrogate', 'target'"):
        evaluate.evaluate(zoo.load("small/ours"), "mine", lab, "victim")
    with pytest.raises(ValueError, match=r"large does not take images .1, 8, 8. of digits .mat1 and mat2.*; give"):
        evaluate.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), "large", lab)
    itself = zoo.load("small/cnn-w4-onecycle-s1001")
    with pytest.raises(ValueError, match=r"mine is the target cnn .width 4., seed 1001 itself, which is a white box"):
        evaluate.evaluate(itself, "mine", lab)
    assert not [*lab.folder.glob("*guess*"), *lab.folder.glob("*large*")]


def test_the_command_takes_a_file_or_a_released_network(lab, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)

    def line(of: str) -> str:
        return f"mine.py:{1 + MINE[: MINE.index(of)].count(chr(10))}"

    (tmp_path / "typo.py").write_text("width = 3\nmodel =\n")
    file = str(tmp_path / "mine.py")
    assert cli.main(["evaluate", f"{file}:model", "--scale", "small", "--device", "cpu"]) == cli.DONE
    said = capsys.readouterr().out
    assert "mine" in said and "success on robust targets" in said
    assert cli.main(["evaluate", f"{file}:labels", "--scale", "small", "--role", "target"]) == cli.DONE
    assert "success on labels" in capsys.readouterr().out
    assert cli.main(["evaluate", "small/ours", "--scale", "small"]) == cli.DONE
    for what, sentence in {
        "mine": "'mine' names no model; give FILE.py:NAME, or a released network",
        "nothing.py:model": "'nothing.py' is no Python file",
        f"{file}:modell": "has no 'modell'; it has ",
        f"{file}:width": "is a int; give a module, or a function that makes one",
        f"{file}:untrained": "untrained is not measured: the model is right on",
        f"{file}:broken": f"{line('{}[')} failed: KeyError: 'width'",
        f"{file}:unlike": f"{line('.sizes')} failed: AttributeError: 'Tensor' object has no attribute 'sizes'",
        f"{tmp_path / 'typo.py'}:model": "typo.py:2 failed: SyntaxError: ",
        f"{file}:labels": "this function gives no gradient, so it is a target and no surrogate",
        "small/theirs": "no network 'small/theirs' is released; give one of small/ours, small/cnn",
    }.items():
        assert cli.main(["evaluate", what, "--scale", "small"]) == cli.REFUSED
        assert sentence in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_a_module_of_ones_own_may_have_dataclasses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n\n\n"
        "@dataclass\nclass Size:\n    width: int = 3\n\n\nmodel = nn.Linear(Size().width, 2)\n"
    )
    name, model = evaluate.given(f"{tmp_path / 'mine.py'}:model")
    assert (name, model.in_features) == ("mine", 3)
