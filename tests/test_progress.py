"""Progress is plain text that knows how much is left, and silent where it should be."""

from rfnlib import progress
from rfnlib.progress import Progress


def test_in_a_log_it_is_a_line_now_and_then_with_what_is_left(monkeypatch, capsys):
    monkeypatch.delenv("RFN_QUIET", raising=False)
    now = iter([0.0, 10.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with Progress(4, "training") as bar:
        bar.advance(1, "epoch 1")  # after 10 s: too soon to say anything
        bar.advance(1, "epoch 2")
    assert capsys.readouterr().out == "training:  50%, 00:40 gone, 00:40 left. epoch 2\n"


def test_it_is_silent_when_told_to_be(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setenv("RFN_QUIET", "1")
    with Progress(2, "training") as bar:
        bar.advance()
    monkeypatch.delenv("RFN_QUIET")
    with Progress(2, "training", enabled=False) as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "") and bar.done == 1
