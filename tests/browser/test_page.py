import pytest

from nbhelpers.inspector import inspect_heads
from nbhelpers.inspector.widget import HERE

TAKEN = "document.title='taken'"
HOSTILE = f'<script>{TAKEN}</script><img src=x onerror="{TAKEN}"> & 鯨と海 🐋🏽 שלום '
LENGTH = 200
# A matrix with one column of .6, painted as the inspector paints it: how many pixels of a row have it.
SINK = """([n, key, size]) => {
  const data = new Uint8Array(n * (n + 1) / 2), sink = 1 + Math.round(254 * (1 + Math.log10(0.6) / 4));
  for (let query = key; query < n; query++) data[query * (query + 1) / 2 + key] = sink;
  const canvas = document.createElement("canvas"), table = ramp("light", "selected");
  paint(canvas, blockMax(matrix(data, n, true), [0, n - 1, 0, n - 1], size, size), table, size, size);
  const pixels = canvas.getContext("2d").getImageData(0, 0, size, size).data;
  const colour = (of, at) => of.slice(4 * at, 4 * at + 3).join(), wanted = colour(table, sink);
  const row = (y) => Array.from({ length: size }, (_, x) => colour(pixels, y * size + x));
  return Array.from({ length: size }, (_, y) => row(y).filter((each) => each === wanted).length);
}"""


@pytest.fixture(scope="module")
def made(tiny_llama, tmp_path_factory):
    text = HOSTILE + "the whale and the sea " * 20
    inspector = inspect_heads(tiny_llama, text, length=LENGTH, progress=False)
    inspector.select(1, 2)
    return inspector, inspector.to_html(tmp_path_factory.mktemp("page") / "heads.html", length=LENGTH)


@pytest.fixture
def opened(page, made):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(made[1].as_uri())
    page.locator("[data-drawn]").wait_for()
    yield page
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.complaints == []


def drawn(page, layer, head):
    page.locator(f'[data-drawn="{layer}.{head}"]').wait_for()
    return page.locator(".nbh-numbers thead").inner_text()


def test_a_click_draws_a_head_of_any_layer_and_a_pinned_one_beside_it(opened, made, shot):
    for layer, head in ((1, 3), (0, 1)):
        opened.locator(f'.nbh-cell[data-layer="{layer}"][data-head="{head}"]').click()
        assert f"A {layer}.{head}" in drawn(opened, layer, head)
        shown = opened.locator("tr[data-metric=spectral_entropy] td").first.inner_text()
        value = made[0].reading.numbers(layer, head).value["spectral_entropy"]
        assert float(shown) == pytest.approx(value, rel=6e-3)
    opened.locator(".nbh-pin").click()
    opened.locator(".nbh-thumbnail").wait_for(state="detached")
    opened.locator('.nbh-cell[data-layer="1"][data-head="0"]').click()
    assert "A 1.0" in (heading := drawn(opened, 1, 0))
    assert "B 0.1" in heading
    opened.get_by_role("button", name="A − B").click()
    opened.get_by_text("more in A").wait_for()
    shot(opened, "page-pinned")
    opened.locator(".nbh-pin").click()
    thumbnails = opened.locator(".nbh-thumbnail")
    thumbnails.nth(2).click()
    drawn(opened, 1, 2)
    pressed = [each.get_attribute("aria-pressed") for each in thumbnails.all()]
    assert pressed == ["false", "false", "true", "false"]


def test_list_and_scatter_choose_heads(opened, made):
    values = made[0].reading.values("low_band")
    opened.get_by_role("button", name="List").click()
    first = opened.locator(".nbh-list tbody tr").first
    layer, head = divmod(int(values.argmax()), 4)
    assert first.locator("th").inner_text() == f"{layer}.{head}"
    first.click()
    drawn(opened, layer, head)
    opened.get_by_role("button", name="Scatter").click()
    assert opened.locator(".nbh-dot").count() == 8
    opened.locator('.nbh-dot[data-layer="0"][data-head="2"]').click(force=True)
    drawn(opened, 0, 2)


def test_hover_tells_the_weight_and_marks_the_text(opened, made):
    attn, box = made[0].reading.head(1, 2).attn, opened.locator(".nbh-attention canvas").bounding_box()
    query, key = LENGTH - 8, int(attn[LENGTH - 8, 20:180].argmax()) + 20
    x, y = (box["x"] + box["width"] * (key + 0.5) / LENGTH, box["y"] + box["height"] * (query + 0.5) / LENGTH)
    opened.mouse.move(x, y)
    said = opened.locator(".nbh-part-attention .nbh-readout").inner_text()
    assert said.startswith(f"query {query} ")
    assert f"→ key {key} " in said
    assert float(said.rsplit(": ", 1)[1]) == pytest.approx(attn[query, key], rel=0.08)
    assert opened.locator(".nbh-text .nbh-query").count() == opened.locator(".nbh-text .nbh-key").count() == 1
    opened.locator(".nbh-text span").last.click()
    assert f"Query {LENGTH - 1} “" in opened.locator(".nbh-reads").inner_text()


def test_the_keyboard_is_enough(opened):
    opened.locator(".nbh-heads").focus()
    keys = ("Home", "ArrowRight", "ArrowUp", "End", "ArrowUp")
    for key, place in zip(keys, ((1, 0), (1, 1), (0, 1), (0, 3), (0, 3)), strict=True):
        opened.keyboard.press(key)
        drawn(opened, *place)
    opened.locator(".nbh-attention").focus()
    opened.keyboard.press("Shift+ArrowUp")
    opened.keyboard.press("Enter")
    opened.keyboard.press("+")
    assert opened.locator(".nbh-lock").count() == 1
    assert opened.locator(".nbh-whole").is_enabled()
    opened.keyboard.press("Escape")
    assert opened.locator(".nbh-lock").count() == 0
    reached = set()
    for _ in range(30):
        opened.keyboard.press("Tab")
        reached.add(opened.evaluate("document.activeElement.className.split(' ')[0]"))
    assert {"nbh-text", "nbh-log"} <= reached


def test_hostile_text_stays_text_and_no_character_is_split(opened, made):
    text = made[0].reading.model.tokenizer.decode(made[0].reading.token_ids[0])
    assert opened.locator(".nbh-text").text_content() == text
    assert HOSTILE in text
    assert opened.title() != "taken"
    assert opened.locator(".nbh-text img, .nbh-text script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_part_at_a_time_in_either_theme(opened, shot, scheme):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": 390, "height": 844})
    for tab, part in (("Attention", "attention"), ("Text", "text"), ("Curves", "curves"), ("Heads", "heads")):
        opened.locator(".nbh-tabs-page").get_by_role("button", name=tab).click()
        assert opened.locator(f".nbh-part-{part}").is_visible()
        assert opened.evaluate("document.scrollingElement.scrollWidth") <= 390, tab
    assert not opened.locator(".nbh-part-curves").is_visible()
    assert opened.locator(f'.nbh[data-theme="{scheme}"]').count() == 1
    shot(opened, f"page-phone-{scheme}")


def test_everything_is_on_one_screen_and_every_control_has_a_name(opened):
    opened.set_viewport_size({"width": 1200, "height": 860})
    opened.locator(".nbh-pin").click()
    assert opened.evaluate("document.scrollingElement.scrollHeight") <= 860
    nameless = opened.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button, [role=img], [tabindex]')]
        .filter(e => !(e.labels?.[0]?.textContent.trim() || e.title || e.ariaLabel || e.textContent.trim()))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []


def test_nothing_on_the_page_keeps_a_reader_out(opened, faults_of_access):
    for scheme, part in (("light", "List"), ("dark", "Scatter"), ("light", "Pin")):
        opened.emulate_media(color_scheme=scheme)
        opened.get_by_role("button", name=part, exact=True).click()
        assert faults_of_access(opened) == [], (scheme, part)


@pytest.mark.parametrize("n", [300, 528, 1024, 2048, 4096])
def test_a_sink_of_one_column_is_in_every_row_of_pixels_that_has_it(page, n):
    page.add_script_tag(content=(HERE / "drawing.js").read_text(encoding="utf-8"))
    size = 331
    for key in (0, 137, n - 2):
        found = page.evaluate(SINK, [n, key, size])
        assert sum(map(bool, found)) in (size - key * size // n, size - key * size // n - 1)
        assert max(found) <= -(-size // n) + 1
