"""The main surrogates released by one call: by their names, with a card, to the hit what is recorded."""

from __future__ import annotations

import pytest
from scenes import TINY

from rfnlib import __main__ as cli
from rfnlib import release, scales, zoo
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.studies import state_of_the_art


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab of the tiny scale whose main surrogates are two networks of one run."""
    for name in ("records", "cache", "weights"):
        monkeypatch.setenv(f"RFN_{name.upper()}", str(tmp_path / name))
    monkeypatch.setitem(scales.SCALES, "tiny", TINY)
    spec = TINY.flat(None, 0)
    epochs = {state_of_the_art.STOPPED: 2.0, "SGD": 3.0}
    arms = {name: Arm(name, [spec], At(TINY.robustness, (epoch,))) for name, epoch in epochs.items()}
    monkeypatch.setattr(state_of_the_art, "arms", lambda lab: arms)
    monkeypatch.setattr(release, "MAIN", {slug: release.MAIN[slug] for slug in ("sgd-early", "sgd")})
    return Lab("tiny", "run", device="cpu")


def test_main_surrogates_are_released_by_name_and_measured_from_their_files(lab, tmp_path, monkeypatch, capsys):
    with pytest.raises(MissingRecord, match="nothing is recorded of resnet18-w4-step1-2-s0 at epoch 2; measure it"):
        release.release(lab)
    assert not lab.weights.exists()
    m = Measurement(TINY.flat(None, 0), At(TINY.robustness, (2.0, 3.0)))
    recorded = lab.measure(m)
    assert cli.main(["release", "--scale", "tiny", "--device", "cpu"]) == cli.DONE
    assert "sgd-early-0-" in (said := capsys.readouterr().out) and said.count(" kB") == 2
    assert list(zoo.files("tiny")) == ["sgd-0", "sgd-early-0"]
    written = (lab.weights / "README.md").read_text(encoding="utf-8")
    assert "| sgd-early-0 | resnet18 (width 4) | SGD |" in written and recorded.at(2)["weights"] in written

    monkeypatch.setenv("RFN_RECORDS", str(tmp_path / "no-records"))
    monkeypatch.setenv("RFN_CACHE", str(tmp_path / "no-cache"))
    again = Lab("tiny", "run", device="cpu").measure(m)
    apart = {"seconds", "made"}
    for ours, theirs in zip(recorded.rows, again.rows, strict=True):
        assert {k: v for k, v in ours.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}
    assert not (tmp_path / "no-cache").exists(), "nothing was trained"
