"""What notebook 00 says of all claims together."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic import FakeLab
from test_pilots import SCALE, peaked

from rfnlib import claims, studies
from rfnlib.intervals import Estimate
from rfnlib.plots import overview, style


def estimate(value: float, error: float = 0.005) -> Estimate:
    return Estimate(value, value, error, 20.0, seeds=5, images=500, targets=3)


def judge(claim: str, *primary, **options) -> claims.Verdict:
    return claims.judge(studies.every_claim()[claim], *primary, **options)


@pytest.fixture
def found():
    """C1 supported, C4 without effect, C5 not testable; the others are not computed."""
    judged = [
        judge("C1", estimate(0.06)),
        judge("C4", estimate(0.0)),
        judge("C5", estimate(0.1), gates=[claims.Gate("fit", False, "too low")]),
    ]
    return {v.claim.id: (v, f"what {v.claim.id} found") for v in claims.holm(judged, 8)}


def test_every_claim_has_a_row_and_what_is_not_computed_says_so(found):
    table = studies.verdict_table(found)
    assert list(table.index) == list(studies.every_claim())
    assert list(table["verdict"][["C1", "C4", "C5", "C2"]]) == ["supported", "no effect", "not testable", ""]
    assert table["what was found"]["C1"] == "what C1 found"
    assert table["what was found"]["C2"] == "not computed yet"
    assert table["Holm's p"]["C1"] == "< 0.001" and table["Holm's p"]["C5"] == ""


def test_the_summary_names_each_claim_once_and_what_it_rests_on(found):
    said = studies.summary(FakeLab(SCALE, peaked), found)
    first = said.split(".")[0]
    assert all(first.count(claim) == 1 for claim in studies.every_claim())
    assert "C1 supported; C4 no effect; C5 not testable" in first
    assert "at least 5 seeds, 3 targets and 500 images" in said
    assert "supported or contradicted: C1." in said
    assert "Of 7 gates 7 are passed." in said


def test_gates_that_fail_are_named_in_the_summary(found):
    said = studies.summary(FakeLab(SCALE, peaked, training=lambda name: 0.9), found)
    assert "Of 7 gates 6 are passed; not passed: fit." in said
    alone = {claim: studies.summary(FakeLab(SCALE, peaked), {claim: found[claim]}) for claim in ("C4", "C5")}
    assert "of C4 an effect that matters is ruled out." in alone["C4"] and "Nothing is decided" in alone["C5"]
    assert studies.summary(FakeLab(SCALE, peaked, missing=("pilot SGD",)), {}).endswith("not measured yet.")


def test_the_figure_counts_in_margins(found):
    figure = overview.verdicts([verdict for verdict, _ in found.values()])
    (axis,) = figure.axes
    dots = [float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([0.06 / 0.02, 0.0, 0.1 / 0.03])
    assert [t.get_text() for t in axis.texts] == ["supported", "no effect", "not testable"]
    assert np.isfinite(axis.get_xlim()).all()
    plt.close("all")


def test_tables_are_shown_whole(monkeypatch):
    shown = []
    monkeypatch.setattr(style, "display", lambda data, raw: shown.append(data))
    style.table(studies.verdict_table({}))
    assert "..." not in shown[0]["text/html"] and "not computed yet" in shown[0]["text/plain"]
    assert studies.every_claim()["C6"].sentence in shown[0]["text/html"]
    style.table(studies.verdict_table({}).iloc[:0])
    assert shown[1] == {"text/plain": "not recorded yet"}
