"""Notebook 06 in JupyterLab, as a person uses it: run all, click, type, pin, ablate, export, err."""

import re
import statistics
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from nbhelpers.inputs.text import load_text
from nbhelpers.inspector.map import map_colours
from nbhelpers.inspector.reading import read_text
from nbhelpers.metrics import metric_label

ROOT = Path(__file__).parents[2]
NAME = "06_head_inspector"
LENGTH = 256  # at which a click must take less than a third of a second
TYPED = "The ship sails. The whale dives. The sea is wide and the night is long. " * 4
SHOWN = ("low_band", "spectral_entropy", "positional_entropy", "sink_mass", "scale_sensitivity_0.5")
# Answers once the panels show the head in question, with the milliseconds since the click.
CLICK = """async ([layer, head]) => {
  const image = document.querySelector('.nbh-attention img'), before = image.src, started = performance.now();
  const cell = document.querySelector(`.nbh-cell[data-layer="${layer}"][data-head="${head}"]`);
  cell.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  const shown = () => document.querySelector('.nbh-attention img').src !== before
    && document.querySelector('.nbh-numbers').textContent.includes(`layer ${layer}, head ${head}`);
  while (!shown()) {
    if (performance.now() - started > 120000)  // Playwright lets a script run for ever
      throw new Error('still ' + document.querySelector('.nbh-numbers').textContent);
    await new Promise(done => setTimeout(done, 5));
  }
  return performance.now() - started;
}"""


@pytest.fixture(scope="module")
def reading(smollm2):
    """What the library says of the passage of the notebook."""
    ids = load_text("moby-dick", smollm2, n_sequences=1, length=LENGTH, seed=0)
    return read_text(smollm2, smollm2.tokenizer.decode(ids[0]), length=LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the notebook, since Lab saves in place, with fewer clicks and ablations."""
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
    """The page of the notebook after all its cells have run."""
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
        r"""() => { const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
        const error = '[data-mime-type="application/vnd.jupyter.error"]';
        const done = prompts.length && prompts.every(p => /^\[\d+\]:/.test(p.textContent));
        return document.querySelector(error) || done }"""
    )
    return page


@pytest.fixture(autouse=True)
def fresh(lab):
    """Begin each test with one selected head, none pinned."""
    lab.locator(".nbh-map").scroll_into_view_if_needed()
    if lab.locator(".nbh-unpin").is_enabled():
        lab.locator(".nbh-unpin").click()
    heading = lab.locator(".nbh-numbers tr").first.inner_text()
    lab.evaluate(CLICK, [0, 0] if "layer 0, head 0" not in heading else [0, 1])


def numbers(page, column=0):
    """Return what the table of numbers says, metric to text."""
    rows = page.locator(".nbh-numbers tr[data-metric]").all()
    return {row.get_attribute("data-metric"): row.locator("td").nth(column).inner_text() for row in rows}


def expected(reading, layer, head):
    return {name: f"{value:.4g}" for name, value in reading.numbers(layer, head)["value"].items()}


def same(shown, wanted):
    return {name: shown[name] for name in SHOWN} == {name: wanted[name] for name in SHOWN}


def says(page, text, where=".nbh-status"):
    """Wait until that part of the inspector shows the text."""
    shown = "([where, text]) => document.querySelector(where).textContent.includes(text)"
    page.wait_for_function(shown, arg=[where, text])


def test_all_cells_run_without_an_error(lab, shot):
    shot(lab, "inspector")
    assert lab.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert lab.locator(".nbh-cell").count() == 30 * 9
    assert "javascript error" not in lab.inner_text("body")  # what a widget shows that cannot be drawn
    assert lab.complaints == []


def test_every_control_has_a_name_for_those_who_cannot_see_it(lab):
    nameless = lab.evaluate(
        """() => [...document.querySelectorAll('.nbh-inspector :is(input, select, textarea, button, img)')]
        .filter(e => e.offsetParent && !(e.labels?.[0]?.textContent.trim() || e.title || e.ariaLabel || e.alt
          || e.textContent.trim() && e.tagName === 'BUTTON'))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    label = lab.locator(".nbh-keys").get_attribute("aria-label")
    assert label.startswith("Map of heads by low band")
    assert "Arrow keys move" in label


def test_a_click_shows_the_numbers_of_the_library_quickly(lab, reading):
    lab.locator('.nbh-cell[data-layer="3"][data-head="4"]').click()
    says(lab, "layer 3, head 4", ".nbh-numbers")
    assert same(numbers(lab), expected(reading, 3, 4))
    assert "layer 3, head 4" in lab.locator(".nbh-map-said").inner_text()
    times = [lab.evaluate(CLICK, [layer, 5]) for layer in (2, 9, 17, 25, 4, 12)]
    assert statistics.median(times) < 1000  # ms; 300 on an idle machine, this one may be busy


def test_arrow_keys_walk_on_the_map_and_not_in_the_notebook(lab, reading):
    lab.locator('.nbh-cell[data-layer="6"][data-head="2"]').click()
    active = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"
    before = lab.evaluate(active)
    for key, place in (("ArrowDown", (7, 2)), ("ArrowRight", (7, 3)), ("Home", (7, 0)), ("ArrowUp", (6, 0))):
        lab.keyboard.press(key)
        says(lab, f"layer {place[0]}, head {place[1]}", ".nbh-numbers")
        assert lab.evaluate(active) == before, f"after {key}"  # down and up would cancel at the end
    assert same(numbers(lab), expected(reading, 6, 0))


def test_another_metric_colours_the_map_anew(lab, reading):
    lab.locator(".nbh-metric select").select_option(label=metric_label("spectral_entropy"))
    says(lab, "spectral entropy", ".nbh-map-said")
    colours, _ = map_colours(reading.values("spectral_entropy"))
    for layer, head in ((0, 0), (11, 3), (29, 8)):
        cell = lab.locator(f'.nbh-cell[data-layer="{layer}"][data-head="{head}"]')
        assert cell.get_attribute("fill") == colours[layer][head]
    lab.locator(".nbh-metric select").select_option(label=metric_label("low_band"))


def test_a_pinned_head_stands_beside_the_selected_one(lab, reading, shot):
    lab.evaluate(CLICK, [5, 6])
    lab.locator(".nbh-pin").click()
    lab.locator(".nbh-other").wait_for(state="visible")
    lab.evaluate(CLICK, [20, 1])
    assert same(numbers(lab), expected(reading, 20, 1))
    assert same(numbers(lab, column=2), expected(reading, 5, 6))
    shot(lab, "inspector-pinned")


def test_ablation_says_what_the_loss_does(lab, reading):
    lab.evaluate(CLICK, [2, 3])
    lab.locator(".nbh-ablate").click()
    says(lab, "Without layer 2, head 3", ".nbh-ablation")
    said = lab.locator(".nbh-ablation").inner_text()
    found, without = re.findall(r"\d+\.\d+", said), reading.ablate(2, 3)
    assert [*map(float, found[:2])] == pytest.approx([without.before, without.after], abs=2e-4)


def test_export_writes_files_that_can_be_downloaded(lab, reading, folder):
    lab.evaluate(CLICK, [7, 7])
    lab.locator(".nbh-folder input").fill("mine")
    lab.locator(".nbh-folder input").press("Enter")
    lab.locator(".nbh-export").click()
    link = lab.locator(".nbh-links a", has_text="layer07-head07").filter(has_text=".csv")
    with lab.expect_download() as download:
        link.click()
    frame = pd.read_csv(download.value.path())
    own, wanted = frame.set_index("metric")["value"], reading.numbers(7, 7)["value"]
    assert own.to_dict() == pytest.approx(wanted.to_dict(), rel=1e-6)
    assert sorted(path.suffix for path in (folder / "mine").iterdir()) == [".csv", ".png"]


def test_typed_text_is_measured_and_bad_text_keeps_what_was_there(lab, reading, shot):
    lab.locator(".nbh-text textarea").fill(TYPED)
    typed = read_text(reading.model, TYPED)
    says(lab, f"{typed.n_tokens} tokens")
    lab.evaluate(CLICK, [8, 1])
    good = expected(typed, 8, 1)
    assert same(numbers(lab), good)
    for bad, said in (("", "empty"), ("whale", "at least 24 are needed")):
        lab.locator(".nbh-text textarea").fill(bad)
        says(lab, said)
        assert "last good reading" in lab.locator(".nbh-status .nbh-error").inner_text()
        assert same(numbers(lab), good)
    shot(lab, "inspector-mistake")


def test_work_can_be_stopped(lab):
    before = numbers(lab)
    lab.locator(".nbh-text textarea").fill(TYPED * 20)
    lab.locator(".nbh-stop:enabled").click()
    says(lab, "Stopped")
    assert numbers(lab) == before
    lab.locator(".nbh-text textarea").fill(TYPED)
    says(lab, "measured in")
