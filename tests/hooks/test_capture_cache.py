import sys
import types

import pytest
import torch
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_padding, make_tokens, n_hooks

from nbhelpers.hooks.attention import RECORDER
from nbhelpers.hooks.reductions import KeyProfile, LocalMass, RowMetrics
from nbhelpers.profiles import Profiles
from nbhelpers.protocol import PAPER


class Interrupted(KeyProfile):
    after = None  # on the class: an attribute of the instance would name another result

    def finish(self, state, layout):
        cls = type(self)
        if cls.after is not None:
            cls.after -= 1
            if cls.after < 0:
                raise KeyboardInterrupt
        return super().finish(state, layout)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_an_interrupt_leaves_no_trace(monkeypatch, family):
    model, ids = make_model(family), make_tokens(20)
    hooks, implementation = n_hooks(model), model.config._attn_implementation
    monkeypatch.setattr(Interrupted, "after", 1)  # in the second layer
    with pytest.raises(KeyboardInterrupt):
        capture_quietly(model, ids, Interrupted())
    assert (n_hooks(model), model.config._attn_implementation) == (hooks, implementation)
    assert RECORDER.get(None) is None
    monkeypatch.setattr(Interrupted, "after", None)
    assert_same_profiles(capture_quietly(model, ids, Interrupted()), capture_quietly(model, ids))


def test_an_interrupted_run_keeps_what_is_done_and_resumes(monkeypatch, tmp_path, llama, forwards):
    ids = make_tokens(20, n=5)
    monkeypatch.setattr(Interrupted, "after", 2 * 2 + 1)  # two batches of two layers, and one layer more
    with pytest.raises(KeyboardInterrupt):
        capture_quietly(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert len(forwards) == 3
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    monkeypatch.setattr(Interrupted, "after", None)
    resumed = capture_quietly(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert len(forwards) == 3 + 3
    assert_same_profiles(resumed, capture_quietly(llama, ids, batch_size=1))
    assert resumed.provenance["n_sequences"] == 5
    del forwards[:]
    again = capture_quietly(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert forwards == []
    assert torch.equal(again.key_profile, resumed.key_profile)


def test_files_and_fresh_batches_join(tmp_path, llama):
    # What a file gives back must equal what was never in one: a tuple became a list there.
    ids = make_tokens(20, n=3)
    whole = capture_quietly(llama, ids, LocalMass((5,)), batch_size=1, cache=tmp_path)
    sorted(tmp_path.rglob("*.safetensors"))[2].unlink()
    again = capture_quietly(llama, ids, LocalMass((5,)), batch_size=1, cache=tmp_path)
    assert torch.equal(again.local_mass, whole.local_mass)
    fresh = capture_quietly(llama, ids, LocalMass((5,)), batch_size=1)
    assert again.provenance == whole.provenance == fresh.provenance


def test_damaged_files_and_those_of_others_are_captured_again(tmp_path, llama, forwards):
    ids, ask = make_tokens(20, n=6), {"batch_size": 1, "cache": tmp_path}
    expected = capture_quietly(llama, ids, **ask)
    files = sorted(tmp_path.rglob("*.safetensors"))
    flipped = bytearray(files[0].read_bytes())
    flipped[-100] ^= 1  # among the tensors
    capture_quietly(llama, ids - 1, batch_size=1, cache=tmp_path / "other")
    other = sorted((tmp_path / "other").rglob("*.safetensors"))[5].read_bytes()  # of another text
    cut, next_batch = files[3].read_bytes()[:-7], files[5].read_bytes()
    for file, content in zip(files, (flipped, b"", b"no safetensors", cut, next_batch, other), strict=True):
        file.write_bytes(content)
    del forwards[:]
    with pytest.warns(UserWarning, match="captured again") as warned:
        rebuilt = capture_quietly(llama, ids, **ask)
    assert warned[0].filename == capture_quietly.__code__.co_filename
    said = ["is damaged"] * 4 + ["holds sequences 5 to 6"] * 2
    for warning, file, start in zip(warned, files, said, strict=True):
        assert str(warning.message).startswith(f"{file} {start}")
    assert torch.equal(rebuilt.key_profile, expected.key_profile)
    assert len(forwards) == 6
    capture_quietly(llama, ids, **ask)
    assert len(forwards) == 6


@pytest.mark.parametrize("place", ["a file", "below a file", "full", "read-only"])
def test_capture_goes_on_without_a_cache_that_cannot_be_written(tmp_path, llama, small_disk, place):
    ids, cache = make_tokens(20, n=3), tmp_path / "cache"
    if "file" in place:
        cache.write_text("mine")
        cache = cache if place == "a file" else cache / "deeper"
    else:
        cache = small_disk(read_only=place == "read-only") / "cache"
    if place == "full":
        (cache.parent / "rest").write_bytes(bytes(98_304))  # a page is left
    with pytest.warns(UserWarning, match=r"cannot be written \(.+without its cache\.$") as warned:
        got = capture_quietly(llama, ids, batch_size=1, cache=cache)
    assert len([warning for warning in warned if "cannot be written" in str(warning.message)]) == 1
    assert torch.equal(got.key_profile, capture_quietly(llama, ids, batch_size=1).key_profile)
    for file in cache.rglob("*"):
        assert file.is_dir() or Profiles.load(file), "nothing half-written"


def test_other_batches_find_other_files(tmp_path, llama):
    # The file of a single sequence must not stand in for a whole batch that starts with it.
    ids = make_tokens(20, n=5)
    for batch_size in (1, 2, 5, 3):
        got = capture_quietly(llama, ids, batch_size=batch_size, cache=tmp_path)
        assert got.n_sequences == 5
        assert_same_profiles(got, capture_quietly(llama, ids))


def rolled(weight):
    weight.copy_(weight.roll(8, 0))  # a head further


CHANGES = {
    "weight": lambda model: model.model.layers[1].self_attn.k_proj.weight[0, 0].add_(1e-3),
    "order of heads": lambda model: rolled(model.model.layers[0].self_attn.q_proj.weight),
    "frequency": lambda model: model.model.rotary_emb.inv_freq[1].mul_(0.5),
    "configuration": lambda model: setattr(model.config, "rms_norm_eps", 1e-2),
    # equal sums of every row and column
    "checkerboard": lambda model: model.model.layers[0].self_attn.q_proj.weight[:2, :2].add_(CHECKERBOARD),
    "last bit": lambda model: model.lm_head.weight.view(torch.int32)[0, 0].bitwise_xor_(1),
    "scaling": lambda model: setattr(model.model.layers[1].self_attn, "scaling", 0.5),
    "scaling of the rotation": lambda model: setattr(model.model.rotary_emb, "attention_scaling", 1.5),
    "epsilon": lambda model: setattr(model.model.layers[0].input_layernorm, "variance_epsilon", 0.1),
    "activation": lambda model: setattr(model.model.layers[0].mlp, "act_fn", torch.nn.ReLU().eval()),
    "function": lambda model: setattr(model.model.layers[0].mlp, "forward", lambda x: x * SLOPE[0]),
    "method": lambda model: rebound(model.model.layers[0].mlp),
    "hidden object": lambda model: setattr(model.model.norm, "options", types.SimpleNamespace(gain=[1, 2])),
}
CHECKERBOARD = 0.3 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
SLOPE = (0.3,)


def rebound(mlp):
    plain = type(mlp).forward
    mlp.forward = types.MethodType(lambda self, x: 2 * plain(self, x), mlp)


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_knows_another_model(tmp_path, change):
    model, ids = make_model(), make_tokens(20)
    capture_quietly(model, ids, cache=tmp_path)
    with torch.no_grad():
        CHANGES[change](model)
    got = capture_quietly(model, ids, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(got.key_profile, capture_quietly(model, ids).key_profile)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert", "gemma3_text", "bloom"])
def test_the_cache_finds_an_equal_model(tmp_path, family):
    for model in (first := make_model(family), first, make_model(family)):
        capture_quietly(model, make_tokens(20), cache=tmp_path)
        capture_quietly(model, make_tokens(9))  # leaves nothing that would make it another
        model.name_or_path, model.warnings_issued = "elsewhere", {"once": True}  # nor does bookkeeping
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_knows_patched_code(tmp_path, llama, monkeypatch):
    ids, code = make_tokens(20), sys.modules[type(llama).__module__]
    capture_quietly(llama, ids, cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(code, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
        unrotated = capture_quietly(llama, ids, cache=tmp_path).key_profile
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.allclose(capture_quietly(llama, ids, cache=tmp_path).key_profile, unrotated)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_cache_knows_other_questions(tmp_path, llama):
    ids, mask = make_tokens(20), make_padding(20, "left")
    other_ids = ids.clone()
    other_ids[0, 0] += 1 if ids[0, 0] < 63 else -1
    asked = [
        (llama, ids, "key_profile", {}),
        (llama, other_ids, "key_profile", {}),
        (llama, ids, "last_query", {}),
        (llama, ids, "row_metrics", {}),
        (llama, ids, RowMetrics(PAPER.replace(window="boxcar")), {}),
        (llama, ids, LocalMass((5,)), {}),
        (llama, ids, "key_profile", {"attention_mask": mask}),
        (llama, ids[:, :10], "key_profile", {}),
        (make_model().bfloat16(), ids, "key_profile", {}),
    ]
    for count, (model, tokens, reduction, options) in enumerate(asked, 1):
        got = capture_quietly(model, tokens, reduction, **options, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == count
        assert_same_profiles(got, capture_quietly(model, tokens, reduction, **options))
    # An equal question is no other.
    capture_quietly(llama, ids, RowMetrics(PAPER.replace(window="boxcar")), cache=tmp_path)
    capture_quietly(llama, ids, attention_mask=torch.ones(2, 20), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(asked)


def test_the_cache_refuses_a_model_with_hooks(tmp_path, llama):
    handle = llama.model.layers[0].register_forward_hook(lambda module, args, output: output)
    try:
        with pytest.raises(ValueError, match=r"forward hooks.*without cache="):
            capture_quietly(llama, make_tokens(8), cache=tmp_path)
        capture_quietly(llama, make_tokens(8))  # without a cache hooks are welcome
    finally:
        handle.remove()
