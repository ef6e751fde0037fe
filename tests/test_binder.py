"""What Binder does with the repository, as far as it can be seen without Docker."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
URL = re.compile(r"https://mybinder\.org/v2/gh/([^)\s]+)")


@pytest.fixture(scope="module")
def dockerfile():
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_repo2docker_takes_environment_and_post_build(dockerfile):
    assert "binder/environment.yml" in dockerfile
    assert "./binder/postBuild" in dockerfile
    assert "Building conda environment for python=3.11" in dockerfile


def test_post_build_is_a_script_and_lab_settings_are_json_objects():
    subprocess.run(["bash", "-n", ROOT / "binder" / "postBuild"], check=True)
    settings = json.loads((ROOT / "binder" / "overrides.json").read_text())
    assert all(isinstance(plugin, dict) for plugin in settings.values())


def test_readme_launches_every_notebook_from_the_repository_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"].removeprefix("https://github.com/")
    links = URL.findall((ROOT / "README.md").read_text())
    assert all(link.startswith(f"{repository}/main?urlpath=lab/tree/notebooks") for link in links)
    launched = {link.rsplit("/", 1)[1] for link in links}
    assert {path.name for path in NOTEBOOKS} <= launched
