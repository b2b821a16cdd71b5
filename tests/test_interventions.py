"""Six ways to go on from one checkpoint: what differs between arms, and what is concluded from known curves."""

import re
from dataclasses import replace

import numpy as np
import pytest
from synthetic import FakeLab

from rfnlib import scales
from rfnlib.curves import SharpnessCurve
from rfnlib.intervals import Estimate
from rfnlib.lab import MissingRecord
from rfnlib.probes import Sharpness
from rfnlib.similarity import Similarity
from rfnlib.specs import Step
from rfnlib.studies import interventions, pilots
from rfnlib.studies.interventions import BATCH, LOWER, MEAN, NOISE, RFN, SAME, arrow, sign

SCALE = replace(scales.SMOKE, epochs=100, decays=(25, 50, 75), standard=(50, 75), seeds=(0, 1, 2, 3, 4), n_train=1000,
                pilots=(100, 101), rhos=(0.05, 0.1, 0.2), batch=50)  # fmt: skip
SUCCESS = {LOWER: 0.3, MEAN: 0.28, BATCH: 0.27, RFN: 0.26, NOISE: 0.2, SAME: 0.2}
FACTOR = {LOWER: 0.8, MEAN: 0.4, BATCH: 1.5, RFN: 0.5, NOISE: 1.0, SAME: 1.0}


class Known(FakeLab):
    """A lab in which success and sharpness of each arm at its end are as said, reached in proportion to the way."""

    factor = FACTOR

    def read(self, arm, probe=None, role="test"):
        at = arm.question(probe)
        if not isinstance(at.probe, Sharpness | Similarity):
            return super().read(arm, probe, role)
        if not self.complete(arm, at):
            raise MissingRecord(f"{arm.name} is missing")
        names = (*Sharpness.measures, "input_top", "cosine", "train_loss", "accuracy")
        drawn = np.random.default_rng(len(arm.name)).normal(0, 0.004, (len(arm.specs), len(at.epochs)))
        level = self.factor.get(arm.name, 1.0) ** (np.array(at.epochs) / max(at.epochs))
        values = {name: 100 * level * np.exp(drawn) for name in names}
        values |= {"cosine": 0.2 + 0.0 * drawn, "matched": np.full(drawn.shape, np.nan)}
        return SharpnessCurve(arm.name, arm.specs[0], at.epochs, values)


def lab(**how) -> Known:
    return Known(SCALE, lambda name, e: SUCCESS.get(name, 0.2), seed_sd=0.003, **how)


def test_arms_start_from_one_network_and_differ_in_what_they_say():
    runs = interventions.runs(lab(), [0, 1])
    assert interventions.length(SCALE) == 10
    starts = {spec.start for specs in runs.values() for spec in specs if spec.seed == 0}
    assert starts == {replace(SCALE.surrogate(Step(SCALE.lr), 0), epochs=50)}
    same = runs[SAME][0]
    assert (same.schedule, same.epochs, same.minimizer) == (Step(SCALE.lr), 10, None)
    assert runs[LOWER][0] == replace(same, schedule=Step(SCALE.lr / 10)) and runs[BATCH][0] == replace(same, batch=500)
    rho = runs[RFN][0].minimizer.rho
    assert runs[RFN][0] == replace(same, epochs=5, minimizer=runs[RFN][0].minimizer)
    assert (runs[NOISE][0].minimizer.method, runs[NOISE][0].minimizer.rho, runs[NOISE][0].epochs) == ("Noise", rho, 5)
    assert runs[MEAN] == runs[SAME]


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_checkpoints_are_those_of_the_runs_of_other_claims_at_every_scale(scale):
    first = min(scale.standard)
    start, constant = pilots.checkpoint(scale, 0), scale.surrogate(Step(scale.lr), 0)
    assert start.history_key(first * 7, 7) == constant.history_key(first * 7, 7), "nothing is trained twice"
    assert interventions.length(scale) % 2 == 0 and 0.05 <= interventions.length(scale) / scale.epochs <= 0.34


def test_a_mean_is_only_taken_of_several_weights():
    way = interventions.followed(lab())
    assert way[SAME].question().epochs == (0.25, 1.0, 3.0, 10.0)
    assert way[RFN].question().epochs == (0.125, 0.5, 1.5, 5.0)
    assert way[MEAN].question().epochs == (1.0, 3.0, 10.0) and way[MEAN].question().recipe.per_epoch == 2
    assert len(way[SAME].specs) == 3 and len(interventions.arms(lab())[SAME].specs) == 5


def test_the_plan_judges_before_it_follows():
    seeds = [m.spec.seed for m in interventions.plan(lab())]
    assert seeds[: 18 * 5] == [s for s in range(5) for _ in range(18)], "six arms, three questions, seed by seed"


def test_what_was_put_in_is_found():
    found = interventions.measure(lab())
    for name in (LOWER, MEAN, BATCH, RFN):
        assert found.ends.gain(name).value == pytest.approx(SUCCESS[name] - 0.2, abs=0.01)
        assert np.exp(found.ends.change(name, "top").value) == pytest.approx(FACTOR[name], rel=0.03)
    q1, q2, q3 = (found.primaries(q) for q in ("Q1", "Q2", "Q3"))
    assert [d.value for d in q1] == pytest.approx([0.06, 0.06], abs=0.01)
    assert [d.value for d in q2] == pytest.approx([0.04], abs=0.01)
    assert [d.value for d in q3] == pytest.approx([0.08, 0.07], abs=0.01)


def test_claims_about_flatness_wait_for_rfn_to_be_flat():
    found = interventions.measure(lab())
    last = {q: found.gates(q)[-1] for q in ("Q1", "Q2", "Q3")}
    assert last["Q1"].passed and last["Q1"].name == "RFN flattens" and last["Q2"].passed
    assert [g.name for g in found.gates("Q3")] == [g.name for g in found.trained]
    sharp = lab()
    sharp.factor = FACTOR | {RFN: 1.0}
    found = interventions.measure(sharp)
    assert not found.gates("Q1")[-1].passed and not found.gates("Q2")[-1].passed


def test_directions_say_which_measures_moved_for_certain():
    found = interventions.measure(lab())
    arrows = found.directions()
    assert arrows.loc[LOWER, "success"] == "↑" and arrows.loc[LOWER, "λ₁"] == "↓" and arrows.loc[BATCH, "λ₁"] == "↑"
    assert arrows.loc[NOISE, "success"] == "·" and (arrows["gradient similarity"] == "·").all()
    assert (arrows["λ₁ at equal loss"] == "·").all(), "it is not defined"
    agreement = found.agreement()
    assert list(agreement.loc["λ₁"]) == ["3", "1", "0", "0", "1"]
    assert agreement.loc["gradient similarity"].iloc[2] == "4"
    assert "Success moved in 4 arms of 5" in found.sentence()
    still = interventions.measure(Known(SCALE, lambda name, e: 0.2, seed_sd=0.003))
    assert still.sentence() == "Success moved in none of 5 arms."


def test_arms_are_put_in_order_by_what_they_gain_and_by_what_they_flatten():
    found = interventions.measure(lab())
    gained, flattened = (part.split(", ") for part in re.findall(r": ([^;.]+)", found.orders()))
    assert sorted(gained) == sorted(flattened) == sorted(set(SUCCESS) - {SAME})
    assert flattened[-1] == BATCH and found.ends.gain(gained[0]).value == max(
        found.ends.gain(name).value for name in gained
    )
    assert interventions.measure(lab(missing=(f"sharpness of {SAME}",))).orders() == ""


def test_gates_of_the_questions_have_a_table_and_wait_for_sharpness():
    gates = interventions.measure(lab()).gate_table()
    assert list(gates["claims"]) == ["Q1", "Q2"] and gates["found"].str.startswith("λ₁ of ").all()
    assert interventions.measure(lab(missing=(f"sharpness of {RFN}",))).gate_table().empty


def test_the_way_tells_what_moves_first():
    found = interventions.measure(lab())
    first = found.first()
    assert set(first.index) == {LOWER, MEAN, BATCH, RFN, NOISE}
    assert first.loc[RFN, "λ₁"] == "1 ↓" and first.loc[NOISE, "λ₁"] == "·"
    assert first.loc[RFN, "success"].startswith("0.25 ↑"), "which is the same at every moment here"


def test_tables_hold_every_arm_and_say_what_is_missing():
    found = interventions.measure(lab(missing=(f"sharpness of {RFN}",)))
    table = found.table()
    assert list(table.index) == list(SUCCESS) and table.loc[RFN, "λ₁"] == "not measured"
    assert " to " in table.loc[LOWER, "gain, points"] and "×0.8" in table.loc[LOWER, "λ₁"]
    with pytest.raises(MissingRecord):
        found.gates("Q1")
    with pytest.raises(MissingRecord, match="averaged: not complete"):
        interventions.measure(lab(missing=(MEAN,))).primaries("Q3")


def test_one_seed_moves_nothing_for_certain():
    alone = lab()
    alone.scale = replace(SCALE, seeds=(0,))
    found = interventions.measure(alone)
    assert (found.directions().drop(columns="success") == "·").all(axis=None)
    assert "one seed" in found.sentence() and "one seed" in found.table().to_string()


def test_signs_are_those_of_the_interval():
    sure, unsure = Estimate(-0.1, -0.1, 0.01, 10, 5), Estimate(0.1, 0.1, 0.1, 10, 5)
    assert [sign(e) for e in (sure, unsure, None)] == [-1, 0, 0] and arrow(sure) == "↓"
