"""λ₁ around a decay: the threshold, and what is said of curves that grow, fall with the loss, or just fall."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic import FakeLab

from rfnlib import scales, words
from rfnlib.curves import SharpnessCurve
from rfnlib.intervals import Estimate
from rfnlib.lab import MissingRecord
from rfnlib.scale import CONSTANT
from rfnlib.specs import Step
from rfnlib.studies import edge
from rfnlib.studies.edge import DECAY, Edge, threshold

SCALE = replace(scales.SMOKE, epochs=100, standard=(50, 75), decays=(50,), seeds=(0, 1, 2), few=2)
ARMS = edge.arms(FakeLab(SCALE))


def found(top: float, equal: float) -> Edge:
    """λ₁ and λ₁ at equal loss five epochs after the decay, as factors of the constant run's; on the way, in between."""

    def curve(name: str) -> SharpnessCurve:
        arm = ARMS[name]
        epochs, share = arm.question().epochs, (np.array(arm.question().epochs) - 50) / 5
        level = np.stack([20 * np.ones(len(epochs))] * 2) * [[0.98], [1.02]]
        on = 1.0 if name == DECAY else 0.0
        values = {m: level * f ** (on * share) for m, f in (("top", top), ("matched", equal), ("train_loss", 0.5))}
        return SharpnessCurve(name, arm.specs[0], epochs, values)

    return Edge(curve(DECAY), curve(CONSTANT))


def test_the_threshold_is_where_heavy_ball_descent_on_a_quadratic_diverges():
    spec = SCALE.surrogate(Step(0.1, (50,)), 0)
    assert threshold(spec, 49.0) == pytest.approx(38) and threshold(spec, 51.0) == pytest.approx(380)

    def grows(curvature: float) -> bool:
        w, v = 1.0, 0.0
        for _ in range(2000):
            v = spec.momentum * v + curvature * w
            w -= 0.1 * v
        return abs(w) > 1

    assert grows(38.1) and not grows(37.9)


def test_both_runs_are_measured_at_the_same_fine_epochs_with_the_first_seeds():
    assert ARMS[DECAY].question().epochs == (50, 50.125, 50.25, 50.5, 51, 52, 55) == ARMS[CONSTANT].question().epochs
    assert [s.seed for s in ARMS[DECAY].specs] == [0, 1] and ARMS[DECAY].specs[0].schedule.milestones == (50, 75)
    smoke = edge.arms(FakeLab(scales.SMOKE))[DECAY].question().epochs
    assert max(smoke) <= scales.SMOKE.standard[1], "not beyond the next decay"


@pytest.mark.parametrize(
    ("top", "equal", "said"),
    [
        (12.0, 6.0, "an equilibrium is not ruled out, and λ₁ grows"),
        (1.2, 1.2, "an equilibrium is ruled out, and λ₁ grows"),
        (0.5, 1.05, "λ₁ drops; whether by the loss alone is not decided by 2 seeds"),
        (0.5, 0.55, "an equilibrium is ruled out, and λ₁ drops, not by the loss alone"),
        (0.5, np.nan, "whether by the loss alone is not decided by 2 seeds"),
    ],
)
def test_what_it_is_called_follows_from_the_intervals(top, equal, said):
    of = found(top, equal)
    told = of.headline()
    assert said in told and words.lower(-of.effect(5.0)) in told and "would be higher by the factor 10" in told


def test_what_an_interval_holds_is_not_said_to_be_decided():
    def estimate(value: float) -> Estimate:
        return Estimate(value, value, 0.5, 1.0, 2)

    of = found(0.5, 0.5)
    assert of.kind(estimate(-0.1), estimate(-9)) == (
        "an equilibrium is not ruled out, and whether λ₁ drops is not decided by 2 seeds"
    )
    assert of.kind(estimate(-9), estimate(-0.1)).endswith("whether by the loss alone is not decided by 2 seeds")
    alone = replace(estimate(-9), error=np.inf, seeds=1)
    assert "not ruled out" in of.kind(alone, alone), "of one seed nothing is known"


def test_shares_are_of_the_rate_that_made_each_network():
    of = found(0.5, 0.9)
    assert np.exp(of.share(DECAY, 0.0).value) == pytest.approx(20 / of.limit(DECAY, 0.0), rel=1e-3)
    assert of.limit(DECAY, 0.0) == pytest.approx(of.limit(CONSTANT)) == pytest.approx(of.limit(DECAY) / 10)
    table = of.table()
    assert list(table.index) == ["0", "0.125", "0.25", "0.5", "1", "2", "5"]
    assert table.loc["0", "decay over constant: λ₁"].startswith("×1.00") and "×0.50" in table.loc["5"].to_string()


def test_it_needs_both_runs():
    with pytest.raises(MissingRecord):
        edge.measure(FakeLab(SCALE, missing=(CONSTANT,)))
