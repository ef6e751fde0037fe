import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_tokens

from nbhelpers.inputs import files as model_files
from nbhelpers.inputs.models import load_model

IDS = make_tokens(24)


def assert_loads(name, model, **options):
    loaded = load_model(name, device="cpu", **options)
    assert_same_profiles(capture_quietly(loaded, IDS), capture_quietly(model, IDS), 0.0)
    return loaded


def test_sharded_weights_are_the_whole_model_and_a_bad_shard_is_told(tmp_path, tiny_llama):
    sharded = tmp_path / "sharded"
    tiny_llama.model.save_pretrained(sharded, max_shard_size="30KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    loaded = assert_loads(sharded, tiny_llama)
    assert loaded.description.n_parameters == tiny_llama.description.n_parameters
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged.*download it again"):
        load_model(sharded, device="cpu")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {shard.name}.*index.*download it again"):
        load_model(sharded, device="cpu")


def test_tied_weights_are_one_tensor_and_half_precision_ones_are_widened(tmp_path):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied", max_shard_size="30KB")
    index = json.loads((tmp_path / "tied" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    loaded = assert_loads(tmp_path / "tied", model)  # no warning of weights drawn at random
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    whole = sum(weight.numel() for weight in make_model().parameters())
    assert loaded.description.n_parameters == whole - 64 * 32
    half, rounded = make_model().bfloat16(), make_model()
    half.save_pretrained(tmp_path / "half")
    rounded.load_state_dict(half.state_dict())
    assert assert_loads(tmp_path / "half", rounded).model.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_random_control_in_half_precision_keeps_the_frequencies_of_rope(tiny_llama_folder, dtype):
    control = load_model(f"random:{tiny_llama_folder}", device="cpu", dtype=dtype)
    loaded = load_model(tiny_llama_folder, device="cpu", dtype=dtype)
    frequencies = [each.model.get_buffer("model.rotary_emb.inv_freq") for each in (control, loaded)]
    assert {each.dtype for each in frequencies} == {torch.float32}
    assert torch.equal(*frequencies)
    assert {p.dtype for p in control.model.parameters()} == {getattr(torch, dtype)}


def test_no_pickle_is_opened_whatever_names_it(tmp_path, tiny_llama_folder, tiny_llama, monkeypatch):
    """Each file would write `ran` if it were unpickled."""

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    def model(name, weight_map=None, index="model.safetensors.index.json", **config):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(tiny_llama.model.config.to_dict() | config))
        for file in ("pytorch_model.bin", "adapter_model.bin", "model-00001-of-00002.bin"):
            torch.save({"model.norm.weight": Trap()}, folder / file)
        if weight_map:
            (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    whole = model("whole", transformers_weights="adapter_model.bin")
    shutil.copy(tiny_llama_folder / "model.safetensors", whole)
    named = {"a": "model-00001-of-00002.bin"}
    cut = model("cut", named)
    (cut / "model.safetensors.index.json").write_text("{")
    adapter = model("adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    for folder, said in (
        (model("bare"), "holds only adapter_model.bin, .*can run any code"),
        (model("index", named), r"index.json of .* names model-00001-of-00002.bin: .*can run any code"),
        (model("old", named, index="pytorch_model.bin.index.json"), "holds only .*can run any code"),
        (adapter, "holds only adapter_model.bin, .*can run any code"),
        (whole, "adapter_model.bin of .* names adapter_model.bin: .*can run any code"),
        (cut, "the index .* is damaged"),
    ):
        with pytest.raises(ValueError, match=said):
            load_model(folder, device="cpu")
    # a repository of the Hub, whose index is read before anything else is downloaded
    answer = "c0ffee", ("config.json", "model.safetensors.index.json", *named.values())
    monkeypatch.setattr(model_files, "ask_hub", lambda name, **options: answer)
    monkeypatch.setattr("transformers.utils.cached_file", lambda path, file, **o: tmp_path / "index" / file)
    with pytest.raises(ValueError, match=r"names model-00001-of-00002.bin"):
        model_files.require_safetensors(model_files.locate("a/b"), None, "a/b")
    assert not (tmp_path / "ran").exists()


def test_an_index_or_pickle_that_is_not_used_is_not_judged(tmp_path, tiny_llama_folder, tiny_llama):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "whole")
    for left_over in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (folder / left_over).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.bin"}}))
        assert_loads(folder, tiny_llama)
    (folder / "pytorch_model.bin").write_bytes(b"nonsense")
    assert_loads(folder, tiny_llama)


def resaved(folder, target, change, **config):
    shutil.copytree(folder, target)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    held = json.loads((target / "config.json").read_text())
    held = {key: value for key, value in (held | config).items() if value is not None}
    (target / "config.json").write_text(json.dumps(held))
    return target


def test_tensors_that_would_be_made_up_or_dropped_are_refused(tmp_path, tiny_llama_folder, capfd):
    q, k = (f"model.layers.1.self_attn.{each}_proj.weight" for each in "qk")
    zeros = torch.zeros(32)
    for i, (change, config, said) in enumerate((
        (lambda w: w.pop(q), {}, rf"of its 21 tensors 1 are not in the file and would be .* \({q}\)"),
        (lambda w: w.update({k: w[k][:8]}), {}, rf"another shape .*{k} \(8, 32\) for \(16, 32\)"),
        (lambda w: w.update({f"{q[:-7]}.scale": zeros}), {}, r"1 tensors .* no place in it .*q_proj.scale"),
        (lambda w: w.update(more=zeros), {}, r"no place in it \(more\)"),
        (lambda w: None, {"num_hidden_layers": 1}, r"9 tensors .* no place in it \(model.layers.1"),
        (lambda w: None, {"num_hidden_layers": 3}, r"of its 30 tensors 9 are not .*model.layers.2"),
        (lambda w: w.pop("lm_head.weight"), {}, r"1 are not in the file .*\(lm_head.weight\)"),
        (lambda w: None, {"num_attention_heads": None}, "does not say num_attention_heads; .* take 32"),
    )):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            load_model(resaved(tiny_llama_folder, tmp_path / str(i), change, **config), device="cpu")
    assert "REPORT" not in capfd.readouterr().err
    with pytest.warns(UserWarning, match="does not say rope_theta, .* would take 10000") as said:
        load_model(resaved(tiny_llama_folder, tmp_path / "theta", lambda w: None, rope_parameters=None))
    assert said[0].filename == __file__


def test_heads_on_top_and_poolers_are_no_matter(tmp_path, tiny_llama):
    from transformers import LlamaForSequenceClassification, LlamaModel

    config = tiny_llama.model.config
    for kind in (LlamaForSequenceClassification, LlamaModel):  # neither has the head of a language model
        kind(config).save_pretrained(tmp_path / kind.__name__)
        loaded = load_model(tmp_path / kind.__name__, device="cpu")
        assert type(loaded.model) is kind
    masked = make_model("bert")  # without a pooler, with a head
    masked.save_pretrained(tmp_path / "bert")
    assert assert_loads(tmp_path / "bert", masked).model.pooler is None


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path, tiny_llama_folder):
    folder = resaved(tiny_llama_folder, tmp_path / "model", lambda w: None)
    (folder / "tokenizer.json").unlink()
    for kind in ("LlamaTokenizer", "GPT2Tokenizer", "BertTokenizer", "T5Tokenizer", "TokenizersBackend"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        with pytest.raises(ValueError, match=r"not whole, there is tokenizer_config.json: .*take these away"):
            load_model(folder, device="cpu")
    (folder / "tokenizer_config.json").unlink()
    assert load_model(folder, device="cpu").tokenizer is None


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
    monkeypatch.setattr(model_files, "ask_hub", Mock(side_effect=ConnectionError("could not be reached")))
    return models


@pytest.mark.parametrize(("revision", "commit"), [(None, "0"), ("step0", "1"), ("step1000", "2")])
def test_a_revision_is_found_in_the_cache_without_a_network(pythia, revision, commit):
    loaded = assert_loads("EleutherAI/pythia-tiny", pythia[revision or "main"], revision=revision)
    assert loaded.description.revision == commit * 40


def test_a_revision_that_was_never_downloaded_and_a_download_that_was_cut_off(pythia, tmp_path):
    with pytest.raises(ConnectionError, match=r"'EleutherAI/pythia-tiny' at revision 'step512'.*no earlier"):
        load_model("EleutherAI/pythia-tiny", revision="step512")
    snapshot = tmp_path / "hub" / "models--EleutherAI--pythia-tiny" / "snapshots" / ("0" * 40)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds a config.json but no weights"):
        load_model("EleutherAI/pythia-tiny")
