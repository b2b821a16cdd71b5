"""The plan holds the code: nothing that it fixes changes without a line in its log."""

from dataclasses import replace

import pytest

from rfnlib import paths, preregistration, scales, transfer
from rfnlib.attacks import MI
from rfnlib.studies import pilots, rfn_gains, state_of_the_art

TEXT = (paths.root() / preregistration.FILE).read_text()


def test_the_code_is_what_was_fixed():
    entries = preregistration.logged(TEXT)
    assert entries, "the log has no entry"
    assert entries[-1][1] == preregistration.fingerprint(), (
        "settings, seeds, primaries, margins or thresholds are no longer those of PREREGISTRATION.md; if that is "
        "meant, say why: python -m rfnlib.preregistration 'why'"
    )
    assert [date for date, _, _ in entries] == sorted(date for date, _, _ in entries)


def test_the_tables_follow_from_the_code_and_the_records():
    assert preregistration.written(TEXT) == TEXT, "run python -m rfnlib.preregistration"


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (0, 1, 2)},
        {"pilots": (100,)},
        {"epochs": 99},
        {"rhos": (0.05, 0.1)},
        {"judged_after": 3.0},
        {"test_images": 999},
        {"targets": scales.LAPTOP.targets[1:]},
        {"attack": replace(scales.LAPTOP.attack, steps=14)},
        {"sharpness": replace(scales.LAPTOP.sharpness, images=511)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_change_of_a_judged_scale_is_seen(monkeypatch, change):
    before = preregistration.fingerprint()
    monkeypatch.setattr(preregistration, "JUDGED", (replace(scales.LAPTOP, **change), scales.GPU))
    assert preregistration.fingerprint() != before


def test_a_change_of_a_margin_or_a_primary_difference_is_seen(monkeypatch):
    before, c4 = preregistration.fingerprint(), rfn_gains.CLAIMS["C4"]
    monkeypatch.setitem(rfn_gains.CLAIMS, "C4", replace(c4, margin=2 * c4.margin))
    assert preregistration.fingerprint() != before
    monkeypatch.setitem(rfn_gains.CLAIMS, "C4", replace(c4, primary=("another difference",)))
    assert preregistration.fingerprint() != before


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        *((pilots, gate, 0.5) for gate in ("PLATEAU", "FIT", "STILL", "ENOUGH")),
        (pilots, "RIVALS", ("SAT",)),
        (pilots, "lgv", lambda scale, seed: scale.flat(None, seed)),
        (state_of_the_art, "JUDGED", ("SGD",)),
        (state_of_the_art, "MI", lambda **how: MI(0.9, **how)),
        (transfer, "DEFAULT", "all"),
    ],
    ids=lambda of: of if isinstance(of, str) else "",
)
def test_a_change_of_what_is_not_in_a_scale_is_seen(monkeypatch, module, name, value):
    before = preregistration.fingerprint()
    monkeypatch.setattr(module, name, value)
    assert preregistration.fingerprint() != before


def test_a_change_is_logged_with_its_reason_or_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / preregistration.FILE).write_text(TEXT)
    monkeypatch.setattr(preregistration.paths, "root", lambda: tmp_path)
    monkeypatch.setattr(preregistration, "written", lambda text: text)
    assert preregistration.main() == 0
    monkeypatch.setattr(pilots, "FIT", 0.9)
    assert preregistration.main() == 1
    assert "give the reason" in capsys.readouterr().err
    assert preregistration.main("half of the networks did not fit") == 0
    *_, (_, now, why) = preregistration.logged((tmp_path / preregistration.FILE).read_text())
    assert (now, why) == (preregistration.fingerprint(), "half of the networks did not fit")


def test_a_default_is_fixed_as_well():
    """What a scale leaves at its default must be in what is hashed, or a new default would change it unseen."""
    laptop = preregistration.fixed()["scales"]["laptop"]
    assert laptop["sharpness"]["tol"] == scales.LAPTOP.sharpness.tol == 1e-2
    assert laptop["rivals"]["penalty"] == 0.1


def test_lost_marks_are_refused():
    with pytest.raises(ValueError, match="must hold the marks"):
        preregistration.written(TEXT.replace("<!-- gates: end -->", ""))
