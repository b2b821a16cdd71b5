"""Rank correlations over networks: those of scipy, of a regression on ranks, and over runs that are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scenes import TINY

from rfnlib import probes
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.scale import Arch
from rfnlib.specs import Step
from rfnlib.studies import interventions, predictors
from rfnlib.studies.predictors import MEASURES, Predictors, correlation, spearman

RANDOM = np.random.default_rng(0)


def frame(runs=8, each=6, noise=0.3) -> pd.DataFrame:
    """Networks whose success follows the training loss, as λ₁ does; the gradient's norm follows success."""
    rows = []
    for run in range(runs):
        level = RANDOM.normal()
        for e in range(each):
            loss = level + RANDOM.normal()
            success = -loss + noise * RANDOM.normal()
            known = {name: RANDOM.normal() for name in MEASURES}
            known |= {"train_loss": loss, "top": loss + noise * RANDOM.normal(), "input_gradient": success**3}
            rows.append({"run": str(run), "seed": 0, "epoch": e, "end": e == each - 1, "success": success, **known})
    return pd.DataFrame(rows)


def test_it_is_scipys_and_the_partial_one_is_that_of_a_regression_on_ranks():
    x, y, z = RANDOM.normal(size=(3, 40))
    y[:5] = y[5]  # ties
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    ranks = np.array([scipy.stats.rankdata(v) for v in (x, y, z)])
    r = np.corrcoef(ranks)
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert spearman(x, y, z) == pytest.approx(expected)
    assert np.isnan(spearman(x, np.ones(40))) and np.isnan(spearman(x, y, x))


def test_a_measure_that_only_follows_the_loss_predicts_nothing_given_the_loss():
    table = frame()
    assert correlation(table, "top").value < -0.8
    given = correlation(table, "top", "train_loss")
    assert given.low < 0 < given.high and abs(given.value) < 0.4
    assert correlation(table, "input_gradient", "train_loss").value == pytest.approx(1.0)


def test_intervals_are_over_runs_not_over_networks():
    many, few = frame(runs=40, each=2), frame(runs=4, each=20)
    widths = [c.high - c.low for c in (correlation(many, "accuracy"), correlation(few, "accuracy"))]
    assert correlation(many, "accuracy").runs == 40 and widths[0] < 0.8
    alone = correlation(few[few["run"] == "1"], "top")
    assert np.isnan(alone.low) and "(one run)" in str(alone)
    copies = pd.concat([many[many["run"] == "1"]] * 10)
    assert correlation(copies, "top").runs == 1


def test_too_few_networks_have_no_correlation():
    few = frame(runs=2, each=2)
    assert str(correlation(few, "top")) == "not measured"
    with pytest.raises(MissingRecord, match="recorded of 4 networks"):
        Predictors(few).headline()


def test_the_headline_names_the_best_and_what_lambda_does():
    found = Predictors(frame(noise=0.2))
    assert found.ranked(among=("top", "trace", "input_gradient"))[0] == "input_gradient"
    said = found.headline()
    assert said.startswith(
        "Over 48 networks of 8 runs, those with every measure, what goes with success most closely is input-gradient "
        "norm +1.0"
    )
    assert "given training loss" in said and "; λ₁ −0.9" in said
    table = found.table()
    assert list(table.index) == list(MEASURES.values()) and table.loc["λ₁", "networks (runs)"] == "48 (8)"
    assert table.loc["training loss", "given training loss"] == "–"
    assert set(found.ways) == {"at the end of training", "on the way"}
    assert len(found.ways["at the end of training"]) == 8


def test_networks_are_joined_by_their_weights_each_once(tmp_path):
    scale = replace(TINY, surrogates=(Arch("cnn", 2),), seeds=(0,),
                    sharpness=probes.Sharpness(20, tol=0.5, products=4, probes=2, deflate=1))  # fmt: skip
    folders = {"records_dir": tmp_path / "r", "cache_dir": tmp_path / "c", "weights_dir": tmp_path / "w"}
    lab = Lab(scale, "run", device="cpu", **folders)
    constant, decay, pilot = (scale.surrogate(s, seed) for s, seed in
                              ((Step(0.05), 0), (Step(0.05, (1,)), 0), (Step(0.05), 100)))  # fmt: skip
    alike = interventions.similar(scale)
    for spec, probe, epochs in ((constant, scale.transfer, (1.0, 2.0, 3.0)), (decay, scale.transfer, (1.0, 2.0)),
                                (constant, scale.sharpness, (1.0, 2.0)), (decay, scale.sharpness, (1.0, 2.0)),
                                (decay, alike, (2.0,)), (pilot, scale.transfer, (1.0,)),
                                (pilot, scale.sharpness, (1.0,))):  # fmt: skip
        lab.measure(Measurement(spec, At(probe, epochs)))
    table = predictors.networks(Lab(scale, "replay", device="cpu", **folders))
    assert len(table) == 3, "epoch 1 of both is one network, epoch 3 has no measure, pilots do not count"
    assert table["run"].nunique() == 2 and table["cosine"].notna().sum() == 1 and table["top"].notna().all()
    (row,) = table[table["cosine"].notna()].to_dict("records")
    record = lab.find(Measurement(decay, At(alike, (2.0,)))).at(2.0)
    assert row["cosine"] == pytest.approx(np.mean(record["cosines"][:2])) and row["epoch"] == 2
    curve = lab.read(Arm("decay", [decay], At(scale.transfer, (2.0,))))
    assert row["success"] == pytest.approx(curve.at(2.0).value)
    with pytest.raises(MissingRecord, match="constant: sharpness"):  # claim C3 looks at more of its epochs
        predictors.measure(Lab(scale, "replay", device="cpu", **folders))
