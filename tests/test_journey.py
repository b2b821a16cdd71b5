"""Paths, barriers and planes: which networks are shown, and what is said of rows that are known."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic import FakeLab

from rfnlib import scales
from rfnlib.lab import MissingRecord
from rfnlib.planes import Path, Plane
from rfnlib.plots import why as figures
from rfnlib.scale import CONSTANT
from rfnlib.studies import interventions, journey
from rfnlib.studies.interventions import LOWER, RFN, START
from rfnlib.studies.journey import SGD, Landscape

SCALE = replace(scales.SMOKE, epochs=100, standard=(50, 75), decays=(50,), seeds=(0, 1, 2), few=2, judged_after=2.0,
                pilots=(100,), rhos=(0.05, 0.1, 0.2), sharp_every=20)  # fmt: skip


class Known(FakeLab):
    """A lab with planes whose loss is x² and success 1/2 − x/10, and paths whose legs are 1 and barriers as said."""

    barriers = {SGD: (0.3, 0.0, 0.3), CONSTANT: (0.4, 0.5, 0.6), RFN: (0.0, 0.01, 0.0)}

    def read(self, arm, probe=None, role="test"):
        at = arm.question(probe)
        if not isinstance(at.probe, Plane | Path):
            return super().read(arm, probe, role)
        if not self.complete(arm, at):
            raise MissingRecord(f"{arm.name} is missing")
        if isinstance(at.probe, Plane):
            x, y = np.linspace(-1, 2, 4), np.linspace(-1, 1, 3)
            n = 1 + len(at.probe.places)
            spots = [[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], *([i / n, -0.2, 0.3] for i in range(n - 3))]
            grid = np.broadcast_to(x, (3, 4))
            return [{"x": x, "y": y, "loss": (grid**2).tolist(), "success": (0.5 - grid / 10).tolist(),
                     "places": spots, "digests": ["0" * 16] * n}]  # fmt: skip
        n, rows = len(at.probe.epochs), []
        for seed in range(len(arm.specs)):
            lines = [[1.0, 1.0 + height * (1 + 0.01 * seed), 1.0] for height in self.barriers[arm.name]]
            legs = [1.0 + 0.01 * seed] * n
            rows.append({"legs": legs, "displaced": list(np.sqrt(np.cumsum(legs))), "norms": [2.0] * (n + 1),
                         "losses": lines, "digests": ["0" * 16] * n})  # fmt: skip
        return rows


def lab(**how) -> Known:
    return Known(SCALE, lambda name, e: 0.3, **how)


def test_the_local_plane_goes_through_the_checkpoint_and_the_ends_of_two_arms():
    shown, arm = journey.local(lab())
    plane = arm.question().probe
    runs = interventions.runs(lab(), [0])
    assert (arm.specs[0], arm.question().epochs) == (SCALE.surrogate(runs[LOWER][0].schedule.__class__(0.05), 0), (50,))
    assert [c.spec for c in plane.corners] == [runs[LOWER][0], runs[RFN][0]]
    assert [c.epoch for c in plane.corners] == [10, 5], "each at its end"
    assert [name for name, _ in shown[:3]] == [START, LOWER, RFN] and shown[3:] != []
    assert [place for _, place in shown[1:]] == list(plane.places)
    assert len({(p.spec, p.epoch) for p in plane.places}) == len(plane.places) == 5 * 4


def test_the_other_plane_follows_whole_trainings_through_networks_that_are_recorded_anyway():
    shown, arm = journey.whole(lab())
    assert [name for name, _ in shown[:3]] == [SGD, SGD, RFN]
    assert [p.epoch for name, p in shown if name == SGD] == [50, 100, 20, 40, 52, 60, 75, 77, 80]
    attacked = set(SCALE.attacked_at(arm.specs[0].schedule))
    assert {p.epoch for _, p in shown} <= attacked, "so nothing is attacked for the picture alone"


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda s: s.name)
def test_segments_join_networks_on_the_path_at_every_scale(scale):
    known = Known(scale, lambda name, e: 0.3)
    probe = journey.paths(known)[SGD].question().probe
    assert {e for pair in probe.between for e in pair} <= set(probe.epochs)
    assert probe.epochs[-1] == scale.end and journey.images(scale) <= (scale.n_train or 50_000)
    assert len(journey.paths(known)) == 3 and journey.local(known) and journey.whole(known)


def test_lengths_and_barriers_are_those_of_the_rows():
    found = journey.journeys(lab())
    assert found.length(SGD).value == pytest.approx(1.005 * len(found.stops))
    assert found.length(SGD, end=50).value + found.length(SGD, begin=50).value == pytest.approx(found.length(SGD).value)
    assert found.barrier(SGD, "before to just after").value == pytest.approx(0.3015)
    assert found.one_basin(RFN, "before to the end") and not found.one_basin(SGD, "before to the end")
    said = found.headline()
    assert "SGD 0.301 (" in said and said.endswith("to the run's own end: RFN.")
    table = found.table()
    assert list(table.index) == [SGD, CONSTANT, RFN] and "barrier, just after to the end" in table


def test_a_plane_is_coloured_by_the_success_that_is_recorded():
    found = journey.landscapes(lab(missing=(f"transfer of {LOWER}",)))
    assert [plane.name for plane in found] == ["from one checkpoint", "whole trainings"]
    plane = found[0]
    assert plane.spots[0].arm == START and plane.spots[0].success == pytest.approx(0.3, abs=0.01)
    assert plane.loss.shape == plane.success.shape == (3, 4)
    assert -1 <= plane.along() <= 1 and "epoch 10" in plane.table().index[1]
    figures.planes(found).canvas.draw()
    figures.planes(found[:1]).canvas.draw()
    plt.close("all")


def test_loss_and_success_are_compared_point_by_point():
    x, y = np.arange(3.0), np.arange(2.0)
    loss = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, np.nan]])
    assert Landscape("", x, y, loss, -loss, ()).along() == pytest.approx(-1)


def test_planes_that_are_not_recorded_are_left_out():
    assert [p.name for p in journey.landscapes(lab(missing=("from one checkpoint",)))] == ["whole trainings"]
    with pytest.raises(MissingRecord):
        journey.journeys(lab(missing=(SGD,)))
