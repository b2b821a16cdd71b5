"""The model cards: what they say is what the files and the records say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rfnlib import cards, paths, scales, zoo
from rfnlib.lab import Lab


def test_a_card_has_a_line_for_each_network_with_what_is_recorded_of_it():
    lab = Lab("smoke")
    text = cards.card(lab)
    (line,) = [line for line in text.splitlines() if line.startswith("| vgg11-w8-onecycle-s1000 ")]
    row = lab.measure(lab.scale.clean(lab.scale.targets[0])).rows[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:4] == ["vgg11 (width 8)", "SGD", "one cycle: 0.002 to 0.05 at 30% of the run, then to 0"]
    assert cells[6] == f"{row['accuracy']:.1%}".replace("%", " %") and cells[8] == row["weights"]
    assert text.count("\n| ") - 2 == len(zoo.files("smoke")) and "1,000 training images of digits" in text
    assert "Licence:** MIT" in text and 'rfnlib.zoo.load("smoke/NAME")' in text


def test_cards_lie_beside_the_weights_and_are_true():
    for scale in scales.SCALES.values():
        path = paths.weights_dir() / scale.name / "README.md"
        if not path.exists():
            continue
        written, lab = path.read_text(encoding="utf-8").splitlines(), Lab(scale)
        now = cards.card(lab).splitlines()
        assert set(written) - set(now) == set(), "run `python -m rfnlib readme`"


def test_cards_are_written_where_something_is_released(tmp_path, monkeypatch):
    monkeypatch.setenv("RFN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(scales, "SCALES", {name: scales.get("smoke") for name in ("smoke",)})
    assert cards.update() == []
    spec = scales.get("smoke").target(scales.get("smoke").targets[0])
    source = zoo.path_of(paths.root() / "data" / "weights" / "smoke", spec)
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / source.name).write_bytes(source.read_bytes())
    assert cards.update() == ["smoke"] and cards.update() == []
    assert "| vgg11-w8-onecycle-s1000 |" in (tmp_path / "smoke" / "README.md").read_text(encoding="utf-8")


def test_what_nobody_measured_is_said_so(tmp_path):
    lab = Lab(replace(scales.get("smoke"), n_train=None), records_dir=tmp_path)
    text = cards.card(lab)
    assert "not measured | not measured | not measured |" in text and "all training images" in text
    with pytest.raises(LookupError):
        zoo.load("smoke/nothing")
