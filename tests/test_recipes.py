"""Recipes: what is attacked is what the surrogates give by hand, and the lab keeps it apart from the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch
from scenes import same
from torch import Tensor, nn

from rfnlib import costs, data, recipes, records, training, transfer, zoo
from rfnlib.attacks import BIM, AttackError
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement
from rfnlib.probes import Transfer
from rfnlib.recipes import (
    Averaged,
    Collected,
    Drawn,
    Ghosts,
    Member,
    Recipe,
    Skips,
    Together,
    collected,
    members,
    networks,
)
from rfnlib.scale import Arch, Target
from rfnlib.snapshots import Snapshot, weights_digest
from rfnlib.specs import Adversary, Step, TrainSpec
from rfnlib.surrogates import Cycle, Ensemble, GhostNetwork, SkipGradient, Swag, average, loaded
from rfnlib.transforms import named

DIGITS = data.load("digits").subset(80)
SPEC = TrainSpec("digits", "resnet18", Step(0.05), epochs=2, n_train=80, width=2, batch=40)


def dimmed(network: nn.Module, weights, batches) -> nn.Module:
    """A recipe of one's own: the network, of images that are darker."""
    return nn.Sequential(Dimmed(), network)


class Dimmed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


NOTED: list[tuple[nn.Module, list, list]] = []


def noting(network: nn.Module, weights, batches) -> nn.Module:
    """A recipe that keeps what it is given."""
    NOTED.append((network, list(weights), list(batches)))
    return network


noting.per_epoch = 2


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -------------------------------------------------------------------------------- what a recipe is given


def test_the_epochs_collected_are_evenly_spaced_and_end_where_the_run_is_attacked():
    assert collected(Collected(2), 1.5) == [0.5, 1.0, 1.5]
    assert collected(Drawn(per_epoch=1), 3.0) == [1.0, 2.0, 3.0]
    forty = collected(Averaged(), 10.0)
    assert len(forty) == 40 and (forty[0], forty[-1]) == (0.25, 10.0)
    assert collected(noting, 1.0) == [0.5, 1.0]


@pytest.mark.parametrize("recipe", [None, Skips(), Ghosts(), dimmed], ids=lambda r: getattr(r, "__name__", str(r)))
def test_a_recipe_that_says_nothing_is_given_the_last_weights_alone(recipe):
    assert collected(recipe, 2.5) == [2.5]


# ------------------------------------------------------------------------------------------- by hand


@pytest.fixture(scope="module")
def along(tmp_path_factory) -> list[Snapshot]:
    """Weights along a run, the last ones at its end."""
    return list(scenes.start(DIGITS, SPEC, tmp_path_factory.mktemp("run"), [0.5, 1, 1.5, 2]))


@pytest.fixture
def network(along) -> nn.Module:
    return along[-1].load_into(training.network(SPEC, DIGITS)).requires_grad_(False)


def batches() -> list[Tensor]:
    return [data.to_float(part) for part in DIGITS.train_images.split(30)]


def drawn(network: nn.Module, weights, rank: int = 0, draws: int = 4, scale: float = 1.5) -> Cycle:
    """Its parameters are SWAG's draws, its BatchNorm statistics those of the mean network."""
    swag, mean = Swag.fit(network, weights, rank), average(network, weights, batches())
    members = [loaded(network, swag.sample(seed, scale)) for seed in range(draws)]
    for member in members:
        for own, wanted in zip(member.buffers(), mean.buffers(), strict=True):
            own.copy_(wanted)
    return Cycle(members)


BY_HAND: dict[str, tuple[Recipe, Callable]] = {
    "Skips": (Skips(), lambda network, weights: SkipGradient(network, 0.2)),
    "Skips 0.7": (Skips(0.7), lambda network, weights: SkipGradient(network, 0.7)),
    "Ghosts": (Ghosts(), lambda network, weights: GhostNetwork(network, 0.22)),
    "Ghosts 0.5": (Ghosts(0.5), lambda network, weights: GhostNetwork(network, 0.5)),
    "Collected": (Collected(2), lambda network, weights: Cycle([loaded(network, w) for w in weights])),
    "Averaged": (Averaged(2), lambda network, weights: average(network, weights, batches())),
    "Drawn": (Drawn(2, draws=4), drawn),
    "Drawn, wider": (Drawn(2, draws=4, scale=3.0), partial(drawn, scale=3.0)),
    "Drawn, more": (Drawn(2, draws=6), partial(drawn, draws=6)),
    "Drawn, rank 3": (Drawn(2, draws=4, rank=3), partial(drawn, rank=3)),
}


@pytest.mark.parametrize(("recipe", "by_hand"), BY_HAND.values(), ids=BY_HAND.keys())
def test_a_recipe_gives_what_the_surrogates_give_by_hand(recipe, by_hand, network, along):
    x, y = data.to_float(DIGITS.test_images[:12]), DIGITS.test_labels[:12]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    attack = BIM(eps=0.2, steps=6)
    made, expected = recipe(network, along, iter(batches())), by_hand(network, along)
    assert type(made) is type(expected) and same(made.state_dict(), expected.state_dict())
    adversarial = attack(made, x, y)
    assert torch.equal(adversarial, attack(expected, x, y))
    assert not torch.equal(adversarial, attack(network, x, y))
    assert same(network.state_dict(), before), "the network it is given stays what it was"


def test_every_setting_gives_another_attack(network, along):
    x, y = data.to_float(DIGITS.test_images[:12]), DIGITS.test_labels[:12]
    made = [BIM(eps=0.2, steps=6)(recipe(network, along, batches()), x, y) for recipe, _ in BY_HAND.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])


def test_the_members_of_a_collection_are_the_weights_in_their_order(network, along):
    made = Collected(2)(network, along, batches())
    assert len(made.members) == len(along) == 4
    assert all(same(member.state_dict(), each.weights()) for member, each in zip(made.members, along, strict=True))
    assert not any(m.training for m in made.members)


def test_an_average_has_the_mean_weights_and_its_own_batchnorm(network, along):
    made = Averaged(2)(network, along, batches())
    every = [each.weights() for each in along]
    for name, p in made.named_parameters():
        torch.testing.assert_close(p, sum(w[name] for w in every) / 4)
    name = next(n for n, _ in made.named_buffers() if n.endswith("running_mean"))
    assert not torch.allclose(made.state_dict()[name], sum(w[name] for w in every) / 4, atol=1e-4)


def test_draws_share_the_means_batchnorm_differ_and_are_the_same_each_time(network, along):
    made, again = (Drawn(2, draws=3)(network, along, batches()) for _ in range(2))
    mean = average(network, along, batches())
    for member in made.members:
        assert all(torch.equal(a, b) for a, b in zip(member.buffers(), mean.buffers(), strict=True))
    first, second, third = map(parameters, made.members)
    assert not torch.equal(first, second) and not torch.equal(second, third) and not torch.equal(first, third)
    assert same(made.state_dict(), again.state_dict())
    still = Drawn(2, draws=2, scale=0.0)(network, along, batches())
    assert all(same(member.state_dict(), mean.state_dict()) for member in still.members)


def test_draws_are_spread_as_the_collected_weights_are_times_their_scale(network, along):
    made = Drawn(2, draws=40, scale=1.5)(network, along, batches())
    apart = torch.stack([parameters(m) for m in made.members]) - parameters(average(network, along, batches()))
    flat = torch.stack(
        [torch.cat([each.weights()[n].flatten() for n, _ in network.named_parameters()]) for each in along]
    )
    spread = (flat - flat.mean(0)).square().mean(0).sqrt()
    z = apart[:, spread > 1e-6] / spread[spread > 1e-6]
    assert float(z.std()) == pytest.approx(1.5, rel=0.02) and abs(float(z.mean())) < 0.05


# -------------------------------------------------------------------------------------------- its name


@pytest.mark.parametrize("kind", [Skips, Ghosts, Collected, Averaged, Drawn])
def test_every_setting_of_a_recipe_is_in_its_name(kind):
    changed = [replace(kind(), **{f.name: 2 * getattr(kind(), f.name) + 0.5}) for f in fields(kind)]
    names = [json.dumps(named(recipe), sort_keys=True) for recipe in [kind(), *changed]]
    assert len(set(names)) == len(fields(kind)) + 1 and kind.__name__ in names[0]


def test_recipes_with_equal_settings_have_different_names():
    assert named(Collected(4)) != named(Averaged(4)) != named(Drawn(4)) and named(Skips(0.2)) != named(Ghosts(0.2))
    assert named(dimmed) == f"{__name__}.dimmed"


# ---------------------------------------------------------------------------------------- in the lab


TINY = replace(
    scenes.TINY,
    seeds=(0,),
    epochs=2,
    decays=(1,),
    standard=(1,),
    targets=(
        Target(Arch("cnn", 8), 4, "validation"),
        Target(Arch("resnet18", 4), 4),
        Target(Arch("cnn", 8), 4, seed=1001),
        Target(Arch("cnn", 8), 4, "robust", adversary=Adversary("l2", 0.5, steps=1)),
        Target(Arch("cnn", 8), 4, "robust", adversary=Adversary("linf", 0.1, steps=1)),
    ),
)
RUN = TINY.flat(None, 0)
OTHER, SMALLER = TINY.flat(None, 7), replace(TINY.flat(None, 7), arch="cnn", width=4)
RECIPES = {
    "nothing": None,
    "skips": Skips(),
    "other skips": Skips(0.7),
    "ghosts": Ghosts(),
    "collected": Collected(2),
    "averaged": Averaged(2),
    "drawn": Drawn(2, draws=3),
    "a function": dimmed,
    "together": Together((Member(RUN, 1.0, Collected(2), apart=7), Member(SMALLER, 2.0, apart=7)), own=Collected(2)),
}


def lab(folder: Path, mode: str = "run", scale=TINY) -> Lab:
    where = {name: folder / name.removesuffix("_dir") for name in ("records_dir", "cache_dir", "weights_dir")}
    return Lab(scale, mode, device="cpu", **where)


def question(recipe: Recipe | None, robust: bool = False, epochs: tuple[float, ...] = (2.0,)) -> Measurement:
    return Measurement(RUN, At(Transfer(TINY.attack, "robust" if robust else "standard"), epochs, recipe))


def ask(of: Lab, recipe: Recipe | None, robust: bool = False, **how):
    """The only hits of a curve of one run at one epoch."""
    (hits,) = of.read(Arm("run", [RUN], question(recipe, robust).at), **how).hits
    return hits


def row(of: Lab, recipe: Recipe | None, robust: bool = False) -> dict:
    (found,) = of.find(question(recipe, robust)).rows
    return found


def stored(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "records" / "tiny").glob("*.json")}


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    one = lab(folder)
    for recipe in RECIPES.values():
        ask(one, recipe)
    ask(one, None, robust=True)
    ask(one, RECIPES["averaged"], robust=True)
    return folder


def share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def snapshots(of: Lab, spec: TrainSpec, at: list[float]) -> list[Snapshot]:
    """Of a run that the lab has made: none is trained here."""
    found = list(training.train(spec, at, dataset=of.dataset(), cache=of.cache, device="cpu", progress=False))
    assert len(found) == len(at)
    return found


def by_the_recipe(of: Lab, recipe: Recipe | None) -> nn.Module:
    """What is attacked, made without the lab's probes."""
    epochs = [0.5, 1.0, 1.5, 2.0] if hasattr(recipe, "per_epoch") else [2.0]
    weights = snapshots(of, RUN, epochs)
    network = plain(of, weights[-1])
    if recipe is None:
        return network
    others = []
    if isinstance(recipe, Together):
        half, one = snapshots(of, OTHER, [0.5, 1.0])
        others = [[Collected(2)(plain(of, one), [half, one], []), plain(of, *snapshots(of, SMALLER, [2.0]))]]
    made = recipe(network, weights, [data.to_float(of.dataset().train_images)], *others)
    return (loaded(made, zoo.rounded(made.state_dict())) if isinstance(recipe, Averaged) else made).eval()


def plain(of: Lab, snapshot: Snapshot) -> nn.Module:
    network = training.network(snapshot.spec, of.dataset()).to(memory_format=torch.channels_last)
    network.load_state_dict(zoo.rounded(snapshot.weights()))  # as every network is measured
    return network.requires_grad_(False).eval()


def released(of: Lab, target: Target) -> nn.Module:
    """A target as it is attacked: after rounding."""
    spec = TINY.target(target)
    weights, _ = zoo.read(of.weights / f"{spec.short_name}-{spec.key()}.safetensors")
    network = training.network(spec, of.dataset())
    network.load_state_dict(weights)
    return network.eval()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_attacked_in_the_place_of_the_network(name, computed):
    one, recipe = lab(computed, "replay"), RECIPES[name]
    model, (images, labels) = by_the_recipe(one, recipe), one.bench.attacked
    adversarial = one.scale.attack(model, images, labels)
    found, nets = row(one, recipe), [released(one, t) for t in TINY.targets_of("standard")]
    hits = torch.stack([transfer.predict(net, adversarial) != labels for net in nets], 1).numpy()
    np.testing.assert_array_equal(records.unpack(found["adv_wrong"], hits.shape), hits)
    assert found["l2"] == pytest.approx(float((adversarial - images).flatten(1).norm(dim=1).mean()), abs=1e-3)
    assert found["passes"] == round(one.scale.attack.passes_on(model) * len(labels))
    if isinstance(model, GhostNetwork):
        return  # outside of an attack, every pass is by another ghost
    judged = predicting(model)
    own = (transfer.predict(judged, images) != labels).numpy()
    np.testing.assert_array_equal(records.unpack(found["surrogate_wrong"], own.shape), own)
    assert found["whitebox"] == share(transfer.predict(judged, adversarial) != labels)
    more, their_labels = one.bench.test_images(TINY.accuracy_images)
    assert found["accuracy"] == share(transfer.predict(judged, more) == their_labels)


def predicting(model: nn.Module) -> nn.Module:
    """Of several networks, one an iteration, the mean of their probabilities; in an ensemble too."""
    if isinstance(model, Cycle):
        return Ensemble(model.members, "probabilities")
    return Ensemble([predicting(m) for m in model.members]) if isinstance(model, Ensemble) else model


def test_a_mean_is_rounded_and_named_by_its_own_weights_and_others_by_the_last(computed):
    one = lab(computed, "replay")
    plain, mean, cycle = (row(one, RECIPES[name]) for name in ("nothing", "averaged", "collected"))
    made = by_the_recipe(one, RECIPES["averaged"])
    assert mean["weights"] == weights_digest(made.state_dict()) != plain["weights"] == cycle["weights"]
    assert all(torch.equal(v, v.half().float()) for v in made.state_dict().values() if v.is_floating_point())
    assert mean["snapshot"] != plain["snapshot"] == cycle["snapshot"] == RUN.history_key(10, 5)
    assert one.trained_twice() == {}, "the mean is no second training of the network"


def test_a_recipe_that_merges_is_read_back_from_what_a_file_says_of_it():
    assert recipes.parse(named(Averaged(7))) == Averaged(7) and recipes.parse(None) is None
    assert [recipes.merges(r) for r in (None, Averaged(), Collected(), dimmed)] == [False, True, False, False]
    with pytest.raises(ValueError, match="is made by {'is': 'Median'}; this version knows Averaged"):
        recipes.parse({"is": "Median"})


def test_every_recipe_has_a_record_of_its_own(computed):
    one = lab(computed, "replay")
    found = {name: one.find(question(recipe)) for name, recipe in RECIPES.items()}
    assert len({r.key for r in found.values()}) == len(RECIPES)
    assert all(len(r.rows) == 1 for r in found.values())
    seen = [(r.rows[0]["adv_wrong"], r.rows[0]["whitebox"], r.rows[0]["l2"]) for r in found.values()]
    assert len(set(seen)) == len(seen), "every one is another attack"
    assert found["a function"].settings["recipe"] == f"{__name__}.dimmed"
    assert found["collected"].settings["recipe"] == {"is": "Collected", "per_epoch": 2}


def test_a_recipe_with_members_counts_their_training_and_is_named_by_all_weights(computed):
    one = lab(computed, "replay")
    alone, all_three = (one.find(question(RECIPES[name])).rows[0] for name in ("collected", "together"))
    assert all_three["epochs_of_passes"] == alone["epochs_of_passes"] + 1 + 2 == 5
    assert all_three["weights"] != alone["weights"] and all_three["snapshot"] != alone["snapshot"]
    kept = one.find(question(RECIPES["together"])).settings["recipe"]["members"][0]
    assert kept["spec"] == {"is": "TrainSpec", "run": RUN.short_name, "key": RUN.key()} and kept["apart"] == 7


def test_members_and_the_runs_they_start_from_have_seeds_of_their_own():
    onwards = replace(SPEC, start=replace(SPEC, seed=3), seed=3)
    recipe = Together((Member(onwards, 2.0, apart=200),))
    assert recipe == Together((Member(replace(onwards, seed=9), 2.0, apart=200),))
    ((spec, epoch, made),) = members(recipe, replace(SPEC, seed=5))
    assert (spec.seed, spec.start.seed, epoch, made) == (205, 205, 2.0, None)
    assert members(None, SPEC) == members(Collected(), SPEC) == []


def test_the_training_of_members_is_part_of_what_is_left(tmp_path):
    one = lab(tmp_path)
    alone, together = (costs.Ledger(one).left(question(RECIPES[name])) for name in ("collected", "together"))
    assert len(alone) == 4, "two epochs, the row and the accuracies"
    assert len(together) == len(alone) + 1 + 2


def test_a_row_costs_the_predictions_of_all_networks_that_are_averaged(tmp_path):
    one = lab(tmp_path)
    (plain, several) = (
        sum(u.passes for u in costs.Ledger(one).left(question(recipe)).values()) for recipe in (None, Collected(4))
    )
    seen = (len(one.dataset().train_labels) + one.scale.accuracy_images) / 3
    assert several - plain == pytest.approx((4 * SPEC.epochs - 1) * seen)
    member = Member(SPEC, 2.0, Collected(3))
    wanted = {Drawn(draws=7): 7, Averaged(4): 1, Together((member,)): 7, Together((member, member), Collected(5)): 22}
    assert {recipe: networks(recipe, 2.0) for recipe in wanted} == wanted


def test_replay_serves_what_a_run_measured_of_every_recipe_without_work(computed, no_work):
    one = lab(computed, "replay")
    for recipe in RECIPES.values():
        hits, found = ask(one, recipe), row(one, recipe)
        adv = records.unpack(found["adv_wrong"], (41, 3))  # test targets come first
        np.testing.assert_array_equal(hits.adv_wrong[0], adv[:30, :2])
    with pytest.raises(MissingRecord, match="lacks 1 of 1 rows"):
        ask(one, Skips(0.123))


def test_a_second_run_does_no_work_and_writes_nothing(computed, no_work):
    before, one = stored(computed), lab(computed)
    for recipe in RECIPES.values():
        ask(one, recipe)
    ask(one, None, robust=True)
    assert stored(computed) == before


@pytest.mark.parametrize("mode", ["replay", "run"])
def test_a_function_without_a_name_is_refused_as_a_recipe(mode, computed):
    before = stored(computed)
    with pytest.raises(AttackError, match="has no name to record; give a frozen dataclass, or a function of a module"):
        ask(lab(computed, mode), lambda network, weights, batches: network)
    assert stored(computed) == before


def test_a_recipe_is_given_the_run_up_to_the_epoch_and_images_that_are_not_augmented(computed, tmp_path):
    NOTED.clear()
    one = lab(tmp_path)
    hits = one.read(Arm("run", [RUN], question(noting, epochs=(1.0, 2.0)).at)).hits
    assert len(hits) == 2 and [len(weights) for _, weights, _ in NOTED] == [2, 4]
    for (network, weights, images), epochs in zip(NOTED, ([0.5, 1.0], [0.5, 1.0, 1.5, 2.0]), strict=True):
        assert [w.iteration for w in weights] == [max(1, round(5 * e)) for e in epochs]  # 5 steps an epoch
        assert same(network.state_dict(), zoo.rounded(weights[-1].weights())) and not network.training
        assert torch.equal(torch.cat(images), data.to_float(one.dataset().train_images))
    # What collects and changes nothing is the network itself, trained in the same bits as on its own.
    noted = one.find(question(noting, epochs=(1.0, 2.0))).rows[1]
    assert row(lab(computed, "replay"), None)["adv_wrong"] == noted["adv_wrong"]


def test_the_robust_role_asks_the_robust_targets_alone(computed):
    one = lab(computed, "replay")
    specs = [TINY.target(t) for t in TINY.targets[3:]]
    assert [s.adversary.norm for s in specs] == ["l2", "linf"]
    assert one.find(question(None, robust=True)).settings["targets"] == [s.key() for s in specs]
    assert not {s.key() for s in specs} & set(one.find(question(None)).settings["targets"])

    images, labels = one.bench.attacked
    nets = [released(one, t) for t in TINY.targets[3:]]
    for recipe in (None, RECIPES["averaged"]):
        adversarial = one.scale.attack(by_the_recipe(one, recipe), images, labels)
        fooled, clean = (
            torch.stack([transfer.predict(net, x) != labels for net in nets], 1)[:30].numpy()
            for x in (adversarial, images)
        )
        hits = ask(one, recipe, robust=True)
        np.testing.assert_array_equal(hits.adv_wrong[0], fooled)
        np.testing.assert_array_equal(hits.clean_wrong, clean)
    assert ask(one, None).adv_wrong.shape == ask(one, None, robust=True).adv_wrong.shape == (1, 30, 2)
    assert ask(one, None, role="validation").adv_wrong.shape == (1, 11, 1)


def test_the_robust_accuracy_of_a_recipe_is_that_of_what_it_makes(computed):
    one, recipe, probe = lab(computed), RECIPES["averaged"], TINY.robustness
    found, plain = (one.read(Arm("run", [RUN], At(probe, (2.0,), r))) for r in (recipe, None))
    model, (images, labels) = by_the_recipe(one, recipe), one.bench.test_images(probe.images)
    for name, attack in probe.attacks().items():
        expected = transfer.is_robust(model, images, labels, attack, probe.restarts).numpy()
        np.testing.assert_array_equal(found.correct[name][0, 0], expected)
    assert any((found.correct[name] != plain.correct[name]).any() for name in found.correct)
