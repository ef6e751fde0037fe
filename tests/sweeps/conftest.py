import os

import pytest
from tiny_sweeps import play_in


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A sweep's folder; the runs of sweeps are played, see `tiny_sweeps`."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return play_in(tmp_path)
