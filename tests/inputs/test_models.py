import dataclasses
import json
import shutil

import pytest
import torch
from device_traffic import needs_gpus
from safetensors.torch import load_file
from tiny_models import make_model
from transformers import LlamaForCausalLM

from nbhelpers.inputs.models import LoadedModel, available_models, describe, load_model, unwrap


def test_folder_gives_its_weights_in_eval_mode_and_is_described(tiny_llama_folder, tiny_llama):
    saved = load_file(tiny_llama_folder / "model.safetensors")
    held = dict(tiny_llama.model.named_parameters())
    assert saved.keys() == held.keys()
    for name, weight in saved.items():
        assert torch.equal(held[name], weight)
    assert not tiny_llama.model.training
    assert tiny_llama.model.config._attn_implementation == "sdpa"
    assert tiny_llama.tokenizer.decode(tiny_llama.tokenizer("the whale")["input_ids"]) == "the whale"
    d = tiny_llama.description
    assert (d.name, d.bos_token, d.max_positions) == (str(tiny_llama_folder), "<s>", 256)
    assert (d.position_encoding, d.rope_theta, d.rotary_fraction, d.causal) == ("rope", 5000.0, 1.0, True)
    attention = 32 * 32 * 2 + 32 * 16 * 2
    assert d.n_parameters == 2 * 300 * 32 + 32 + 2 * (attention + 3 * 32 * 48 + 2 * 32)
    assert d.revision.startswith("folder sampled-sha256:")


def test_random_weights_depend_on_the_seed_alone(tiny_llama_folder, tmp_path):
    shutil.copy(tiny_llama_folder / "config.json", tmp_path)
    key, state = "model.layers.0.self_attn.q_proj.weight", torch.get_rng_state()
    asked = ((tiny_llama_folder, 3), (tiny_llama_folder, 4), (tmp_path, 3))
    first, other, bare = (load_model(f"random:{folder}", device="cpu", seed=seed) for folder, seed in asked)
    assert torch.equal(torch.get_rng_state(), state)
    weight = first.model.get_parameter(key)
    assert torch.equal(weight, bare.model.get_parameter(key)), "the configuration is enough"
    assert not torch.equal(weight, other.model.get_parameter(key))
    assert not torch.equal(weight, load_file(tiny_llama_folder / "model.safetensors")[key])
    assert first.description.revision.startswith("random weights, seed 3, of folder")
    assert first.tokenizer("the whale")["input_ids"] == other.tokenizer("the whale")["input_ids"]
    assert not first.model.training
    assert bare.tokenizer is bare.description.bos_token is None


DTYPES = {None: "float32", torch.float64: "float64", "torch.float16": "float16", "auto": "bfloat16"}


@pytest.mark.parametrize(("asked", "given"), DTYPES.items())
def test_dtype(tiny_llama, tmp_path, asked, given):
    stored = LlamaForCausalLM(tiny_llama.model.config).to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype=asked)
    fresh = load_model(f"random:{tmp_path}", device="cpu", dtype=asked)
    assert loaded.model.dtype == fresh.model.dtype == getattr(torch, given)
    assert loaded.description.dtype == given


@needs_gpus()
def test_the_same_model_on_a_gpu(tiny_llama_folder, tiny_llama):
    state = torch.cuda.get_rng_state()
    on_gpu = load_model(tiny_llama_folder)
    assert on_gpu.model.device.type == "cuda"
    fresh = [load_model(f"random:{tiny_llama_folder}", device=device, seed=5) for device in ("cpu", "cuda")]
    for cpu, gpu in zip(*(each.model.parameters() for each in fresh), strict=True):
        assert torch.equal(cpu, gpu.cpu())
    for cpu, gpu in zip(tiny_llama.model.parameters(), on_gpu.model.parameters(), strict=True):
        assert torch.equal(cpu, gpu.cpu())
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_available_models_say_how_to_get_what_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("NBHELPERS_CACHE", str(tmp_path))
    names = ["smollm2-135m", "minilm-l6", "gemma3-270m", "qwen2.5-coder-0.5b"]
    listed = available_models()
    packaged = [name for name in listed if not name.startswith("zoo:")]
    assert packaged == names + [f"random:{name}" for name in names]
    away = [name for name, about in listed.items() if about.endswith(f"nbhelpers models get {name}")]
    assert away == names[2:]


@torch.no_grad()
def test_smollm2_is_the_model_of_its_card(smollm2):
    assert isinstance(smollm2, LoadedModel)
    d = smollm2.description
    assert (d.family, d.n_layers, d.n_heads, d.n_kv_heads, d.head_dim) == ("llama", 30, 9, 3, 64)
    assert (d.rope_theta, d.rotary_fraction, d.max_positions) == (100000.0, 1.0, 8192)
    assert d.n_parameters == 134515008
    prompt = smollm2.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    likeliest = smollm2.model(prompt).logits[0, -1].argmax()
    assert smollm2.tokenizer.decode(likeliest).strip() == "Paris"


@torch.no_grad()
def test_minilm_tells_close_sentences_from_distant_ones():
    loaded = load_model("minilm-l6", device="cpu")
    d = loaded.description
    assert (d.family, d.n_layers, d.n_heads, d.head_dim) == ("bert", 6, 12, 32)
    assert (d.position_encoding, d.causal, d.bos_token) == ("learned", False, "[CLS]")
    assert (d.max_positions, d.rope_theta) == (512, None)

    def embed(sentence):
        token_ids = loaded.tokenizer(sentence, return_tensors="pt")
        return loaded.model(**token_ids).last_hidden_state.mean(1)  # (1, width)

    whale, other, bank = map(embed, ("A whale swims.", "The big fish is swimming.", "Banks raise rates."))
    assert torch.cosine_similarity(whale, other) > torch.cosine_similarity(whale, bank) + 0.3


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_of_each_kind_get_their_class(tmp_path, family):
    saved = make_model(family)
    saved = saved.base_model if family == "bert" else saved
    saved.save_pretrained(tmp_path)
    assert type(load_model(tmp_path, device="cpu").model) is type(saved)


def test_unwrap_and_describe_take_both_forms(tiny_llama):
    assert unwrap(tiny_llama) is unwrap(tiny_llama.model) is tiny_llama.model
    assert describe(tiny_llama) is tiny_llama.description
    unknown = {"name": "", "revision": None, "bos_token": None}  # to a bare model
    bare, loaded = (dataclasses.replace(describe(m), **unknown) for m in (tiny_llama.model, tiny_llama))
    assert bare == loaded
    for wrong, said in (("smollm2-135m", r"load_model\('smollm2-135m'\)"), (torch.nn.Linear(2, 2), "Linear")):
        with pytest.raises(TypeError, match=said):
            unwrap(wrong)


def test_refusals(tiny_llama_folder, tmp_path, monkeypatch):
    odd = shutil.copytree(tiny_llama_folder, tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"model_type": "wavelet_net", "auto_map": {}}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, options, error, said in (
        (odd, {}, ValueError, "'wavelet_net' of .* not known to transformers .*own code"),
        (tiny_llama_folder, {"revision": "main"}, ValueError, "revision='main' was given"),
        (tiny_llama_folder, {"dtype": torch.int64}, ValueError, "unknown dtype"),
        (tiny_llama_folder, {"device": "gpu"}, ValueError, "unknown device 'gpu'"),
        (tiny_llama_folder, {"device": "cuda"}, RuntimeError, "sees 0 CUDA GPUs"),
    ):
        with pytest.raises(error, match=said):
            load_model(name, **options)
    assert load_model(tiny_llama_folder).model.device.type == "cpu"
