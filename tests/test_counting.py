"""One difference, counted in several ways."""

import numpy as np
import pytest
from scenes import TINY
from synthetic import curve

from rfnlib import words
from rfnlib.intervals import Estimate, over_seeds
from rfnlib.measurements import Arm, At
from rfnlib.specs import Step
from rfnlib.studies import counting

ARM = Arm("SGD", [TINY.surrogate(Step(0.05), seed) for seed in (0, 1, 2)], At(TINY.transfer, (1.0, 2.0)))
RUN = curve(ARM, lambda e: 0.2 + 0.1 * e, seed_sd=0.02)


def gain(epoch=2.0, **how):
    return RUN.at(epoch, **how) - RUN.at(1.0, **how)


def test_a_table_has_a_row_a_way_and_a_column_a_difference():
    table = counting.table({"gain": gain, "level": RUN.at}, counting.each(RUN.targets), "target")
    assert list(table.index) == list(RUN.targets) and list(table.columns) == ["gain", "level"]
    found = counting.estimates(gain, counting.each(RUN.targets))
    assert table["gain"]["target 2"] == words.points(found["target 2"])
    assert np.mean([e.value for e in found.values()]) == pytest.approx(gain().value)


def test_other_targets_are_a_wider_interval_and_each_left_out():
    found = counting.estimates(gain, {"as judged": {}, **counting.other_targets(RUN.targets)})
    judged, sampled, *without = found.values()
    assert sampled.value == judged.value and sampled.error >= judged.error
    assert [e.targets for e in without] == [2, 2, 2] and list(found)[2] == "without target 1"
    assert found["without target 1"].value == pytest.approx(gain(targets=[1, 2]).value)
    assert counting.other_targets(["one"]) == {}


def test_every_denominator_is_counted():
    assert len(counting.table({"gain": gain}, counting.other_images(), "counted over")) == len(words.COUNTED)


def test_a_way_may_be_anything_that_the_difference_takes_and_an_estimate_needs_no_interval():
    ways = {f"epoch {e:g}": {"epoch": e} for e in RUN.epochs}
    assert counting.signs(gain, ways).startswith("1 of 2 above 0")
    logs = counting.estimates(lambda measure: over_seeds(np.ones(3)) if measure else None,
                              {"defined": {"measure": 1}, "not": {"measure": 0}})  # fmt: skip
    assert logs["defined"].value == 1 and logs["not"] is None


def test_signs_tell_what_is_below_zero_too():
    values = {"a": 0.02, "b": -0.02}

    def difference(of):
        return Estimate(values[of], values[of], 0.0051, 1e6, 5)

    said = counting.signs(difference, {name: {"of": name} for name in values})
    assert said == "1 of 2 above 0 (1 at 95 %), 1 below 0 (1 at 95 %); smallest, in points: b, −2.0 (−3.0 to −1.0)"
