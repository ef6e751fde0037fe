"""A model that is at work in one thread is not run by another: its hooks would meet the wrong pass."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from tiny_models import make_model

from nbhelpers.inputs.models import LoadedModel, describe
from nbhelpers.inspector import inspect_heads
from nbhelpers.inspector.reading import ModelBusy, read_text, watched

TEXT = "the whale and the sea and the ship that sails the sea, again and again. " * 3
OTHER = "a ship, a ship, a whale, the night and the sea, the sea and the night. " * 3


@pytest.fixture
def bloom(tiny_llama):
    """A family whose attention is had by running the model again (route "module")."""
    model, tokenizer = make_model("bloom", layers=3, vocab_size=300), tiny_llama.tokenizer
    return LoadedModel(model, tokenizer, describe(model, name="tiny-bloom", tokenizer=tokenizer))


class Held:
    """Work in a thread of its own that stands still at its first progress until its end is asked for."""

    def __init__(self, work):
        self.running, self.go_on = threading.Event(), threading.Event()
        self.work = ThreadPoolExecutor(1).submit(self._run, work)
        assert self.running.wait(60)

    def _run(self, work):
        self.thread = threading.get_ident()
        return work(self._progress)

    def _progress(self, share):
        if threading.get_ident() == self.thread:
            self.running.set()
            assert self.go_on.wait(60)

    def end(self):
        self.go_on.set()
        return self.work.result(60)


def seen_beside(held, reading, layer):
    click = ThreadPoolExecutor(1).submit(reading.head, layer, 0)
    assert wait([click], 1).not_done, "it did not wait"
    held.end()
    return click.result(60).attn


def test_a_head_is_refused_or_waits_while_another_text_is_read(bloom):
    alone = read_text(bloom, OTHER, length=64)
    reading = read_text(bloom, TEXT, length=64)
    wanted = reading.head(2, 0).attn
    reading.head(0, 0)  # so that layer 2 must be formed again
    held = Held(lambda progress: read_text(bloom, OTHER, length=64, progress=progress))
    with pytest.raises(ModelBusy, match=r"bloom models must run again for the attention of layer 2.*Stop"):
        reading.head(2, 0, wait=False)
    assert reading.head(0, 1, wait=False).attn.shape == wanted.shape  # of the layer at hand
    assert (seen_beside(held, reading, 2) == wanted).all()
    for metric in alone.metrics:
        assert (held.end().values(metric) == alone.values(metric)).all(), metric


def test_a_head_is_not_read_from_a_model_that_lacks_another(bloom):
    reading = read_text(bloom, TEXT, length=64)
    wanted, change = reading.head(2, 0).attn, reading.ablate(0, 1).change
    reading.head(0, 0)

    def ablate(progress):
        with watched(bloom, progress=progress):
            return reading.ablate(0, 1)

    held = Held(ablate)
    assert (seen_beside(held, reading, 2) == wanted).all()
    assert held.end().change == change


def test_a_click_beside_work_is_refused_in_words_and_the_last_head_stays(bloom, tmp_path):
    inspector = inspect_heads(bloom, TEXT, length=64, folder=tmp_path, progress=False)
    held = Held(lambda progress: read_text(bloom, OTHER, length=64, progress=progress))
    inspector.selected = [2, 1]
    assert "model is at work" in inspector.status["text"]
    assert (inspector.selected, inspector.layer_shown["layer"]) == ((0, 0), 0)
    inspector.selected = [0, 2]  # of the layer that is at hand
    assert inspector.selected == (0, 2)
    held.end()
    inspector.selected = [2, 1]
    assert inspector.layer_shown["layer"] == 2
    inspector.stop()


def test_families_whose_queries_and_keys_are_kept_need_not_wait(tiny_llama):
    reading = read_text(tiny_llama, TEXT, length=64)
    wanted = [reading.head(layer, 0).attn for layer in (0, 1)]
    held = Held(lambda progress: read_text(tiny_llama, OTHER, length=64, progress=progress))
    for layer in (1, 0):
        assert (reading.head(layer, 0, wait=False).attn == wanted[layer]).all()
    held.end()
