"""What holds for all tests, and what any module of them may ask pytest for."""

import pytest
import torch

from rfnlib import data, training
from rfnlib.attacks import IterativeAttack

torch.set_num_threads(1)  # networks this small only lose by sharing their work, and beside other work much more


@pytest.fixture
def no_work(monkeypatch) -> None:
    """Reading data, training and attacking fail."""

    def fail(*_, **__):
        raise AssertionError("it worked")

    for owner, name in ((data, "load"), (training, "train"), (IterativeAttack, "__call__")):
        monkeypatch.setattr(owner, name, fail)
