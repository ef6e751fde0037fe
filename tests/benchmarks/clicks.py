"""Print how long a click in the head inspector takes, in the kernel and in Chromium, and the kernel's memory.

    python -m tests.benchmarks.clicks smollm2-135m 256 2048

A click within a layer needs the page alone; one in another layer the kernel first, and the transfer between
them, which is not measured here.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright

from nbhelpers import inspect_heads, load_model, load_text
from tests.browser.conftest import CHROMIUM, FLAGS

CLICK = """([layer, head]) => new Promise(done => {
  const root = document.querySelector('.nbh'), cell = `.nbh-cell[data-layer="${layer}"][data-head="${head}"]`;
  root.querySelector(cell).dispatchEvent(new MouseEvent('click', {bubbles: true}));
  setTimeout(() => done(+root.dataset.milliseconds));
})"""


def clicks(page, places):
    """Return the median ms from a click to the panels and the least, which is that of a quiet moment."""
    times = [page.evaluate(CLICK, list(place)) for place in places]
    return f"{statistics.median(times):.0f} (least {min(times):.0f})"


def main(model_name, *lengths):
    model = load_model(model_name)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for length in map(int, lengths):
            ids = load_text("moby-dick", model, n_sequences=1, length=length)
            inspector = inspect_heads(model, model.tokenizer.decode(ids[0]), length=length, progress=False)
            used = time.process_time()
            for layer in (3, 1, 4, 2, 0):
                inspector.select(layer, 0)
            processor, held = (time.process_time() - used) * 200, psutil.Process().memory_info().rss / 1e9
            path = inspector.to_html(Path(folder) / "heads.html", length=length, layers=(0, 1))
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(600_000)
            page.goto(path.as_uri())
            page.locator("[data-drawn]").wait_for()
            within = clicks(page, [(0, head % inspector.reading.shape[1]) for head in range(1, 8)])
            across = clicks(page, [(number % 2, 0) for number in range(1, 8)])
            kernel = 1000 * statistics.median(inspector.click_seconds)
            told = (
                f"within a layer {within} ms; across {kernel:.0f} (kernel, {processor:.0f} of processor) + "
            )
            told += f"{across} ms (page); {held:.1f} GB held"
            print(f"{length} tokens, load {os.getloadavg()[0]:.0f}: {told}")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
