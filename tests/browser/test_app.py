"""``make app``: the inspector as a page of its own, served by Voilà to so many visitors at a time."""

import re
from pathlib import Path

import pytest

from nbhelpers.inputs.models import available_models, load_model
from nbhelpers.inputs.text import load_text
from nbhelpers.inspector.reading import read_text

ROOT = Path(__file__).parents[2]
IDLE = 20  # s


@pytest.fixture(scope="module")
def visit(open_page, serve):
    (options,) = re.findall(r"voila (\S*app.ipynb .*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    culling = [f"--MappingKernelManager.cull_{name}" for name in (f"idle_timeout={IDLE}", "interval=2")]
    page = open_page()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VISITORS", "1")
        patch.setenv("MODEL", "zoo:rope")
        page.goto(serve("voila", ROOT, [*options.split(), *culling], port_option="--port"))
    page.locator(".nbh-curves svg").nth(5).wait_for()
    return page


def test_the_app_shows_the_inspector_and_answers_a_click(visit, shot):
    (default,) = re.findall(
        r'\bor \\"(.+?)\\"', (ROOT / "nbhelpers/inspector/app/app.ipynb").read_text("utf-8")
    )
    assert default in available_models()
    assert visit.locator(".nbh-cell").count() == 4 * 4
    assert "javascript error" not in visit.inner_text("body")  # what a widget shows that cannot be drawn
    assert "load_text" not in visit.inner_text("body")  # no code on the page
    visit.locator('.nbh-cell[data-layer="3"][data-head="2"]').click()
    visit.locator('[data-drawn="3.2"]').wait_for()
    shot(visit, "app")
    model = load_model("zoo:rope", device="cpu")
    ids = load_text("moby-dick", model, n_sequences=1, length=256)
    reading = read_text(model, model.tokenizer.decode(ids[0], skip_special_tokens=True))
    for metric in ("low_band", "spectral_entropy"):
        shown = visit.locator(f".nbh-numbers tr[data-metric={metric}] td").first.inner_text()
        assert float(shown) == pytest.approx(reading.numbers(3, 2).value[metric], rel=6e-3)
    assert visit.complaints == []


def test_nothing_on_the_page_keeps_a_reader_out(visit, faults_of_access):
    assert faults_of_access(visit) == []


def test_a_visitor_too_many_is_told_and_an_idle_one_gives_the_place_back(visit, page, shot):
    answer = page.goto(visit.url)
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    assert "has room for 1 at a time" in " ".join(page.inner_text("main").split())
    shot(page, "app-full")
    kernel = visit.evaluate("JSON.parse(document.querySelector('#jupyter-config-data').textContent).kernelId")
    while page.request.get(f"{visit.url}api/kernels/{kernel}").status == 200:  # the first visitor is idle
        page.wait_for_timeout(1000)
    visit.locator('.nbh-cell[data-layer="1"][data-head="3"]').click()
    visit.locator(".nbh-banner").wait_for(state="visible")
