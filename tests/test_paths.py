"""Every folder is the checkout's, whatever the working folder is, until a variable moves it."""

from pathlib import Path

import pytest

from rfnlib import paths

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "RFN_DATA": (paths.data_dir, "data"),
    "RFN_RECORDS": (paths.records_dir, "data/records"),
    "RFN_CACHE": (paths.cache_dir, "data/cache"),
    "RFN_WEIGHTS": (paths.weights_dir, "data/weights"),
    "RFN_FIGURES": (paths.figures_dir, "figures"),
}


@pytest.mark.parametrize("variable", FOLDERS)
def test_a_variable_moves_a_folder_and_an_empty_one_does_not(variable, tmp_path, monkeypatch):
    folder, default = FOLDERS[variable]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "")
    assert folder() == ROOT / default
    monkeypatch.setenv(variable, "elsewhere")
    assert folder() == (tmp_path / "elsewhere").resolve()


def test_notebooks_lie_in_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.notebooks_dir() == ROOT / "notebooks" and paths.root() == ROOT
