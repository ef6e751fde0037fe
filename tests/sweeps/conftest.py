import pytest
from tiny_sweeps import play_in


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A sweep's folder; the runs of sweeps are played, see `tiny_sweeps`."""
    from nbhelpers.sweeps import sweep_worker

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield play_in(tmp_path)
    sweep_worker._CHILDREN.end_finished()  # where a test was the worker itself
