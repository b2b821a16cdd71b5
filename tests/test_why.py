"""Claims Q1 to Q3 on curves of which it is known what is true, the figures, and what reviewers are told."""

import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import test_interventions as known
from matplotlib import pyplot as plt
from test_edge import found as edge_of
from test_journey import Known as Journeying
from test_predictors import frame

from rfnlib import scales, studies
from rfnlib.lab import MissingRecord
from rfnlib.plots import why as figures
from rfnlib.studies import interventions, journey, pilots, predictors, reviewers, why
from rfnlib.studies.interventions import BATCH, LOWER, MEAN, NOISE, RFN, SAME


@pytest.fixture(autouse=True)
def passed(monkeypatch):
    """Training passes its gates: what it takes is tested where gates are."""
    passing = {name: lambda lab, name=name: known.interventions.Gate(name, True, "") for name in pilots.TRAINED}
    monkeypatch.setattr(pilots, "EVERY", pilots.EVERY | passing)


def judged(success=None, factor=None, **how) -> why.Why:
    rates = known.SUCCESS | (success or {})
    lab = known.Known(known.SCALE, lambda name, e: rates.get(name, 0.2), seed_sd=0.003, **how)
    lab.factor = known.FACTOR | (factor or {})
    return why.measure(lab)


@pytest.mark.parametrize(
    ("claim", "success", "word"),
    [
        ("Q1", {}, "supported"),
        ("Q1", {NOISE: 0.3}, "contradicted"),
        ("Q1", {RFN: 0.2}, "no effect"),
        ("Q2", {}, "supported"),
        ("Q2", {RFN: 0.36}, "contradicted"),
        ("Q2", {RFN: 0.3}, "no effect"),
        ("Q3", {}, "supported"),
        ("Q3", {BATCH: 0.12}, "contradicted"),
        ("Q3", {MEAN: 0.2, BATCH: 0.21}, "no effect"),
    ],
)
def test_the_verdict_is_what_the_arms_were_made_to_show(claim, success, word):
    found = judged(success)
    verdict = found.verdict(claim)
    assert verdict.word == word and verdict.follows
    assert found.headline(claim).startswith(verdict.answer) and "10 epochs of SGD" in found.headline(claim)


def test_claims_about_flatness_are_not_testable_where_rfn_did_not_flatten():
    found = judged(factor={RFN: 1.0})
    assert [found.verdict(q).word for q in ("Q1", "Q2", "Q3")] == ["not testable", "not testable", "supported"]
    assert "gate 'RFN flattens' failed (λ₁ of unchanged over that of RFN ×1.0" in str(found.verdict("Q1"))


def test_a_claim_waits_for_its_own_arms_alone():
    found = judged(missing=(MEAN,))
    assert found.verdict("Q1").word == "supported" and "not judged yet" in studies.told(found, why.CLAIMS)
    with pytest.raises(MissingRecord):
        found.verdict("Q3")


def test_it_is_one_of_the_questions_beyond_the_paper():
    assert why in studies.BEYOND and studies.of("Q2") is why and list(why.CLAIMS) == ["Q1", "Q2", "Q3"]
    assert all(len(c.follows) == 3 and c.answer.count("|") == 2 for c in why.CLAIMS.values())


def test_the_plan_has_the_interventions_first_and_pictures_last():
    lab = known.lab()
    first, last = list(why.plan(lab)), list(why.later(lab))
    assert first[0].spec.start and {m.probe.kind for m in first} == {"transfer", "sharpness", "similarity"}
    assert [m.probe.kind for m in last][-1] == "plane" and {m.probe.kind for m in last} == {"path", "plane"}
    waiting = known.lab(missing=("pilot ρ = 0.2",))
    assert {m.probe.kind for m in why.plan(waiting)} == {"sharpness"}, "the decay needs no choice"


def test_figures_are_drawn_with_and_without_what_is_missing():
    for found in (judged(), judged(missing=(MEAN, f"sharpness of {RFN}", f"similarity of {NOISE}"))):
        main = figures.interventions(found.interventions, 0.03)
        shown = [t.get_text() for t in main.axes[0].get_yticklabels()]
        assert shown == [n for n in (LOWER, MEAN, BATCH, RFN, NOISE) if n in found.interventions.ends.success]
        assert len(figures.way(found.interventions).axes) == 4
    main.canvas.draw()
    figures.way(found.interventions).canvas.draw()
    figures.edge(edge_of(0.5, 0.9)).canvas.draw()
    figures.edge(edge_of(0.5, np.nan)).canvas.draw()
    plt.close("all")


def test_correlations_are_drawn_for_the_measures_that_are_known():
    table = frame()
    table["relative"] = np.nan
    figure = figures.predictors(predictors.Predictors(table))
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert "relative flatness" not in labels and "λ₁" in labels
    figure.canvas.draw()
    empty = predictors.Predictors(pd.DataFrame(columns=table.columns).astype({"top": float}))
    figures.predictors(empty)
    plt.close("all")


def test_every_question_of_a_reviewer_gets_a_line_or_says_what_is_missing(monkeypatch):
    found = judged()
    monkeypatch.setattr(predictors, "measure", lambda lab: predictors.Predictors(frame()))
    monkeypatch.setattr(why.edge, "measure", lambda lab: edge_of(0.5, 0.9))
    pictures = Journeying(replace(known.SCALE, judged_after=2.0, sharp_every=20), lambda name, e: 0.3)
    monkeypatch.setattr(why.journey, "journeys", lambda lab, of=journey.journeys: of(pictures))
    monkeypatch.setattr(why.journey, "landscapes", lambda lab, of=journey.landscapes: of(pictures))
    for x in (question.id for question in reviewers.QUESTIONS if question.study is why):
        said = found.answer(x)
        assert "\n" not in said and len(said) > 20 and said.endswith(".") and not said.endswith(".."), x
        assert " to " in said or "2 seeds: " in said or x == "x10", f"{x} has no interval: {said}"
    assert "RFN +5.9 (" in found.answer("x14") and "perturbations" in found.answer("x8")
    monkeypatch.setattr(why.journey, "landscapes", lambda lab: [])
    with pytest.raises(MissingRecord, match="no plane"):
        judged().answer("x10")


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_every_scale_has_a_plan(scale):
    lab = known.Known(scale, lambda name, e: 0.2)
    planned = [*why.plan(lab), *why.later(lab)]
    assert all(0 < e <= m.spec.epochs for m in planned for e in m.epochs)
    assert {SAME, *interventions.arms(lab)} == set(interventions.arms(lab))
