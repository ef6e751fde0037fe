"""Notebook 06 in JupyterLab, as a person uses it: run all, click, type, pin, ablate, export, err, restart."""

import re
import statistics
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from nbhelpers.inputs.text import load_text
from nbhelpers.inspector.reading import read_text

ROOT = Path(__file__).parents[2]
NAME = "06_head_inspector"
LENGTH = 256  # at which a click must take less than a third of a second
TYPED = "The ship sails. The whale dives. The sea is wide and the night is long. " * 4
# Answers once the page has drawn the head in question, with the milliseconds since the click.
CLICK = """async ([layer, head]) => {
  const root = document.querySelector('.nbh'), started = performance.now();
  const cell = root.querySelector(`.nbh-cell[data-layer="${layer}"][data-head="${head}"]`);
  cell.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  while (root.dataset.drawn !== `${layer}.${head}` || root.dataset.waits) {
    if (performance.now() - started > 120000) throw new Error('still ' + root.dataset.drawn);
    await new Promise(done => setTimeout(done, 2));
  }
  return performance.now() - started;
}"""


@pytest.fixture(scope="module")
def reading(smollm2):
    ids = load_text("moby-dick", smollm2, n_sequences=1, length=LENGTH, seed=0)
    return read_text(smollm2, smollm2.tokenizer.decode(ids[0]), length=LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    folder.mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / f"{NAME}.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in (("length", LENGTH), ("n_clicks", 3), ("n_ablated", 1)):
        cell.source, n_set = re.subn(rf"(?m)^{name} = \S+", f"{name} = {value}", cell.source)
        assert n_set == 1, f"the notebook has no parameter {name}"
    nbformat.write(notebook, folder / f"{NAME}.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(open_page, serve, folder):
    options = ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True", "--allow-root"]
    address = serve("jupyterlab", folder, options, port_option="--ServerApp.port")
    page = open_page(1700, 1500)
    page.goto(f"{address}/lab/tree/{NAME}.ipynb?reset")
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
    page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.ready }")
    page.wait_for_function(
        "() => { const s = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;"
        " return s && s.connectionStatus === 'connected' && s.status === 'idle' }"
    )
    page.evaluate("() => { jupyterapp.commands.execute('application:toggle-left-area') }")
    page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(
        """() => { const cells = jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model);
        const error = '[data-mime-type="application/vnd.jupyter.error"]';
        const done = cells.every(cell => cell.type !== 'code' || cell.executionCount);
        return document.querySelector(error) || done }"""
    )
    return page


def numbers(page):
    rows = page.locator(".nbh-numbers tr[data-metric]").all()
    return {row.get_attribute("data-metric"): row.locator("td").first.inner_text() for row in rows}


def same(shown, reading, layer, head):
    wanted = reading.numbers(layer, head).value
    return len(shown) >= 6 and all(
        float(text.replace("−", "-")) == pytest.approx(wanted[name], rel=6e-3) for name, text in shown.items()
    )


def says(page, text, where=".nbh-status"):
    shown = "([where, text]) => document.querySelector(where).textContent.includes(text)"
    page.wait_for_function(shown, arg=[where, text])


def type_text(page, text):
    if not page.locator(".nbh-typed").is_visible():
        page.locator(".nbh-pop-text summary").click()
    page.locator(".nbh-typed").fill(text)


def test_all_cells_run_without_an_error(lab, shot):
    shot(lab, "inspector")
    assert lab.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert lab.locator(".nbh-cell").count() == 30 * 9
    assert "javascript error" not in lab.inner_text("body")  # what a widget shows that cannot be drawn
    assert lab.complaints == []


def test_a_click_shows_the_numbers_of_the_library_quickly(lab, reading):
    for layer, head in ((3, 4), (3, 8)):
        lab.evaluate(CLICK, [layer, head])
        assert same(numbers(lab), reading, layer, head)
    times = {"within": [lab.evaluate(CLICK, [12, head]) for head in range(5)][1:]}
    times["across"] = [lab.evaluate(CLICK, [layer, 5]) for layer in (2, 9, 17, 25)]
    medians = {kind: round(statistics.median(each)) for kind, each in times.items()}
    print(f"median ms from click to panels at {LENGTH} tokens: {medians}")
    assert max(medians.values()) < 3000  # 100 within a layer and 300 across on an idle machine


def test_arrow_keys_walk_on_the_map_and_not_in_the_notebook(lab, reading):
    lab.evaluate(CLICK, [6, 2])
    lab.locator(".nbh-heads").focus()
    active = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"
    before = lab.evaluate(active)
    for key, place in (("ArrowDown", "7.2"), ("ArrowRight", "7.3"), ("Home", "7.0"), ("ArrowUp", "6.0")):
        lab.keyboard.press(key)
        lab.locator(f'[data-drawn="{place}"]').wait_for()
        assert lab.evaluate(active) == before, f"after {key}"  # down and up would cancel at the end
    assert same(numbers(lab), reading, 6, 0)


def test_ablation_says_what_the_loss_does(lab, reading):
    lab.evaluate(CLICK, [2, 3])
    lab.locator(".nbh-ablate").click()
    says(lab, "Without layer 2, head 3", ".nbh-ablation")
    said = lab.locator(".nbh-ablation").inner_text()
    found, without = re.findall(r"\d+\.\d+", said), reading.ablate(2, 3)
    assert [*map(float, found[:2])] == pytest.approx([without.before, without.after], abs=2e-4)


def test_export_writes_files_that_can_be_downloaded(lab, reading, folder):
    lab.evaluate(CLICK, [7, 7])
    lab.locator(".nbh-export").click()
    link = lab.locator(".nbh-links a", has_text="layer07-head07").filter(has_text=".csv")
    with lab.expect_download() as download:
        link.click()
    frame = pd.read_csv(download.value.path())
    own, wanted = frame.set_index("metric")["value"], reading.numbers(7, 7)["value"]
    assert own.to_dict() == pytest.approx(wanted.to_dict(), rel=1e-6)
    kinds = {".csv", ".png", ".svg", ".pdf", ".npz", ".json"}
    assert {path.suffix for path in (folder / "build" / "exports").iterdir()} == kinds


def test_typed_text_is_measured_and_bad_text_keeps_what_was_there(lab, reading, shot):
    type_text(lab, TYPED)
    typed = read_text(reading.model, TYPED)
    says(lab, f"{typed.n_tokens} tokens")
    lab.evaluate(CLICK, [8, 1])
    assert same(numbers(lab), typed, 8, 1)
    for bad, said in (("", "empty"), ("whale", "at least 24 are needed")):
        type_text(lab, bad)
        says(lab, said)
        assert "last good reading" in lab.locator(".nbh-status.nbh-error").inner_text()
        assert same(numbers(lab), typed, 8, 1)
    shot(lab, "inspector-mistake")


def test_work_can_be_stopped(lab):
    before = numbers(lab)
    type_text(lab, TYPED * 20)
    lab.locator(".nbh-stop:enabled").click()
    says(lab, "Stopped")
    assert numbers(lab) == before


def test_a_page_whose_kernel_is_gone_says_so(lab, shot):
    assert lab.locator(".nbh-banner").is_hidden()
    kernel = "jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    lab.evaluate(f"async () => {{ await {kernel}.restart() }}")
    lab.locator('.nbh-cell[data-layer="11"][data-head="2"]').dispatch_event("click")
    lab.locator(".nbh-banner").wait_for(state="visible")
    assert "Run the cell again" in lab.locator(".nbh-banner").inner_text()
    shot(lab, "inspector-no-kernel")
