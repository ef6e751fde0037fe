import os

import pytest
from tiny_sweeps import STAND_IN, write_run


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A sweep's folder; the runs of sweeps are played, see `tiny_sweeps`."""
    (tmp_path / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    write_run(tmp_path / "out" / "template.parquet", {"spectral_entropy": 1.0})
    return tmp_path / "out"
