"""``make app``: the inspector as a page of its own, served by Voilà."""

import re
import shutil
from pathlib import Path

import pytest

from nbhelpers.inputs.text import load_text
from nbhelpers.inspector.reading import read_text

ROOT = Path(__file__).parents[2]
APP = Path("nbhelpers", "inspector", "app.ipynb")


def test_the_app_shows_the_inspector_and_answers_a_click(serve, tmp_path, page, shot, smollm2):
    found = re.search(rf"voila {APP.as_posix()} (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    options = found.group(1).split()
    assert "--MappingKernelManager.cull_idle_timeout=600" in options
    shutil.copy(ROOT / APP, tmp_path)
    page.goto(serve("voila", tmp_path, [APP.name, *options], port_option="--port"))
    page.locator(".nbh-cell").first.wait_for()
    assert page.locator(".nbh-cell").count() == 30 * 9
    assert "javascript error" not in page.inner_text("body")  # what a widget shows that cannot be drawn
    page.locator(".nbh-curves svg").nth(5).wait_for()
    assert "load_text" not in page.inner_text("body")  # no code on the page
    page.locator('.nbh-cell[data-layer="4"][data-head="7"]').click()
    page.locator('[data-drawn="4.7"]').wait_for()
    shot(page, "app")
    ids = load_text("moby-dick", smollm2, n_sequences=1, length=256)
    reading = read_text(smollm2, smollm2.tokenizer.decode(ids[0]))
    for metric in ("low_band", "spectral_entropy"):
        shown = page.locator(f".nbh-numbers tr[data-metric={metric}] td").first.inner_text()
        assert float(shown) == pytest.approx(reading.numbers(4, 7).value[metric], rel=6e-3)
    assert page.complaints == []
