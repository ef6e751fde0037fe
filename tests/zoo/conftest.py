import pytest
from tiny_zoo import shrink

from nbhelpers.zoo.text import prepare


@pytest.fixture(scope="session")
def moby_dick(tmp_path_factory):
    """The corpus of the bundled book alone, with the tokenizer of 2,048 tokens that the zoo has."""
    return prepare(["moby-dick"], tmp_path_factory.mktemp("moby-dick"))


@pytest.fixture
def small_yardstick(monkeypatch):
    shrink(monkeypatch)
