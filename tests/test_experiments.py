"""What the claims need measured: every job is done, choices are made on validation data, and replay agrees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scenes

from rfnlib import claims, findings, records, rivalry, training
from rfnlib.attacks import BIM
from rfnlib.experiments import (
    CONTROLS,
    chosen_rho,
    chosen_slight,
    contenders,
    feature_runs,
    flat_runs,
    inversion_runs,
    sharpness_runs,
    stopping_epoch,
    techniques,
)
from rfnlib.jobs import estimate, work
from rfnlib.lab import Lab, MissingRecord
from rfnlib.scales import FeatureStudy, RivalStudy, RobustnessProbe, SharpnessProbe, Target
from rfnlib.series import Robustness
from rfnlib.specs import Adversary, Minimizer

TINY = replace(
    scenes.TINY,
    n_train=120,
    surrogates=(("resnet18", 4), ("cnn", 6)),
    targets=(
        Target("cnn", 16, "validation"),
        Target("cnn", 8),
        Target("vgg11", 8),
        Target("cnn", 4, "robust", Adversary("l2", 0.5, steps=1)),
    ),
    attack=BIM(eps=32 / 255, steps=2),
    validation_images=20,
    sharpness=SharpnessProbe(images=12, products=8, probes=2, deflate=2),
    sharp_every=3,
    rhos=(0.05, 0.1, 0.3),
    budgets=(16 / 255,),
    fine=(0.5,),
    robustness=RobustnessProbe(images=20, budgets=(("l2", 0.25), ("linf", 8 / 255)), steps=2, restarts=2),
    checks=RobustnessProbe(images=60, budgets=(("l2", 0.25),), steps=2, restarts=1),
    features=FeatureStudy(
        arch=("cnn", 6),
        steps=4,
        tried=(2,),
        step=0.1,
        adversary=Adversary("l2", 0.5, steps=1),
        targeted=2,
        budgets=(16 / 255,),
        radii=(0.5, 0.8),
    ),
    rivals=RivalStudy(
        epochs=1,
        slight=(Adversary("l2", 0.1, steps=1), Adversary("l2", 0.3, steps=1)),
        per_epoch=2,
        draws=2,
        techniques=("DI", "SGM"),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of everything there is to do."""
    place = tmp_path_factory.mktemp("all")
    lab = open_lab(place)
    rounds = 0
    while missing := [job for job in work(lab) if job.missing()]:
        rounds += 1
        for job in missing:
            job.compute()
    assert rounds == 2, "what depends on a choice comes in a second round"
    return place


def open_lab(place, mode: str = "run", **options) -> Lab:
    return Lab(TINY, mode, device="cpu", records_dir=place / "records", cache_dir=place / "cache", **options)


@pytest.fixture
def replay(folder, monkeypatch) -> Lab:
    """The same records, where nothing may be computed."""
    monkeypatch.setattr(training, "train", lambda *_, **__: 1 / 0)
    return open_lab(folder, "replay")


def rate(record: records.Record, role: str) -> float:
    """Success at the end of a run from its bare record."""
    hits = records.unpack(record.rows[-1]["adv_wrong"], (50, 3))  # test targets come first
    rows, columns = (slice(30, 50), [2]) if role == "validation" else (slice(0, 30), [0, 1])
    return hits[rows][:, columns]


def test_everything_is_recorded_and_replayed_without_work(replay):
    jobs = work(replay)
    assert not any(job.missing() for job in jobs)
    assert len({job.record().key for job in jobs}) == len(jobs), "no measurement is listed twice"
    assert estimate(replay, jobs) == [0.0] * len(jobs)
    kinds = {job.kind for job in jobs}
    assert kinds == {"clean", "transfer", "sharpness", "robust", "check"}


def test_rho_is_the_one_with_most_success_on_validation_images_and_targets(replay):
    for which in (0, 1):
        clean = np.stack([records.unpack(replay._clean(t).rows[-1]["clean_wrong"], (50,)) for t in replay.targets()], 1)
        counted = ~clean[30:, 2]
        success = {}
        for rho in TINY.rhos[1:]:
            record = replay.find("transfer", TINY.flat(Minimizer("SAM", rho), 0, which))
            success[rho] = rate(record, "validation")[counted].mean()
        assert success[chosen_rho(replay, which)] == max(success.values())


def test_choices_do_not_look_at_test_images_or_test_targets(replay):
    before = chosen_rho(replay), stopping_epoch(replay), chosen_slight(replay)
    for record in replay.records.values():
        standard = record.kind == "transfer" and len(record.probe["targets"]) == 3
        for row in record.rows if standard else ():
            hits = records.unpack(row["adv_wrong"], (50, 3)).copy()
            hits[:30] = ~hits[:30]
            hits[:, :2] = ~hits[:, :2]
            row["adv_wrong"] = records.pack(hits)
    assert (chosen_rho(replay), stopping_epoch(replay), chosen_slight(replay)) == before


def test_the_stopping_epoch_is_the_best_on_validation(replay):
    best = stopping_epoch(replay)
    specs = [TINY.flat(None, seed) for seed in TINY.seeds]
    (seen,) = replay.transfer({"SGD": specs}, role="validation").values()
    assert seen.hits[0].adv_wrong.shape == (2, 20, 1)
    assert all(seen.at(best).value >= seen.at(e).value for e in seen.epochs)


def test_the_first_architecture_has_every_seed_of_the_main_surrogates(replay):
    runs = flat_runs(replay)
    assert list(runs) == ["SGD", "RFN", "SAM", "ASAM", "GSAM", "LookSAM", "GAM", "WASAM", "SWA"]
    assert all(len(specs) == 2 for specs in runs.values()), "the others too, since they are recorded"
    assert runs["SGD"][0].minimizer is None and runs["RFN"][1].seed == 1


def test_seeds_that_are_not_recorded_are_left_out_alike_of_what_is_judged(replay, folder):
    gone = TINY.flat(Minimizer("ASAM", 0.5), 1)
    del replay.records[replay.find("transfer", gone).key]
    assert [len(flat_runs(replay)[n]) for n in ("SGD", "SAM", "RFN", "ASAM")] == [2, 2, 2, 1]
    gone = TINY.flat(Minimizer("SAM", 0.05), 1)
    del replay.records[replay.find("transfer", gone).key]
    assert [len(flat_runs(replay)[n]) for n in ("SGD", "SAM", "RFN", "GAM")] == [1, 1, 1, 2]
    assert [len(flat_runs(open_lab(folder, "run"))[n]) for n in ("SGD", "SAM", "RFN")] == [2, 2, 2]


def test_a_sweep_that_is_not_recorded_is_missed_in_replay(replay):
    gone = TINY.flat(Minimizer("SAM", 0.3), 0)
    del replay.records[replay.find("transfer", gone).key]
    with pytest.raises(MissingRecord, match="sam0.3"):
        findings.gains(replay)


def test_a_minimizer_without_any_record_is_left_out_in_replay_and_computed_in_a_run(replay, folder):
    for seed in TINY.seeds:
        del replay.records[replay.find("transfer", TINY.flat(Minimizer("GAM", 0.2), seed)).key]
    assert "GAM" not in flat_runs(replay)
    assert "GAM" in flat_runs(open_lab(folder, "run"))


def test_gains_are_differences_to_the_stopped_surrogate(replay):
    found = findings.gains(replay)
    by_hand = found.series["RFN"].at(3.0).value - found.series["SGD"].at(found.stop).value
    assert found.gain("RFN", found.stop).value == pytest.approx(by_hand)
    per_target = [f.difference.value for f in found.against_stopping("RFN")]
    assert np.mean(per_target) == pytest.approx(by_hand)
    assert found.rho == chosen_rho(replay) and found.targets == ["cnn", "vgg11"]
    shown = found.table()
    assert list(shown.index) == ["SGD, stopped early", *found.series]
    success, cost = found.against_small()
    assert success.difference.value == pytest.approx(
        found.series["RFN"].at(3.0).value - found.series["SAM"].at(3.0).value
    )
    accuracies = [found.series[n].accuracy[:, -1].mean() for n in ("SAM", "RFN")]
    assert cost.difference.value == pytest.approx(accuracies[0] - accuracies[1])


def test_the_sweep_is_one_row_a_radius_with_sgd_first(replay):
    for which in (0, 1):
        shown = findings.sweep(replay, which)
        assert list(shown.index) == [0.0, *TINY.rhos]
        assert (shown["low"] <= shown["success"]).all() and (shown["top"] > 0).all()


def test_every_budget_is_measured_and_the_scales_own_is_the_main_one(replay):
    found = findings.gains(replay)
    shown = findings.by_budget(replay, found)
    assert list(shown.columns) == ["ε = 16/255", "ε = 32/255"]
    assert shown.loc["RFN", "ε = 32/255"] == found.table().loc["RFN", "success"]


def test_sharpness_and_transfer_are_of_the_same_networks(replay):
    runs = sharpness_runs(replay)
    assert set(runs) == {"constant", "decay at 1", "decay at 2", "decay at 1 and 2", "SAM", "RFN"}
    seen, flatness, compared = findings.c3(replay)
    for name, (specs, epochs) in runs.items():
        assert len(specs) == 2 and flatness[name].epochs == seen[name].epochs == epochs
        for spec in specs:
            attacked = {r["iteration"]: r["snapshot"] for r in replay.find("transfer", spec).rows}
            for row in replay.find("sharpness", spec).rows:
                assert attacked[row["iteration"]] == row["snapshot"]
        np.testing.assert_allclose(flatness[name].values["accuracy"], seen[name].accuracy)
    assert len(compared) == 8  # two decays, two measures, two comparisons


def test_a_drop_of_sharpness_is_the_logarithm_of_the_ratio(replay):
    _, flatness, compared = findings.c3(replay)
    run = flatness["decay at 1"]
    expected = np.log(run.at(1.0, "top") / run.at(2.0, "top")).mean()
    assert compared[0].difference.value == pytest.approx(expected)
    shown = claims.factors(compared)
    assert float(shown["drops by the factor"].iloc[0]) == pytest.approx(np.exp(expected), abs=0.006)


def forget(lab: Lab, *kinds: str, where=lambda spec: True) -> None:
    """Drop the records of training runs on built sets `where` it holds of the spec."""
    for key, record in list(lab.records.items()):
        if record.kind in kinds and record.spec.features and where(record.spec):
            del lab.records[key]


def test_feature_surrogates_have_every_seed_and_controls_one(replay):
    runs = feature_runs(replay)
    assert {name: len(specs) for name, specs in runs.items()} == {"D": 2, "D_R": 2, "D_NR": 2, "D_rand": 1, "D_det": 1}
    assert runs["D"] == [TINY.flat(None, seed, which=1) for seed in (0, 1)]
    assert runs["D_R"][0].features.model.adversary == TINY.features.adversary
    assert runs["D_NR"][0].features.model == runs["D_rand"][0].features.model
    assert sorted(inversion_runs(replay)) == [2, 4]
    for name, specs in runs.items():
        assert all(spec.arch == "cnn" and spec.schedule == specs[0].schedule for spec in specs), name


def test_feature_surrogates_that_are_not_recorded_are_left_out(replay, folder):
    forget(replay, "robust", where=lambda spec: spec.features.name == "D_NR" and spec.seed == 1)
    assert {name: len(specs) for name, specs in feature_runs(replay).items()} == {
        "D": 1, "D_R": 1, "D_NR": 1, "D_rand": 1, "D_det": 1,
    }  # fmt: skip
    forget(replay, "transfer", where=lambda spec: spec.features.name == "D_det")
    assert list(feature_runs(replay)) == ["D", "D_R", "D_NR", "D_rand"]
    forget(replay, "check", where=lambda spec: spec.features.method == "inverted" and spec.features.steps == 2)
    assert list(inversion_runs(replay)) == [4]
    running = open_lab(folder)
    forget(running, "robust", "transfer")
    assert list(feature_runs(running)) == ["D", "D_R", "D_NR", *CONTROLS]
    assert all(len(feature_runs(running)[name]) == 2 for name in ("D", "D_R", "D_NR"))


def test_early_stopping_on_features_is_judged_at_the_epoch_chosen_on_validation(replay):
    study = findings.c1(replay)
    specs = feature_runs(replay)["D_NR"]
    (seen,) = replay.transfer({"D_NR": specs}, role="validation").values()
    assert all(seen.at(study.stops["D_NR"]).value >= seen.at(e).value for e in seen.epochs)
    run = study.series["D_NR"]
    assert run.hits[0].adv_wrong.shape == (2, 30, 2), "judged on test images and test targets"
    found = {f.run: f.difference.value for f in study.judge()}
    assert found["D_NR"] == run.at(study.stops["D_NR"]).value - run.at(3.0).value
    assert list(found) == ["D_R", "D_NR"]


def test_robust_accuracy_is_recorded_image_by_image(replay):
    study = findings.c1(replay)
    for run in study.robustness.values():
        assert list(run.stands) == ["none", "l2 0.25", "linf 8/255"]
        for attack in ("l2 0.25", "linf 8/255"):
            assert run.stands[attack].shape == (len(run.stands["none"]), len(run.epochs), 20)
            assert not (run.stands[attack] & ~run.stands["none"]).any(), "who stands under attack stands without"
    spec = feature_runs(replay)["D_R"][0]
    row = replay.find("robust", spec).rows[-1]
    assert 0 < row["passes"] <= 20 * 2 * 2 * 2, "images, steps, restarts, budgets; the fallen are not attacked again"


def test_the_tables_of_claim_1_show_what_the_records_say(replay):
    study = findings.c1(replay)
    checks, end = findings.checks(replay), [float(TINY.epochs)]
    assert list(checks.index) == ["D_R", "D_NR", *(f"{c}, ε = {r:g}" for r in (0.5, 0.8) for c in CONTROLS)]
    runs = {"D_R": feature_runs(replay)["D_R"]}
    (run,) = replay.robustness(runs, end, kind="check").values()
    assert run.stands["none"].shape == (2, 1, 60) and list(run.stands) == ["none", "l2 0.25"]
    assert checks.loc["D_R", "natural accuracy"].startswith(f"{run.stands['none'].mean():.1%}")
    (fewer,) = replay.robustness(runs, end).values()
    np.testing.assert_array_equal(run.stands["none"][:, :, :20], fewer.stands["none"], "the same first images")
    assert checks.loc["D_R", "published"] == "84%, 48%" and checks.loc["D_R", "seeds"] == 2
    assert checks.loc["D_rand, ε = 0.5", "published"] == "63%, 0%" and checks.loc["D_rand, ε = 0.8", "published"] == ""
    forget(replay, "check", where=lambda spec: spec.features.eps == 0.8 or (spec.features.eps is None and spec.seed))
    assert findings.checks(replay)["seeds"].to_dict() == {"D_R": 1, "D_NR": 1, **{f"{c}, ε = 0.5": 1 for c in CONTROLS}}
    assert list(findings.by_steps(replay).index) == [2, 4]
    assert sorted(study.budgets) == [16 / 255, 32 / 255]
    assert set(study.peaks().index) == set(study.series)


@pytest.mark.parametrize(
    ("natural", "robust", "expected"),
    [
        (0.6, 0.3, {"D_R": "yes", "D_NR": "not shown", "D_det, ε = 1": "yes"}),
        (0.6, 0.01, {"D_R": "not shown", "D_NR": "yes", "D_det, ε = 1": "yes"}),
        (0.1, 0.01, {"D_R": "not shown", "D_NR": "not shown", "D_det, ε = 1": "not shown"}),
    ],
)
def test_a_set_is_as_it_should_be_where_intervals_clear_chance(natural, robust, expected):
    def stand(share: float) -> np.ndarray:
        return np.arange(400)[None, None] < 400 * share

    stands = {"none": stand(natural), findings.WEAK: stand(robust)}
    runs = {name: Robustness(name, TINY.flat(None, 0), [3.0], stands) for name in expected}
    assert findings.check_table(runs)["as it should be"].to_dict() == expected


def test_building_a_set_counts_in_the_estimate(folder, tmp_path):
    lab = open_lab(tmp_path)
    jobs = [job for job in work(lab) if job.kind == "robust" and job.spec.seed == 0]
    on = {
        job.spec.features.name if job.spec.features else "D": job
        for job in jobs
        if job.spec.features is None or job.spec.features.steps != 2
    }
    seconds = dict(zip(on, estimate(lab, list(on.values())), strict=True))
    assert seconds["D_R"] > seconds["D"] > 0, "a network and an inversion on top"


# --- other surrogates and techniques -----------------------------------------------------------------


def test_every_surrogate_is_compared_under_one_protocol(replay):
    runs, found = contenders(replay), rivalry.c7(replay)
    assert list(runs) == ["SGD, stopped early", "SGD", "SAM", "RFN", *rivalry.RIVALS]
    assert all(len(c.specs) == 2 for c in runs.values())
    assert runs["SGD, stopped early"].epoch == stopping_epoch(replay) and runs["SGD"].epoch == 3.0
    assert runs["LGV"].specs == runs["LGV-SWA"].specs and runs["LGV"].specs[1].start == TINY.flat(None, 1)
    for name, c in runs.items():
        assert found.series[name].hits[0].adv_wrong.shape == (2, 30, 2)
        assert found.robust[name].hits[0].adv_wrong.shape == (2, 30, 1), "on the robust target alone"
        assert found.flatness[name].epochs == found.robustness[name].epochs == [c.epoch]
    of_mean = replay.find("sharpness", runs["LGV-SWA"].specs[0], None, runs["LGV-SWA"].recipe)
    assert found.flatness["LGV-SWA"].values["top"][0, 0] == of_mean.rows[0]["top"]
    assert list(found.table()["seeds"]) == [2] * 10 and set(found.table().index) == set(runs)


def test_costs_count_all_passes_in_epochs_of_plain_training(replay):
    found = rivalry.c7(replay)
    stop = stopping_epoch(replay)
    expected = {"SGD, stopped early": stop, "SGD": 3, "SAM": 6, "RFN": 6, "SAT": 6, "LGV": 4, "LGV-SWA": 4}
    assert found.cost == pytest.approx(expected | {"More Bayesian": 5, "aligned": 4, "SAM & IR": 18})


def test_the_adversary_of_sat_is_chosen_on_validation(replay):
    clean = np.stack([records.unpack(replay._clean(t).rows[-1]["clean_wrong"], (50,)) for t in replay.targets()], 1)
    found = {
        a: rate(replay.find("transfer", TINY.slight(a, 0)), "validation")[~clean[30:, 2]].mean()
        for a in TINY.rivals.slight
    }
    assert found[chosen_slight(replay)] == max(found.values())


def test_rfn_rivals_what_it_does_not_lose_to_by_the_margin(replay):
    found = rivalry.c7(replay)
    by_hand = found.series["RFN"].at(3.0).value - found.series["LGV"].at(1.0).value
    plain, raised = found.differences(), found.judge()
    assert [f.against for f in plain] == [f.against for f in raised] == list(rivalry.RIVALS)
    assert plain[1].difference.value == pytest.approx(by_hand)
    for f, g in zip(plain, raised, strict=True):
        assert g.difference.low == pytest.approx(f.difference.low + 0.05)
        assert g.guarded.high == pytest.approx(f.guarded.high + 0.05)


def test_ranks_are_means_over_seeds_and_targets(replay):
    found = rivalry.c7(replay)
    ranks = found.ranks()
    assert sum(ranks.values()) == pytest.approx(55), "the ranks of ten"
    name = min(ranks, key=ranks.get)
    above = []
    for seed in (0, 1):
        for target in (0, 1):
            every = {
                n: s.hits[-1].adv_wrong[seed, ~s.hits[-1].clean_wrong.any(1), target].mean()
                for n, s in found.series.items()
            }
            more = sum(r > every[name] for r in every.values())
            same = sum(r == every[name] for r in every.values())
            above.append(more + (same + 1) / 2)
    assert ranks[name] == pytest.approx(np.mean(above))


@pytest.mark.parametrize("lost", [("transfer", True), ("transfer", False), ("sharpness", False), ("robust", False)])
def test_a_surrogate_without_records_is_left_out_in_replay(replay, lost):
    first, second = (TINY.rivals_of(seed)["SAM & IR"] for seed in (0, 1))
    kind, robust = lost
    del replay.records[replay.find(kind, second, robust=robust).key]
    assert contenders(replay)["SAM & IR"].specs == [first]
    del replay.records[replay.find(kind, first, robust=robust).key]
    assert "SAM & IR" not in contenders(replay)
    assert [f.against for f in rivalry.c7(replay).differences()] == [r for r in rivalry.RIVALS if r != "SAM & IR"]


def test_rfn_is_compared_with_sgd_under_every_technique(replay):
    grid = rivalry.c8(replay)
    assert list(grid.rates) == ["SGD, stopped early", "SGD", "SAM", "RFN", "SAT"]
    assert list(grid.rates["RFN"]) == ["none", "DI", "SGM"]
    judged = {f.run: f.difference.value for f in grid.judge()}
    assert list(judged) == ["RFN + DI", "RFN + SGM"], "the plain attack is claim C4's"
    assert judged["RFN + DI"] == pytest.approx(grid.rates["RFN"]["DI"].value - grid.rates["SGD"]["DI"].value)
    assert grid.success().loc["SAM", "SGM"] == grid.rates["SAM"]["SGM"].value
    (first,) = replay.transfer(
        {"": contenders(replay)["RFN"].specs[:1]}, epochs=[3.0], attack=techniques(replay)["DI"][0]
    ).values()
    assert grid.success().loc["RFN", "DI"] == first.at(3.0).value, "of the seed that all have"
    assert [len(grid.rates[name]["DI"].z) for name in grid.rates] == [1, 2, 1, 2, 1], "seeds, of those that are judged"
    by_hand = 100 * (grid.rates["SAT"]["DI"].value - grid.rates["SAT"]["none"].value)
    assert grid.help().loc["SAT", "DI"].startswith(f"{by_hand:+.1f} ±")
    assert grid.help()["seeds"].to_list() == [1, 2, 1, 2, 1]
    attack, recipe = techniques(replay)["DI"]
    del replay.records[replay.find("transfer", contenders(replay)["RFN"].specs[0], attack, recipe).key]
    assert list(rivalry.c8(replay).rates["RFN"]) == ["none", "SGM"], "what RFN lacks is left out for all"


def test_the_trade_off_begins_at_sgd(replay):
    shown = rivalry.trade_off(replay)
    assert list(shown.loc["SAT"].index) == [0.0, 0.1, 0.3] and list(shown.loc["RFN"].index) == [0.0, *TINY.rhos]
    assert (shown.loc[("SAT", 0.0)] == shown.loc[("RFN", 0.0)]).all()
    assert shown["robust"].between(0, 1).all() and (shown["low"] <= shown["success"]).all()


def test_at_equal_robustness_sat_is_interpolated_and_never_extrapolated():
    rows = [("SAT", 0.0, 0.2, 0.1), ("SAT", 0.1, 0.4, 0.3), ("RFN", 0.0, 0.2, 0.1), ("RFN", 0.1, 0.3, 0.25),
            ("RFN", 0.2, 0.5, 0.4)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["surrogate", "ε or ρ", "success", "robust"]).set_index(["surrogate", "ε or ρ"])
    shown = rivalry.at_equal_robustness(frame)
    assert list(shown.index) == [0.1, 0.2]
    assert shown.loc[0.1, "SAT"] == pytest.approx(0.35) and shown.loc[0.1, "RFN less SAT"] == pytest.approx(-0.05)
    assert np.isnan(shown.loc[0.2, "SAT"]), "SAT is nowhere so robust"


def test_listing_what_there_is_to_do_computes_nothing(folder, monkeypatch):
    lab = open_lab(folder)
    del lab.records[lab.find("transfer", TINY.flat(None, 1)).key]  # by which the stopping epoch would be chosen
    monkeypatch.setattr(training, "train", lambda *_, **__: 1 / 0)
    labels = [job.label for job in work(lab)]
    assert "decay at 1 and 2, seed 1" in labels and not any("LGV" in label for label in labels)
