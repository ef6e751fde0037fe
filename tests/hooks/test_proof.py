import contextlib
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import families_walk as walk
import pytest
import torch
from tiny_models import assert_same_profiles, capture_quietly, make_model, make_padding, make_tokens

from nbhelpers.hooks import attention, exchange, proof
from nbhelpers.hooks.ablation import output_projection
from nbhelpers.hooks.attention import Recorder, innermost_attention
from nbhelpers.hooks.recompute import cache_attention
from nbhelpers.profiles import Profiles


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("mask_rows", [1, 8])
def test_the_difference_is_that_of_rows_that_see_a_key(mask_rows, boolean):
    generator = torch.Generator().manual_seed(0)
    attn = torch.rand(2, 4, 3, 6, generator=generator).softmax(-1)  # (batch, head, row, key): rows 5 to 7
    value = torch.randn(2, 2, 8, 5, generator=generator)  # two KV heads, keys 6 and 7 without attention
    output = torch.zeros(2, 8, 4, 5)
    output[:, 5:] = torch.einsum("bhqk,bhkw->bqhw", attn, value.repeat_interleave(2, 1)[:, :, :6])
    seen = torch.ones(2, 1, mask_rows, 8, dtype=torch.bool)
    assert proof.difference(attn, 5, value, seen, output) < 1e-6
    output[1, 6] *= 1.5  # a fault in one row: .5 of 1.5
    seen[1, :, 6 if mask_rows == 8 else 0] = False
    mask = seen if boolean else torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    assert proof.difference(attn, 5, value, mask, output) < 1e-6
    found = proof.difference(attn, 5, value, None, output)
    assert 0.1 < found <= 1 / 3 + 1e-6
    assert proof.difference(attn, 5, value, mask.roll(1, 0), output) == found


def faulty(fault):
    def score_blocks(module, query, key, mask, rows, **options):
        return original(module, query, key, *fault(mask, rows, options), **options)

    original = attention.score_blocks
    return score_blocks


def without(name):
    def ignore(mask, rows, options):
        del options[name]
        return mask, rows

    return ignore


def scaled(mask, rows, options):
    options["scaling"] *= 1.05
    return mask, rows


FAULTS = {
    "mask swapped": ("mistral", lambda mask, rows, options: (None, rows)),
    "padding not masked": ("bert", lambda mask, rows, options: (None, rows)),
    "scale changed": ("llama", scaled),
    "sinks ignored": ("gpt_oss", without("s_aux")),
    "soft cap ignored": ("gemma2", without("softcap")),
    "bias ignored": ("t5", without("position_bias")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_an_error_and_nothing_is_kept(monkeypatch, tmp_path, fault):
    family, change = FAULTS[fault]
    model, ids = make_model(family), make_tokens(40)
    mask = make_padding(40, "right") if fault == "padding not masked" else None
    assert capture_quietly(model, ids, attention_mask=mask).provenance["proof"] < 1e-5
    monkeypatch.setattr(attention, "score_blocks", faulty(change))
    said = rf"{family}: .* layers \[[01, ]+\] .* misses .* by \d.*allowed 0.001.*Nothing is kept.*register_"
    for chunk in (7, 24):  # the last rows are a part of a block, and more than one
        with pytest.raises(RuntimeError, match=said):
            capture_quietly(model, ids, attention_mask=mask, cache=tmp_path, chunk=chunk)
    assert not list(tmp_path.rglob("*.safetensors"))
    if mask is None:
        with pytest.raises(RuntimeError, match=said):
            cache_attention(model, ids[:1])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_fault(dtype, implementation):
    model = make_model().to(dtype)
    model.set_attn_implementation(implementation)
    assert capture_quietly(model, make_tokens(64)).provenance["proof"] < 0.05
    capture_quietly(make_model("bloom").to(dtype), make_tokens(64))  # whose rows sum to 1 up to its rounding


def test_the_weakest_proof_of_all_batches_is_stated(llama):
    one = capture_quietly(llama, make_tokens(20, n=1))
    parts = [one.with_provenance(proof=proof) for proof in (1e-7, 3e-7, 2e-7)]
    assert Profiles.concatenate(parts).provenance["proof"] == 3e-7
    unproved = capture_quietly(make_model("bloom"), make_tokens(20), batch_size=1).provenance["proof"]
    assert unproved == "not proved: the 'module' route shows no values"


def test_an_unknown_option_is_refused_by_name(monkeypatch, llama):
    module = innermost_attention(llama)[1]
    original = type(module).forward
    for option, said in ((torch.ones(3), r"a tensor \(3,\)"), (0.1, "0.1"), (None, ""), (False, "")):
        monkeypatch.setattr(module, "forward", functools.partial(original, module, strange=option))
        refused = pytest.raises(NotImplementedError, match=rf"LlamaAttention .* strange = {said}, ")
        with refused if said else contextlib.nullcontext():
            capture_quietly(llama, make_tokens(9))


def test_layers_are_told_apart_and_counted(monkeypatch):
    model = make_model(layers=4)
    del model.model.layers[1]
    assert capture_quietly(model, make_tokens(16)).layers == [0, 2, 3]
    seen = Recorder.wants
    monkeypatch.setattr(Recorder, "wants", lambda self, m, *size: m.layer_idx != 2 and seen(self, m, *size))
    with pytest.raises(RuntimeError, match=r"attention of model\.layers\.1\.self_attn was not seen"):
        capture_quietly(model, make_tokens(16))


def test_layers_keep_their_numbers(tmp_path):
    model, ids = walk.make_model("causal", "jamba"), make_tokens(24)
    profiles = capture_quietly(model, ids)
    assert Profiles.load(profiles.save(tmp_path / "p.safetensors")).layers == [1, 3]
    kept = cache_attention(model, ids[:1])
    last = kept.layer(3).mean(-2)
    torch.testing.assert_close(last, capture_quietly(model, ids[:1]).key_profile[0, 1], rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError, match=r"layer 2 .* layers 1, 3"):
        kept.layer(2)
    assert output_projection(model, 3) is model.model.layers[3].self_attn.o_proj


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_threads_do_not_meet(family):
    model, other, ids = make_model(family), make_model("llama", seed=5), make_tokens(48)
    names, barrier = ["key_profile", "lag_profile", "row_metrics"], threading.Barrier(4)
    right = {each: capture_quietly(each, ids, names) for each in (model, other)}
    with torch.inference_mode():
        plain = model(ids).logits

    def captures(each):
        barrier.wait(timeout=60)
        for _ in range(10):
            assert_same_profiles(capture_quietly(each, ids, names), right[each], tolerance=0)

    @torch.inference_mode()
    def forwards(each):
        barrier.wait(timeout=60)
        assert all(torch.equal(each(ids).logits, plain) for _ in range(60))

    with ThreadPoolExecutor(4) as pool:
        works = (captures, model), (captures, model), (captures, other), (forwards, model)
        for found in [pool.submit(*work) for work in works]:
            found.result()
    assert not exchange._EXCHANGED
    assert model.config._attn_implementation == "sdpa"


def test_the_stance_of_the_compiler_is_given_back_by_the_last_of_two_blocks():
    """The first to begin is the first to end, as in two threads; then compiled layers are compiled again."""
    met = []
    compiled = torch.compile(lambda x: x + 1, backend=lambda graph, _: met.append(graph) or graph.forward)
    blocks = exchange.as_written(), exchange.as_written()
    for block in blocks:
        block.__enter__()
    for block in blocks:
        compiled(torch.ones(2))
        assert not met
        block.__exit__(None, None, None)
    compiled(torch.ones(2))
    assert met


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_capture_inside_a_capture(family):
    model, other, ids = make_model(family), make_model("llama", seed=3), make_tokens(24)
    wanted = [capture_quietly(each, ids).key_profile for each in (model, other)]
    inner = []

    def again(module, args):
        if not inner:
            inner.append(None)
            inner[:] = [capture_quietly(each, ids).key_profile for each in (model, other)]

    handle = innermost_attention(model)[1].register_forward_pre_hook(again)
    outer = capture_quietly(model, ids).key_profile
    handle.remove()
    assert torch.equal(outer, wanted[0])
    assert all(map(torch.equal, inner, wanted))
