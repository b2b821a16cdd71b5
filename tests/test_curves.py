"""Curves: what was measured is found by its epoch, and what was not is refused."""

import numpy as np
import pytest
from scenes import TINY
from synthetic import curve

from rfnlib.curves import RobustnessCurve, SharpnessCurve
from rfnlib.measurements import Arm, At
from rfnlib.specs import Step

SPECS = [TINY.surrogate(Step(0.05), seed) for seed in (0, 1)]
EPOCHS = (1.0, 2.0, 3.0)


def test_an_epoch_is_found_within_a_fiftieth_and_not_beyond():
    found = curve(Arm("SGD", SPECS, At(TINY.transfer, EPOCHS)), lambda e: 0.2 * e)
    assert [found.index(e) for e in (1, 2.01, 2.99)] == [0, 1, 2] and found.end == 3.0
    with pytest.raises(LookupError, match="SGD was not measured at epoch 2.5, only at 1, 2, 3"):
        found.index(2.5)


def test_success_is_that_of_the_epoch_asked_for():
    found = curve(Arm("SGD", SPECS, At(TINY.transfer, EPOCHS)), lambda e: 0.2 * e)
    assert [found.at(e).value for e in EPOCHS] == pytest.approx([0.2, 0.4, 0.6])
    assert found.at(2.0, targets=[1]).z.shape == (2, 400, 1)


def test_the_first_seeds_of_a_curve_are_a_curve_of_fewer():
    found = curve(Arm("SGD", SPECS, At(TINY.transfer, EPOCHS)), lambda e: 0.2 * e, seed_sd=0.1)
    one = found.first(1)
    assert (one.seeds, found.seeds) == (1, 2) and one.epochs == found.epochs
    np.testing.assert_array_equal(one.hits[2].adv_wrong, found.hits[2].adv_wrong[:1])
    np.testing.assert_array_equal(one.accuracy, found.accuracy[:1])


def test_sharpness_at_an_epoch_has_a_value_a_seed():
    found = SharpnessCurve("SGD", SPECS[0], EPOCHS, {"top": np.array([[1.0, 2, 3], [4, 5, 6]])})
    np.testing.assert_array_equal(found.at(2.0), [2, 5])
    assert found.seeds == 2


def test_robust_accuracy_is_the_share_of_images_still_correct():
    correct = np.zeros((2, 3, 10), bool)
    correct[0, 1, :4] = correct[1, 1, :8] = True
    found = RobustnessCurve("SGD", SPECS[0], EPOCHS, {"none": ~correct, "l2 0.5": correct})
    assert found.at(2.0, "l2 0.5").value == pytest.approx(0.6)
    assert found.at(2.0).value == pytest.approx(0.4) and found.at(1.0, "l2 0.5").value == 0
