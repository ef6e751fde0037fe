import pytest
from tiny_sweeps import stand_in, write_run


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A sweep's folder; the runs of sweeps are played, see `tiny_sweeps`."""
    monkeypatch.setenv("PYTHONPATH", stand_in(tmp_path))
    write_run(tmp_path / "out" / "template.parquet", {"spectral_entropy": 1.0})
    return tmp_path / "out"
