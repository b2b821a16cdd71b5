"""Measurements and arms are values: equal where they ask the same, and in the order that compares soonest."""

import pickle

from scenes import TINY

from rfnlib.attacks import MI
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.probes import Clean, Transfer
from rfnlib.recipes import Collected
from rfnlib.specs import Minimizer, Step

SGD = [TINY.surrogate(Step(0.05), seed) for seed in (0, 1)]
FLAT = [TINY.flat(Minimizer("SAM", 0.1), 0)]


def test_epochs_are_sorted_and_asked_for_once():
    assert At(Clean(), (3, 1, 3.0)).epochs == (1.0, 3.0)
    assert At(Clean(), (3, 1)) == At(Clean(), (1, 3)) and hash(At(Clean(), (3, 1))) == hash(At(Clean(), (1, 3)))


def test_measurements_of_the_same_question_are_one():
    m = Measurement(SGD[0], At(TINY.transfer, (1.0, 2.0)))
    assert m == Measurement(SGD[0], At(Transfer(TINY.attack), (2, 1))) and len({m, m.of((1, 2))}) == 1
    assert m != Measurement(SGD[1], m.at) and m != m.of((1.0,))
    assert pickle.loads(pickle.dumps(m)) == m, "it travels to workers"


def test_a_label_says_kind_network_training_and_seed():
    assert Measurement(SGD[1], At(TINY.transfer, (1,))).label == "transfer: resnet18, constant rate, seed 1"
    label = Measurement(FLAT[0], At(Transfer(MI(), "robust"), (1,), Collected(2))).label
    assert label == "transfer with momentum to robust targets: resnet18, sam0.1, Collected, seed 0"


def test_a_transfer_needs_its_targets_first_and_others_need_nothing():
    m = Measurement(SGD[0], At(TINY.transfer, (1,)))
    assert m.needs(TINY) == [TINY.clean(t) for t in TINY.targets_of("standard")] and len(m.needs(TINY)) == 3
    assert Measurement(SGD[0], At(TINY.robustness, (1,))).needs(TINY) == []


def test_arms_are_gone_through_seed_by_seed():
    attacked = At(TINY.transfer, (1,))
    arms = [Arm("SGD", SGD, attacked, At(TINY.robustness, (2,))), Arm("SAM", FLAT, attacked)]
    order = [(m.spec.seed, m.spec.minimizer is None, m.probe.kind) for m in by_seed(arms)]
    assert order == [
        (0, True, "transfer"), (0, True, "robustness"), (0, False, "transfer"),
        (1, True, "transfer"), (1, True, "robustness"),
    ]  # fmt: skip
    assert list(by_seed([])) == []
