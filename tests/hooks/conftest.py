"""Fixtures that the tests of capture share."""

import pytest
from tiny_models import make_model

from nbhelpers.inputs.models import describe


@pytest.fixture(scope="module")
def llama():
    """A random Llama, one for each test module."""
    return make_model("llama")


COUNTED = []  # no variable of `forward` below: what it holds would make it another function to the cache


@pytest.fixture
def forwards(monkeypatch, llama):
    """Counts forward passes of the backbone, without a hook."""
    describe(llama)  # which runs a part of it, once
    original = llama.model.forward

    def forward(*args, **options):
        COUNTED.append(len(options["input_ids"]))
        return original(*args, **options)

    monkeypatch.setattr(llama.model, "forward", forward)
    COUNTED.clear()
    return COUNTED
