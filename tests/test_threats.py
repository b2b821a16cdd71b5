"""The settings of questions Q4 to Q6: each changes what its name says, and nothing else."""

from dataclasses import replace

import pytest
from scenes import TINY
from synthetic import FakeLab
from test_pilots import SCALE

from rfnlib import data, scales
from rfnlib.attacks import IterativeAttack
from rfnlib.studies import threats
from rfnlib.transforms import Diversity, GradientNorm, Reverse


@pytest.mark.parametrize("scale", [scales.SMOKE, scales.LAPTOP, TINY], ids=lambda s: s.name)
def test_an_attacker_s_images_are_none_of_the_targets_and_as_balanced(scale):
    own = threats.own_images(scale)
    assert own["other images"]["n_train"] == min(scale.n_train, data.most(scale.data) - scale.n_train)
    assert 0 < own["half as many"]["n_train"] <= own["other images"]["n_train"] / 2
    for how in own.values():
        assert how["skip"] == scale.n_train and how["n_train"] % 10 == how["skip"] % 10 == 0
        assert how["skip"] + how["n_train"] <= data.most(scale.data)
        assert how["n_train"] >= scale.batch
    if scale.data == "digits":
        theirs = data.load("digits").subset(scale.n_train).train_images.flatten(1)
        for how in own.values():
            mine = replace(scale.flat(None, 0), **how)
            images = data.load("digits").cut(*mine.cut).train_images.flatten(1)
            assert not (images[:, None] == theirs).all(2).any()


def test_all_settings_of_the_attacker_s_training_differ_by_one_thing():
    own = threats.own_images(scales.LAPTOP)
    assert own["other images"] == {"skip": 12_000, "n_train": 12_000}
    assert own["half as many"] == {"skip": 12_000, "n_train": 6_000}
    assert own["no augmentation"] == {**own["half as many"], "augment": False}
    assert own["noisy labels"] == {**own["half as many"], "label_noise": 0.2}


def test_attacks_differ_from_the_scale_s_by_what_their_name_says():
    plain, found = scales.LAPTOP.attack, threats.attacks(scales.LAPTOP)
    assert found["random start"] == replace(plain, random_start=True)
    assert found["MI+DI"] == replace(plain, momentum=1.0, views=(Diversity(),))
    assert found["margin loss"] == replace(plain, loss="margin") and found["logit loss"] == replace(plain, loss="logit")
    assert (found["l2"].norm, found["l2"].radius) == ("l2", 0.43), "4/255 · √3072 / 2"
    assert found["l2"].step_size == pytest.approx(0.043)
    beside = threats.further(scales.LAPTOP)
    assert beside["RAP"] == replace(plain, around=(Reverse(),))
    assert beside["PGN"] == replace(plain, momentum=1.0, around=(GradientNorm(n=scales.LAPTOP.rivals.neighbours),))
    assert beside["targeted"] == replace(plain, targeted=True, loss="logit", steps=45)
    every: list[IterativeAttack] = [plain, *found.values(), *beside.values()]
    assert len({str(a.describe()) for a in every}) == len(every)


def test_tables_say_what_an_attacker_knows_and_what_an_attack_costs():
    lab = FakeLab(SCALE)
    known = threats.threat_table(lab)
    assert "240 others" in known.loc["training images"].iloc[1] and "120" in known.loc["training images"].iloc[1]
    assert "20% replaced" in known.loc["labels"].iloc[1]
    cost = threats.attack_table(lab)
    assert list(cost["judged"]).count("yes") == 5 and cost.loc["targeted", "passes"] == "×3"
    assert set(cost.index) == set(threats.settings(SCALE, "Q6"))
