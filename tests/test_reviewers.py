"""What reviewers asked, and the answers that records give."""

import re

import pytest

from rfnlib import studies
from rfnlib.lab import Lab
from rfnlib.studies import reviewers


@pytest.fixture(scope="module")
def answers():
    return reviewers.table(Lab("smoke", "replay"))


def test_every_question_is_answered_in_a_line_by_the_committed_records(answers):
    for name, row in answers.iterrows():
        said = row["answer"]
        assert said != "not recorded yet" and len(said) > 20 and said.endswith("."), name
        assert not re.search(r"\bnan\b|None|\(\w+=|not measured", said), said
        assert row["notebook"] in {study.NOTEBOOK[:2] for study in (*studies.STUDIES, *studies.BEYOND)}


def test_most_answers_are_measured_and_have_intervals(answers):
    with_interval = answers["answer"].str.contains(r"to [+−]?\d|one seed")
    assert with_interval.sum() > len(answers) / 2


def test_what_is_not_recorded_says_so_and_hides_nothing_else(tmp_path):
    found = reviewers.table(Lab("smoke", "replay", records_dir=tmp_path))
    assert (found["answer"] == "not recorded yet").sum() == len(found) - 1 and "equations" in found["answer"]["x1"]


def test_all_31_questions_are_there_in_their_order():
    assert [question.id for question in reviewers.QUESTIONS] == [f"x{n}" for n in range(1, 32)]
