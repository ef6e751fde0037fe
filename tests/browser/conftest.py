"""A real Chromium on a real JupyterLab or Voilà, with settings and folders of their own."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "browser"  # what the pages looked like, kept for a person to look at
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
WAIT = 180_000  # ms; a kernel that imports torch on a busy machine takes most of a minute
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "docmanager-extension/plugin": '{"autosave": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
            if not CHROMIUM:
                item.add_marker(pytest.mark.skip(reason="no Chromium here: apt-get install chromium"))


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """Open a page of its own; ``page.complaints`` collects what its scripts complain about."""
    contexts = []

    def start(width=1500, height=1250):
        viewport = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=viewport, accept_downloads=True))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        return page

    yield start
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Start a server on a free port: ``serve(module, folder, options)`` -> address."""
    started = []

    def start(module, folder, options, *, port_option, quiet="--no-browser"):
        own = tmp_path_factory.mktemp("jupyter")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", module, *options, f"{port_option}={port}", quiet]
        with (own / "log").open("w") as log:
            streams = {"stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, cwd=folder, env=_environment(own), **streams)
        started.append(process)
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, process, own / "log")
        return address

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


@pytest.fixture
def shot():
    SHOTS.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def faults_of_access():
    """What axe-core calls serious or critical on a page; `AXE` names its script, of the npm package."""
    if not (script := os.environ.get("AXE")):
        pytest.skip("no axe-core here: npm pack axe-core, unpack it, AXE=package/axe.min.js")

    def run(page):
        page.add_script_tag(path=script)
        found = page.evaluate("axe.run()")["violations"]
        found = [each for each in found if each["impact"] in ("serious", "critical")]
        return [(each["id"], node["html"]) for each in found for node in each["nodes"]]

    return run


def _environment(own):
    for name, text in SETTINGS.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    jupyter = {f"JUPYTER_{name}_DIR": name.lower() for name in ("CONFIG", "DATA", "RUNTIME")}
    lab = {f"JUPYTERLAB_{name}_DIR": name.lower() for name in ("SETTINGS", "WORKSPACES")}
    folders = jupyter | lab | {"IPYTHONDIR": "ipython"}
    folders = {name: str(own / folder) for name, folder in folders.items()}
    return os.environ | folders | {"OMP_NUM_THREADS": "1"}


def _wait_for(address, process, log, *, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(f"{address}/api", timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"nothing answers at {address} after {seconds} s:\n{log.read_text()}")
