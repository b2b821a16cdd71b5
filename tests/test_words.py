"""Words and units of tables and headlines; most of what they say stands in their own examples."""

import doctest
import math
import re

import numpy as np
import pytest

from rfnlib import attacks, words
from rfnlib.intervals import Estimate, over_seeds
from rfnlib.specs import Minimizer, OneCycle, Step
from rfnlib.transfer import DENOMINATORS


def test_the_examples_say_what_they_do():
    found = doctest.testmod(words)
    assert found.attempted > 10 and not found.failed


@pytest.mark.parametrize("said", [words.percent, words.points, words.factor])
def test_what_was_not_measured_is_said_in_words(said):
    assert said(None) == "not measured"
    assert words.number(math.nan) == "not measured"


@pytest.mark.parametrize("said", [words.percent, words.points, words.factor])
def test_an_estimate_of_one_seed_claims_no_interval(said):
    only = said(over_seeds(np.array([0.2])))
    assert "one seed" in only and "inf" not in only and "nan" not in only


def test_low_bounds_below_zero_are_written_as_the_values_are():
    assert words.percent(Estimate(0.05, 0.05, 0.02704, 1e6, 3)) == "5.0 % (−0.3 to 10.3)"


def test_every_denominator_has_a_name_that_fits_a_table():
    assert words.COUNTED.keys() == DENOMINATORS.keys()
    assert all(len(name) < 50 for name in words.COUNTED.values())  # where pandas cuts


def test_settings_are_told_without_python():
    assert words.attack(attacks.PGD(8 / 255, steps=20, step=2 / 255)) == "PGD, ε 8/255, 20 steps of 2/255"
    told = words.attack(attacks.BIM(4 / 255, steps=15, momentum=1.0, nesterov=True, loss="margin"))
    assert told == "BIM, ε 4/255, 15 steps of 0.4/255, momentum 1, Nesterov, loss margin"
    averaged = Minimizer("WASAM", 0.05, warmup=5, average_from=60)
    assert words.minimizer(averaged) == "WASAM, ρ 0.05, ρ rising over 5 epochs, weights averaged from epoch 60 on"
    assert words.schedule(Step(0.1, (50,), warmup=2)) == "0.1, times 0.1 at epoch 50, after 2 epochs of warm-up"
    assert words.schedule(OneCycle(0.1)) == "one cycle: 0.004 to 0.1 at 30% of the run, then to 0"
    technique = attacks.VMI() | attacks.DI() | attacks.TI()
    told = words.attack(technique)
    assert told.endswith("momentum 1, views Diversity, variance tuning Neighbours, smoothing Smoothing")


@pytest.mark.parametrize("said", [words.percent, words.points, words.against, words.level, words.factor, words.lower])
def test_an_interval_over_two_seeds_says_so_and_of_one_number_a_seed_both_are_told(said):
    two, three = (said(Estimate(0.05, 0.05, 0.02704, 1e6, n, images=100)) for n in (2, 3))
    assert "; 2 seeds)" in two and two.replace("; 2 seeds)", ")") == three
    of_seeds = said(over_seeds(np.array([0.03, 0.07])))
    low, high = (said(over_seeds(np.array([x]))).replace(f" {words.ONE_SEED}", "") for x in (0.03, 0.07))
    shown = [re.findall(r"[\d.]+", text)[0] for text in (low, high)]
    assert re.fullmatch(rf".*\(2 seeds: \+?{shown[0]} and \+?{shown[1]}\).*", of_seeds)
