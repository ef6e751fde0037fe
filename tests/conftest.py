"""Fixtures that many test modules share."""

# Before torch: the package sets what OpenMP reads then; before other imports of nbformat: it is faster so.
import nbhelpers.collection.notebook_files  # noqa: F401

# isort: split
import atexit
import contextlib
import gc
import subprocess

import matplotlib
import pytest
import torch

matplotlib.use("agg")
gc.disable()  # until all is imported: what stays need not be walked again and again, nor at exit
FIRST = ("notebooks", "zoo", "sweeps", "browser")  # what takes longest: no worker is left with it at the end


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((n for n, name in enumerate(FIRST) if name in item.path.parts), 9))
    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of 300 tokens with <s> and </s>, which sets no special token by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["the whale and the sea and the ship that sails the sea"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory, tiny_tokenizer):
    """A folder as save_pretrained leaves it: a random Llama of 2 layers, 4 query and 2 KV heads of 8."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=300, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
        pad_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        initializer_range=0.3,  # far from uniform attention
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_folder):
    from nbhelpers.inputs.models import load_model

    return load_model(tiny_llama_folder, device="cpu")


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M on the CPU; the first run on a machine converts it, which takes about 20 s."""
    from nbhelpers.inputs.models import load_model

    return load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="module")
def llama():
    from tiny_models import make_model

    return make_model("llama")


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory):
    """The folder of a saved Llama of 6 layers, about 1.7 MB in float32."""
    from tiny_models import save_llama

    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def warm_kernels():
    """Have this process start kernels as forks of one that has imported the libraries."""
    from warm_kernels import use

    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        yield


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of 100 kB, read-only if asked, and returns its folder; skips where it cannot."""

    def mount(*, read_only=False):
        folder = tmp_path / "small"
        folder.mkdir()
        options = f"size=100k,{'ro' if read_only else 'rw'}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
        return folder

    with contextlib.ExitStack() as mounted:
        yield mount


@pytest.fixture
def close_figures():
    """Close the figures of a test: ``pytestmark = pytest.mark.usefixtures("close_figures")``."""
    from matplotlib import pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def ax():
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)
