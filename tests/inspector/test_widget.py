"""What the controls do, without a browser: setting a value or clicking fires the callbacks here and now."""

import re
import threading
from unittest.mock import Mock

import pandas as pd
import pytest
import transformers as hf

from nbhelpers.inputs.models import LoadedModel, describe
from nbhelpers.inspector import inspect_heads
from nbhelpers.inspector.jobs import Worker
from nbhelpers.inspector.map import map_colours
from nbhelpers.inspector.reading import Stopped, read_text
from nbhelpers.protocol import PAPER

TEXT = "the whale and the sea and the ship that sails the sea, again and again. " * 3
OTHER = "a ship, a ship, a whale, the night and the sea, the sea and the night. " * 3


@pytest.fixture
def inspector(tiny_llama, tmp_path):
    made = inspect_heads(tiny_llama, TEXT, length=64, folder=tmp_path)
    yield made
    made.stop()


def status(inspector):
    return re.sub("<[^>]+>", "", inspector.controls.status.value)


def shown(inspector, column=0):
    rows = re.findall(r'data-metric="([\w.]+)">.*?</th>(.*?)</tr>', inspector.controls.numbers.value)
    return {metric: re.findall(r"<td>(.*?)</td>", cells)[column] for metric, cells in rows}


def wanted(reading, layer, head):
    return {name: f"{value:.4g}" for name, value in reading.numbers(layer, head)["value"].items()}


def good(inspector):
    """Everything that an error must leave as it was."""
    c = inspector.controls
    return inspector.reading, inspector.selected, c.numbers.value, c.attention.value, c.map.colours


def test_a_click_shows_that_head_and_pin_a_second(inspector):
    c = inspector.controls
    before = c.attention.value
    c.map.selected = [0, 3]
    assert 'alt="Attention of layer 0, head 3' in c.attention.value
    assert inspector.selected == (0, 3)
    assert c.attention.value != before
    assert len(inspector.click_seconds) == 1
    c.pin.click()
    c.map.selected = [1, 0]
    assert shown(inspector) == wanted(inspector.reading, 1, 0)
    assert shown(inspector, column=2) == wanted(inspector.reading, 0, 3)
    assert c.map.pinned == [0, 3]
    assert c.other.layout.display == ""
    c.unpin.click()
    assert inspector.pinned is None
    assert c.other.layout.display == "none"
    assert shown(inspector) == wanted(inspector.reading, 1, 0)
    assert c.map.pinned == []


def test_metric_colours_the_map_and_zoom_redraws_the_attention(inspector):
    c, reading = inspector.controls, inspector.reading
    c.metric.value = "positional_entropy"
    values = reading.values("positional_entropy")
    assert c.map.colours == map_colours(values)[0]
    assert c.map.values[1][3] == values[1, 3]
    assert c.map.null_value == reading.null_value("positional_entropy")
    assert c.map.label == "positional entropy (nats)"
    c.map.show(reading.under(reading.protocol.replace(log_base=2)), "positional_entropy")
    assert c.map.label == "positional entropy (bits)"
    c.map.show(reading, "positional_entropy")
    assert c.map.group_edges == [2]  # 4 query heads share 2 KV heads
    before = c.attention.value
    c.span.value = (5, 20)
    assert c.attention.value != before


def test_next_and_previous_walk_through_the_heads_of_a_band(inspector):
    c = inspector.controls
    for band in ("low", "mid", "high"):
        c.band.value = band
        heads = inspector.reading.heads_of_band(f"{band}_band")
        if not heads:
            c.next.click()
            assert "No head has most of its power" in status(inspector)
            continue
        inspector.select(*heads[0])
        visited = [inspector.selected]
        for _ in heads[1:]:
            c.next.click()
            visited.append(inspector.selected)
        assert visited == heads
        c.next.click()
        assert inspector.selected == heads[0]
        c.previous.click()
        assert inspector.selected == heads[-1]


def test_typed_text_is_read_after_a_pause(inspector, tiny_llama):
    inspector.controls.text.value = OTHER[:50]  # superseded at once
    inspector.controls.text.value = OTHER
    inspector.wait(60)
    fresh = read_text(tiny_llama, OTHER, length=64)
    assert inspector.reading.text == OTHER
    assert shown(inspector) == wanted(fresh, 0, 0)
    assert f"{fresh.n_tokens} tokens" in status(inspector)


def test_the_protocol_is_measured_anew_and_a_metric_that_is_gone_gives_way(inspector):
    c = inspector.controls
    c.protocol["window"].value = "boxcar"
    assert inspector.reading.protocol == PAPER.replace(window="boxcar")
    assert shown(inspector) == wanted(inspector.reading.under(PAPER.replace(window="boxcar")), 0, 0)
    c.protocol["scaled_variant"].value = "stride"  # this one needs the model
    inspector.wait(60)
    assert inspector.reading.protocol.scaled_variant == "stride"
    assert inspector.reading.observation.scaled_variant == "stride"
    c.metric.value = "sink_mass"
    c.protocol["signal"].value = "lag_profile"
    assert c.metric.value in inspector.reading.metrics


def test_ablation_is_told_and_kept_and_a_page_without_widgets_gets_a_picture(inspector):
    inspector.select(1, 1)
    inspector.controls.ablate.click()
    inspector.wait(60)
    change, said = inspector.reading.ablate(1, 1), inspector.controls.ablation.value
    assert inspector.ablations[-1].after == change.after
    assert "Without layer 1, head 1" in said
    assert f"{change.before:.4f} to {change.after:.4f} nats per token" in said
    bundle = inspector._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR")  # a PNG in base64
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_export_writes_numbers_and_picture(inspector, tmp_path):
    inspector.select(0, 2)
    inspector.pin()
    inspector.select(1, 3)
    inspector.controls.export.click()
    (csv,), (png,) = tmp_path.glob("*.csv"), tmp_path.glob("*.png")
    frame = pd.read_csv(csv)
    own = frame[(frame["layer"] == 1) & (frame["head"] == 3)].set_index("metric")["value"]
    assert own.to_dict() == pytest.approx(inspector.reading.numbers(1, 3)["value"].to_dict(), rel=1e-9)
    assert set(zip(frame["layer"], frame["head"], strict=True)) == {(1, 3), (0, 2)}
    assert set(frame["protocol"]) == {PAPER.hash}
    assert png.read_bytes().startswith(b"\x89PNG")
    assert csv.name in inspector.controls.links.value
    assert "data:text/csv;base64," in inspector.controls.links.value
    (tmp_path / "taken").write_text("a file")
    for folder, said in ((str(tmp_path / "taken"), "taken"), ("  ", "no folder is given")):
        inspector.controls.folder.value = folder
        inspector.controls.export.click()
        assert said in status(inspector).lower()


def test_bad_text_or_model_is_told_and_the_last_good_state_stays(inspector):
    c, before = inspector.controls, good(inspector)
    for control, value, said in (
        (c.text, "", "The text is empty"),
        (c.text, "a", "has 1 token; at least 24 are needed"),
        (c.model, "./no-such-folder/model.gguf", "model.gguf"),
    ):
        control.value = value
        inspector.wait(60)
        assert said in status(inspector)
        assert "still the last good reading" in status(inspector)
        assert good(inspector) == before
        assert inspector.error is not None
        assert c.stop.disabled


def test_another_model_is_loaded_and_selections_stay_inside_it(inspector, tiny_llama, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=300, pad_token_id=0)).eval()
    tokenizer = tiny_llama.tokenizer
    small = LoadedModel(model, tokenizer, describe(model, name="small", tokenizer=tokenizer))
    monkeypatch.setattr("nbhelpers.inspector.widget.load_model", lambda name: small)
    inspector.select(1, 3)
    inspector.controls.model.value = "small"
    inspector.wait(60)
    assert inspector.reading.shape == (1, 2)
    assert inspector.selected == (0, 1)
    assert shown(inspector) == wanted(inspector.reading, 0, 1)


def test_stop_keeps_what_was_shown_and_clicks_are_answered_meanwhile(inspector, monkeypatch):
    before = good(inspector)
    running, go_on = threading.Event(), threading.Event()

    def slow(*args, stop, **options):
        running.set()
        assert go_on.wait(30)
        if stop():
            raise Stopped
        raise AssertionError("stop was not heard")

    monkeypatch.setattr("nbhelpers.inspector.widget.read_text", slow)
    inspector.controls.measure.click()
    assert running.wait(30)
    assert not inspector.controls.stop.disabled
    inspector.controls.map.selected = [1, 1]  # answered from the last good reading
    assert shown(inspector) == wanted(before[0], 1, 1)
    inspector.controls.ablate.click()
    assert "still at work" in status(inspector).lower()
    inspector.controls.stop.click()
    go_on.set()
    inspector.wait(30)
    assert status(inspector).startswith("Stopped")
    assert inspector.reading is before[0]
    assert inspector.controls.stop.disabled


def test_an_unforeseen_error_is_told_with_its_name(inspector, monkeypatch):
    broken = Mock(side_effect=ZeroDivisionError("by nothing"))
    monkeypatch.setattr("nbhelpers.inspector.widget.read_text", broken)
    inspector.controls.measure.click()
    inspector.wait(30)
    assert "unexpected zerodivisionerror: by nothing" in status(inspector).lower()


def test_what_cannot_be_opened_raises(tiny_llama):
    for text, options, error in (
        ("", {}, ValueError),
        (TEXT, {"layer": 2}, IndexError),
        (TEXT, {"metric": "beauty"}, KeyError),
    ):
        with pytest.raises(error):
            inspect_heads(tiny_llama, text, length=64, **options)


def test_new_work_supersedes_what_runs():
    ends, first_runs, go_on = [], threading.Event(), threading.Event()
    worker = Worker(on_progress=lambda share: None, on_end=lambda error, superseded: ends.append(superseded))

    def first(progress, stop):
        first_runs.set()
        assert go_on.wait(30)

    worker.start(first)
    assert first_runs.wait(30)
    assert worker.busy
    worker.start(lambda progress, stop: None)
    go_on.set()
    worker.wait(30)
    assert ends == [True, False]
    assert not worker.busy
