import json
import threading
import weakref
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import transformers as hf
from PIL import Image

from nbhelpers.inputs.models import LoadedModel, describe
from nbhelpers.inspector import inspect_heads
from nbhelpers.inspector.reading import Stopped, read_text
from nbhelpers.protocol import PAPER

TEXT = "the whale and the sea and the ship that sails the sea, again and again. " * 3
PATIENCE = 300  # s; a busy machine draws an export in a minute
OTHER = "a ship, a ship, a whale, the night and the sea, the sea and the night. " * 3


@pytest.fixture
def inspector(tiny_llama, tmp_path):
    made = inspect_heads(tiny_llama, TEXT, length=64, folder=tmp_path)
    yield made
    made.stop()


def ask(inspector, action, **more):
    inspector._handle_custom_msg({"do": action, **more}, [])


def shown(inspector, metric="low_band"):
    packed = inspector.shown
    at = [entry["name"] for entry in packed["metrics"]].index(metric)
    start, shape = packed["arrays"]["places"]["values"]
    values = np.frombuffer(packed["arrays"]["bytes"], np.float32)[start : start + int(np.prod(shape))]
    return values.reshape(shape)[at]


def same(inspector, reading):
    return (shown(inspector) == reading.values("low_band").astype(np.float32)).all()


def good(inspector):
    return inspector.reading, inspector.selected, inspector.shown, inspector.layer_shown


def test_a_click_in_another_layer_sends_that_layer_and_one_in_this_layer_nothing(inspector):
    before = inspector.layer_shown
    inspector.selected = [0, 3]
    assert inspector.layer_shown is before
    inspector.selected = [1, 0]
    assert inspector.layer_shown["layer"] == 1
    assert inspector.layer_shown["attention"] != before["attention"]
    assert len(inspector.click_seconds) == 1
    inspector.selected = [7, 0]  # no such layer
    assert inspector.selected == (1, 0)
    assert "layers run from 0 to 1" in inspector.status["text"]


def test_a_text_is_measured_and_the_pinned_head_stays_one_of_the_first(inspector, tiny_llama):
    inspector.selected = [1, 2]
    inspector.pinned = inspector.selected
    first = inspector.reading
    told = []
    inspector.observe(lambda change: told.append(change["new"]["text"]), "status")
    ask(inspector, "measure", text=OTHER[:50], model="", length=64)  # superseded at once
    ask(inspector, "measure", text=OTHER, model="", length=64)
    inspector.wait(PATIENCE)
    assert not any(text.startswith("Stopped") for text in told), "the next work has the word"
    assert inspector.reading.text == inspector.asked["text"] == OTHER
    assert same(inspector, read_text(tiny_llama, OTHER, length=64))
    assert f"{inspector.reading.n_tokens} tokens" in inspector.status["text"]
    (_, (reading, place)) = inspector._heads()
    assert (reading is first, place) == (True, (1, 2))
    inspector.pinned = None
    assert len(inspector._heads()) == 1


def test_a_reading_that_is_shown_nowhere_gives_its_memory_back(inspector):
    inspector.pinned = inspector.selected
    inspector.pinned = None
    first = weakref.ref(inspector.reading)
    ask(inspector, "measure", text=OTHER, model="", length=64)
    inspector.wait(PATIENCE)
    assert first() is None


def test_the_protocol_is_measured_anew_and_a_metric_that_is_gone_gives_way(inspector):
    ask(inspector, "protocol", window="boxcar")
    assert inspector.reading.protocol == PAPER.replace(window="boxcar")
    assert same(inspector, inspector.reading.under(PAPER.replace(window="boxcar")))
    ask(inspector, "protocol", scaled_variant="stride")  # this one needs the model
    inspector.wait(PATIENCE)
    reading = inspector.reading
    assert reading.protocol.scaled_variant == reading.observation.scaled_variant == "stride"
    inspector.metric = "sink_mass"
    ask(inspector, "protocol", signal="lag_profile")
    assert inspector.metric in inspector.reading.metrics
    assert inspector.asked["protocol"]["signal"] == "lag_profile"
    ask(inspector, "protocol", window="beauty")
    assert "must be one of 'hann', 'boxcar'" in inspector.status["text"]


def test_ablation_is_told_and_kept_and_a_page_without_widgets_gets_a_picture(inspector):
    inspector.select(1, 1)
    ask(inspector, "ablate")
    inspector.wait(PATIENCE)
    change, said = inspector.reading.ablate(1, 1), inspector.ablation
    assert inspector.ablations[-1].after == change.after
    assert "Without layer 1, head 1" in said
    assert f"{change.before:.4f} to {change.after:.4f} nats per token" in said
    bundle, _ = inspector._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR")  # a PNG in base64
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_export_writes_numbers_and_picture(inspector, tmp_path, monkeypatch):
    inspector.select(0, 2)
    inspector.pinned = inspector.selected
    inspector.select(1, 3)
    ask(inspector, "export")
    inspector.wait(PATIENCE)
    (csv,), (png,) = tmp_path.glob("*.csv"), tmp_path.glob("*.png")
    assert len(list(tmp_path.iterdir())) == 6
    frame = pd.read_csv(csv)
    own = frame[(frame["layer"] == 1) & (frame["head"] == 3)].set_index("metric")["value"]
    assert own.to_dict() == pytest.approx(inspector.reading.numbers(1, 3)["value"].to_dict(), rel=1e-9)
    assert set(zip(frame["layer"], frame["head"], strict=True)) == {(1, 3), (0, 2)}
    assert set(frame["protocol"]) == {PAPER.hash}
    with Image.open(png) as image:
        assert round(image.info["dpi"][0]) == 300
    with np.load(csv.with_suffix(".npz")) as arrays:
        assert (arrays["attn_a"] == inspector.reading.head(1, 3).attn).all()
        assert (arrays["psd_b"] == inspector.reading.head(0, 2).psd).all()
    for suffix, start in ((".svg", b"<?xml"), (".pdf", b"%PDF")):
        assert csv.with_suffix(suffix).read_bytes().startswith(start)
    assert json.loads(csv.with_suffix(".json").read_text()) == inspector.state()
    monkeypatch.setattr("nbhelpers.inspector.export.FIGURES", ())  # drawn once is enough
    ask(inspector, "measure", text=OTHER)
    inspector.wait(PATIENCE)
    inspector.export()
    assert len(list(tmp_path.glob("*.csv"))) == 2, "another text is another file"
    (tmp_path / "taken").write_text("a file")
    inspector.folder = tmp_path / "taken"
    ask(inspector, "export")
    inspector.wait(PATIENCE)
    assert "taken" in inspector.status["text"]


def test_a_state_is_opened_again(inspector, tiny_llama, tmp_path):
    ask(inspector, "protocol", window="boxcar")
    inspector.select(0, 2)
    inspector.pinned = inspector.selected
    inspector.select(1, 3)
    inspector.metric = "induction_score"
    (file := tmp_path / "state.json").write_text(json.dumps(inspector.state()))
    for state in (file, inspector.state()):
        again = inspect_heads(tiny_llama, state=state, progress=False)
        assert again.state() == inspector.state()
        assert again.shown == inspector.shown
    del state["length"]
    with pytest.raises(ValueError, match="state lacks length"):
        inspect_heads(tiny_llama, state=state)
    with pytest.raises(ValueError, match="a model and a text"):
        inspect_heads(tiny_llama)


def test_bad_text_or_model_is_told_and_the_last_good_state_stays(inspector):
    before = good(inspector)
    for wrong, said in (
        ({"text": ""}, "The text is empty"),
        ({"text": "a"}, "has 1 token; at least 24 are needed"),
        ({"model": "./no-such-folder/model.gguf"}, "model.gguf"),
        ({"length": 3}, "has 3 tokens"),
    ):
        ask(inspector, "measure", **wrong)
        inspector.wait(PATIENCE)
        assert said in inspector.status["text"]
        assert "still the last good reading" in inspector.status["text"]
        assert inspector.status["kind"] == "error"
        assert all(now is then for now, then in zip(good(inspector), before, strict=True))
        assert inspector.error is not None
        assert inspector.share == -1


def test_another_model_is_loaded_and_selections_stay_inside_it(inspector, tiny_llama, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=300, pad_token_id=0)).eval()
    tokenizer = tiny_llama.tokenizer
    small = LoadedModel(model, tokenizer, describe(model, name="small", tokenizer=tokenizer))
    monkeypatch.setattr("nbhelpers.inspector.widget.load_model", lambda name: small)
    inspector.select(1, 3)
    ask(inspector, "measure", model="small")
    inspector.wait(PATIENCE)
    assert inspector.reading.shape == (1, 2)
    assert inspector.selected == (0, 1)
    assert inspector.shown["model"] == "small"
    assert shown(inspector).shape == (1, 2)


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
    ask(inspector, "measure")
    assert running.wait(30)
    assert inspector.share == 0
    inspector.selected = [1, 1]  # answered from the last good reading
    assert inspector.layer_shown["layer"] == 1
    ask(inspector, "ablate")
    assert "still at work" in inspector.status["text"].lower()
    ask(inspector, "stop")
    go_on.set()
    inspector.wait(30)
    assert inspector.status["text"].startswith("Stopped")
    assert inspector.reading is before[0]
    assert inspector.share == -1


def test_an_unforeseen_error_is_told_with_its_name(inspector, monkeypatch):
    broken = Mock(side_effect=ZeroDivisionError("by nothing"))
    monkeypatch.setattr("nbhelpers.inspector.widget.read_text", broken)
    ask(inspector, "measure")
    inspector.wait(30)
    assert "unexpected zerodivisionerror: by nothing" in inspector.status["text"].lower()


def test_what_cannot_be_opened_raises(tiny_llama):
    for wrong, error in (({"text": ""}, ValueError), ({"layer": 2}, IndexError), ({"metric": "x"}, KeyError)):
        with pytest.raises(error):
            inspect_heads(tiny_llama, **{"text": TEXT, "length": 64} | wrong)
