"""Every form in which a model comes, saved here as the Hub would give it, with the same attention."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_tokens
from transformers import LlamaForCausalLM

from nbhelpers.inputs import files as model_files
from nbhelpers.inputs.hub import HubAnswer
from nbhelpers.inputs.models import load_model

IDS = make_tokens(24)


@pytest.fixture
def sharded(tmp_path, tiny_llama):
    """A folder with the tiny Llama in several files and their index."""
    tiny_llama.model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    return tmp_path / "sharded"


def test_sharded_weights_are_the_whole_model(sharded, tiny_llama):
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    loaded = load_model(sharded, device="cpu")
    assert_same_profiles(capture_quietly(loaded, IDS), capture_quietly(tiny_llama, IDS), 0.0)
    assert loaded.description.n_parameters == tiny_llama.description.n_parameters


def test_a_shard_that_is_cut_short_or_missing_is_told(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged.*download it again"):
        load_model(sharded, device="cpu")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {shard.name}.*index.*download it again"):
        load_model(sharded, device="cpu")


def test_tied_weights_are_one_tensor(tmp_path, tiny_llama):
    config = tiny_llama.model.config.to_dict() | {"tie_word_embeddings": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(type(tiny_llama.model.config).from_dict(config)).eval()
    model.save_pretrained(tmp_path / "tied", max_shard_size="30KB")
    index = json.loads((tmp_path / "tied" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    loaded = load_model(tmp_path / "tied", device="cpu")  # no warning of weights drawn at random
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert loaded.description.n_parameters == tiny_llama.description.n_parameters - 300 * 32
    assert_same_profiles(capture_quietly(loaded, IDS), capture_quietly(model, IDS), 0.0)


def test_half_precision_weights_give_the_attention_of_their_rounding(tmp_path, tiny_llama):
    rounded = LlamaForCausalLM(tiny_llama.model.config).eval()
    weights = {name: weight.bfloat16() for name, weight in tiny_llama.model.state_dict().items()}
    rounded.load_state_dict(weights)
    LlamaForCausalLM.from_pretrained(
        None, config=tiny_llama.model.config, state_dict=weights, dtype=torch.bfloat16
    ).save_pretrained(tmp_path / "half")
    loaded = load_model(tmp_path / "half", device="cpu")
    assert loaded.model.dtype == torch.float32
    assert_same_profiles(capture_quietly(loaded, IDS), capture_quietly(rounded, IDS), 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_random_control_in_half_precision_keeps_the_frequencies_of_rope(tiny_llama_folder, dtype):
    control = load_model(f"random:{tiny_llama_folder}", device="cpu", dtype=dtype)
    loaded = load_model(tiny_llama_folder, device="cpu", dtype=dtype)
    frequencies = [each.model.get_buffer("model.rotary_emb.inv_freq") for each in (control, loaded)]
    assert {each.dtype for each in frequencies} == {torch.float32}
    assert torch.equal(*frequencies)
    assert {p.dtype for p in control.model.parameters()} == {getattr(torch, dtype)}


def test_pickled_weights_are_refused_and_never_opened(tmp_path, tiny_llama):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "model").mkdir()
    tiny_llama.model.config.save_pretrained(tmp_path / "model")
    torch.save({"model.norm.weight": Trap()}, tmp_path / "model" / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ValueError, match=r"holds only pytorch_model.*can run any code"):
        load_model(tmp_path / "model", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_safetensors_are_preferred_to_pickles(tmp_path, tiny_llama_folder, tiny_llama):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"nonsense")
    loaded = load_model(folder, device="cpu")
    assert_same_profiles(capture_quietly(loaded, IDS), capture_quietly(tiny_llama, IDS), 0.0)


# A Hub repository as an earlier download leaves it: refs name commits, snapshots hold a folder for each.


@pytest.fixture
def pythia(tmp_path, monkeypatch):
    """EleutherAI/pythia-tiny in the Hub's cache with three branches, and no network; the models by branch."""
    repository = tmp_path / "hub" / "models--EleutherAI--pythia-tiny"
    models = {}
    for seed, branch in enumerate(("main", "step0", "step1000")):
        commit = str(seed) * 40
        models[branch] = make_model("gpt_neox", seed=seed)
        models[branch].save_pretrained(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(model_files, "ask_hub", lambda name, **o: HubAnswer(False, reason="ConnectError"))
    return models


@pytest.mark.parametrize(("revision", "commit"), [(None, "0"), ("step0", "1"), ("step1000", "2")])
def test_a_revision_is_found_in_the_cache_without_a_network(pythia, revision, commit):
    loaded = load_model("EleutherAI/pythia-tiny", revision=revision, device="cpu")
    expected = pythia[revision or "main"]
    assert loaded.description.revision == commit * 40
    assert_same_profiles(capture_quietly(loaded, IDS), capture_quietly(expected, IDS), 0.0)


def test_a_revision_that_was_never_downloaded_and_a_download_that_was_cut_off(pythia, tmp_path):
    with pytest.raises(ConnectionError, match=r"'EleutherAI/pythia-tiny' at revision 'step512'.*no earlier"):
        load_model("EleutherAI/pythia-tiny", revision="step512")
    snapshot = tmp_path / "hub" / "models--EleutherAI--pythia-tiny" / "snapshots" / ("0" * 40)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds a config.json but no weights"):
        load_model("EleutherAI/pythia-tiny")
