"""capture: what it returns, what it refuses, what it leaves behind, and how it resumes."""

import importlib.metadata
import os
import subprocess
import sys
import threading

import pytest
import torch
from tiny_models import (
    Whole,
    captured_matrix,
    eager_attention,
    make_model,
    make_padding,
    make_tokens,
    n_hooks,
)

from nbhelpers.corpora import load_text
from nbhelpers.hooks import families
from nbhelpers.hooks.attention import RECORDER
from nbhelpers.hooks.capture import capture, fingerprint, plan
from nbhelpers.hooks.reductions import KeyProfile, LocalMass, RowPsd
from nbhelpers.protocol import PAPER

ALL = ["key_profile", "last_query", "lag_profile", "local_mass", "row_psd", "row_entropy", "row_metrics"]


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


def run(model, ids, reductions="key_profile", **options):
    return capture(model, ids, reductions, progress=False, **options)


def same(got, expected, tolerance=1e-6):
    assert got.arrays.keys() == expected.arrays.keys()
    for name in got.arrays:
        torch.testing.assert_close(got[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.fixture
def forwards(monkeypatch, llama):
    """Counts forward passes of the backbone, without a hook."""
    counted, original = [], llama.model.forward

    def forward(*args, **options):
        counted.append(len(options["input_ids"]))
        return original(*args, **options)

    monkeypatch.setattr(llama.model, "forward", forward)
    return counted


# --- what comes back


def test_axes_coordinates_groups_and_provenance(llama):
    ids = make_tokens(20, n=3)
    got = run(llama, ids, ALL)
    own = {"row_entropy": (), "row_psd": ("freq",), "local_mass": ("distance",), "row_metrics": ("metric",)}
    own |= {"key_profile": ("key",), "last_query": ("key",), "lag_profile": ("lag",)}
    for name in ALL:
        assert got.axes[name] == ("sequence", "layer", "head", *own[name])
        assert got[name].shape[:3] == (3, 2, 4)
        assert got[name].shape[3:] == ((len(got.coordinates[name]),) if own[name] else ())
        assert got[name].dtype == torch.float32
        assert not got[name].is_inference()  # may be changed and differentiated like any tensor
    assert got.kv_groups == [0, 0, 1, 1]
    assert got.n_real.tolist() == [20, 20, 20]
    facts = got.provenance
    assert (facts["length"], facts["n_sequences"], facts["stream"]) == (20, 3, "self")
    assert (facts["dtype"], facts["device"], facts["attention"]) == ("float32", "cpu", "sdpa")
    assert facts["model"]["family"] == "llama"
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert "nbhelpers" in facts["versions"]
    assert [reduction["name"] for reduction in facts["reductions"]] == ALL
    assert facts["reductions"][4]["protocol"] == PAPER.hash


def test_only_what_is_asked_for_is_there(llama):
    assert list(run(llama, make_tokens(8), ["last_query", "row_entropy"]).arrays) == [
        "last_query",
        "row_entropy",
    ]
    assert list(capture(llama, make_tokens(8), progress=False).arrays) == ["key_profile"]


def test_inputs_and_model_are_as_they_were(llama):
    ids, mask = make_tokens(20), make_padding(20, "left")
    ids_before, mask_before, weights = ids.clone(), mask.clone(), fingerprint(llama)
    with torch.inference_mode():
        before = llama(ids).logits
    run(llama, ids, ALL, attention_mask=mask)
    with torch.inference_mode():
        after = llama(ids).logits
    assert torch.equal(ids, ids_before)
    assert torch.equal(mask, mask_before)
    assert torch.equal(before, after)
    assert fingerprint(llama) == weights
    assert llama.config._attn_implementation == "sdpa"
    assert RECORDER.get(None) is None


@pytest.mark.parametrize(
    "options", [{"batch_size": 1}, {"batch_size": 2, "chunk": 3}, {"batch_size": 7, "chunk": 1}]
)
def test_batches_and_chunks_do_not_matter(llama, options):
    ids, mask = make_tokens(20, n=5), make_padding(20, "right", n=5)
    same(
        run(llama, ids, ALL, attention_mask=mask, **options), run(llama, ids, ALL, attention_mask=mask), 2e-5
    )


def test_a_batch_with_and_without_padding_may_follow_each_other(llama):
    # Only the second batch holds a padded sequence.
    ids, mask = make_tokens(20, n=4), make_padding(20, "left", n=4)
    parts = run(llama, ids, attention_mask=mask, batch_size=2)
    assert parts.n_real.tolist() == [20, 20, 20, 13]
    same(parts, run(llama, ids, attention_mask=mask, batch_size=4))


def test_a_bare_model_and_a_loaded_one_give_the_same(tiny_llama):
    ids = make_tokens(20)
    loaded, bare = run(tiny_llama, ids, ALL), run(tiny_llama.model, ids, ALL)
    for name in ALL:
        assert torch.equal(loaded[name], bare[name])
    assert loaded.provenance["model"]["name"] == tiny_llama.description.name


@pytest.mark.parametrize("family", ["llama", "bert", "bloom"])
def test_a_single_token(family):
    got = run(make_model(family), make_tokens(1), ["key_profile", "last_query", "lag_profile", "row_entropy"])
    for name in ("key_profile", "last_query", "lag_profile"):
        assert torch.equal(got[name], torch.ones(2, 2, 4, 1))
    assert not got.row_entropy.any()


def test_an_encoder_sees_both_sides():
    model, ids = make_model("bert"), make_tokens(20)
    got = run(model, ids, ["key_profile", "lag_profile", Whole()])
    attn = eager_attention(model, ids)
    assert abs(got.key_profile.double().numpy() - attn.mean(-2)).max() < 1e-6
    assert got.coordinates["lag_profile"] == list(range(-19, 20))
    assert got.lag_profile[..., :19].sum(-1).min() > 0.05
    assert got.provenance["stream"] == "self"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_a_mask_of_any_dtype(llama, dtype):
    ids, mask = make_tokens(20), make_padding(20, "left")
    expected = run(llama, ids, ALL, attention_mask=mask)
    same(run(llama, ids, ALL, attention_mask=mask.to(dtype)), expected)


def test_two_threads_capture_two_models_at_once(llama):
    other, ids = make_model("llama", seed=5), make_tokens(40, n=6)
    expected = [run(model, ids, ALL, batch_size=1) for model in (llama, other)]
    got, failures = [None, None], []
    barrier = threading.Barrier(2)

    def work(at, model):
        try:
            barrier.wait(timeout=30)
            got[at] = run(model, ids, ALL, batch_size=1)
        except BaseException as error:  # a thread would swallow it
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((llama, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for one, alone in zip(got, expected, strict=True):
        same(one, alone)
    assert not torch.equal(got[0].key_profile, got[1].key_profile)


def test_the_plan_says_what_will_happen(llama):
    todo = plan(llama, 5, 20, batch_size=2, chunk=8)
    assert (todo.batch_size, todo.chunk, todo.block_bytes) == (2, 8, 4 * 2 * 4 * 8 * 20)
    assert todo.working_bytes > 6 * todo.block_bytes
    assert "5 sequences of 20 tokens, 2 at a time, blocks of 8 query rows" in str(todo)
    assert plan(llama, 5, 20).chunk == 20  # never more rows than there are
    assert plan(llama, 5, 256).batch_size == 4


@pytest.fixture(scope="module")
def smollm2_text(smollm2):
    """Two passages of 64 tokens and what eager attention makes of them, float64."""
    ids = load_text("moby-dick", smollm2.tokenizer, n_sequences=2, length=64)
    return ids, torch.from_numpy(eager_attention(smollm2.model, ids))


def smollm2_profiles(attn):
    lags = torch.stack([attn.diagonal(-lag, -2, -1).sum(-1) for lag in range(64)], -1) / 64
    return {"key_profile": attn.mean(-2), "last_query": attn[..., -1, :], "lag_profile": lags}


def test_smollm2_equals_eager(smollm2, smollm2_text):
    # On one implementation the model computes the same queries and keys, so only the capture can differ.
    ids, attn = smollm2_text
    smollm2.model.set_attn_implementation("eager")
    try:
        got = run(smollm2, ids, ["key_profile", "last_query", "lag_profile"])
    finally:
        smollm2.model.set_attn_implementation("sdpa")
    for name, expected in smollm2_profiles(attn).items():
        assert (got[name] - expected).abs().max() <= 1e-6 * attn.max(), name
    assert got.key_profile.shape == (2, 30, 9, 64)
    assert got.kv_groups == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_smollm2_on_sdpa_differs_from_eager_by_the_rounding_of_the_model(smollm2, smollm2_text):
    # SDPA rounds the hidden states of 30 layers elsewhere: one row drifts by 2e-6, a mean by less.
    ids, attn = smollm2_text
    got = run(smollm2, ids, ["key_profile", "last_query", "lag_profile"])
    allowed = {"key_profile": 1e-6, "lag_profile": 1e-6, "last_query": 5e-6}
    for name, expected in smollm2_profiles(attn).items():
        assert (got[name] - expected).abs().max() <= allowed[name] * attn.max(), name


def test_smollm2_is_not_changed_by_a_bit(smollm2, smollm2_text):
    hidden, model = [], smollm2.model
    handle = model.model.norm.register_forward_hook(lambda module, args, output: hidden.append(output))
    try:
        run(smollm2, smollm2_text[0], ALL)
        with torch.inference_mode():
            model.model(smollm2_text[0])
    finally:
        handle.remove()
    assert torch.equal(hidden[0], hidden[1])


# --- bad input


def test_train_mode_is_refused():
    with pytest.raises(ValueError, match=r"train mode.*model.eval\(\)"):
        run(make_model().train(), make_tokens(8))


def test_a_sequence_longer_than_the_positions(llama):
    with pytest.raises(ValueError, match=r"have 257 tokens.*has 256 positions.*at most 256"):
        run(llama, make_tokens(257))


@pytest.mark.parametrize("word", [-1, 64, 50_000])
def test_ids_outside_the_vocabulary(llama, word):
    ids = make_tokens(8)
    ids[1, 3] = word
    with pytest.raises(ValueError, match=rf"run from .*{word}.*knows 0 to 63.*tokenizer"):
        run(llama, ids)


@pytest.mark.parametrize(
    "ids", [torch.rand(2, 8), torch.ones(8, dtype=torch.long), torch.ones(0, 8, dtype=torch.long)]
)
def test_ids_of_another_form(llama, ids):
    with pytest.raises(ValueError, match=r"integers \(sequence, position\), not empty"):
        run(llama, ids)


def test_a_fully_padded_row(llama):
    mask = make_padding(8, "left", n=3, hidden=8)
    with pytest.raises(ValueError, match=r"Sequences \[2\] are padding"):
        run(llama, make_tokens(8, n=3), attention_mask=mask)


def test_a_mask_of_another_shape(llama):
    with pytest.raises(ValueError, match=r"shape \(2, 7\), token_ids \(2, 8\)"):
        run(llama, make_tokens(8), attention_mask=torch.ones(2, 7))


def test_a_mask_of_other_values(llama):
    with pytest.raises(ValueError, match=r"1 for tokens and 0 for padding.*-10000"):
        run(llama, make_tokens(8), attention_mask=torch.full((2, 8), -10000.0))


@pytest.mark.parametrize("name", ["batch_size", "chunk"])
@pytest.mark.parametrize("value", [0, -3])
def test_impossible_sizes(llama, name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1.*got {value}"):
        run(llama, make_tokens(8), **{name: value})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_nan_weights_name_the_layer(family, layer):
    model = make_model(family)
    with torch.no_grad():
        if family == "llama":
            model.model.layers[layer].self_attn.q_proj.weight[3, 3] = torch.nan
        else:
            model.transformer.h[layer].self_attention.query_key_value.weight[3, 3] = torch.nan
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=rf"layers \[{layer}[],].* is not a distribution.*nan"):
        run(model, make_tokens(8))
    assert model.config._attn_implementation == before


def test_attention_of_the_module_route_that_does_not_sum_to_one():
    model = make_model("bloom")
    attention = model.transformer.h[1].self_attention
    handle = attention.register_forward_hook(
        lambda module, args, output: (output[0], output[1] * 1.5), prepend=True
    )
    with pytest.raises(ValueError, match=r"layers \[1\].*miss 1 by up to 0\.5"):
        run(model, make_tokens(8))
    handle.remove()
    assert n_hooks(model) == n_hooks(make_model("bloom"))


def test_an_unknown_stream(llama):
    with pytest.raises(ValueError, match="streams self; 'cross' was asked for"):
        run(llama, make_tokens(8), stream="cross")
    with pytest.raises(ValueError, match="streams encoder, decoder, cross; 'self'"):
        run(make_model("t5"), make_tokens(8), stream="self")


def test_decoder_ids_are_checked(llama):
    t5, ids = make_model("t5"), make_tokens(8)
    with pytest.raises(ValueError, match=r"decoder_ids run from .* to 99"):
        run(t5, ids, stream="cross", decoder_ids=torch.full((2, 5), 99))
    with pytest.raises(ValueError, match=r"with 2 sequences; got \(1, 5\)"):
        run(t5, ids, stream="cross", decoder_ids=make_tokens(5, n=1))
    with pytest.raises(ValueError, match="one stack"):
        run(llama, ids, decoder_ids=ids)


def test_a_family_that_bypasses_the_interface(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "bloom", families.Family("bloom", "alibi", route="interface"))
    model = make_model("bloom")
    before = model.config._attn_implementation
    with pytest.raises(
        RuntimeError, match=r"bloom: no attention was seen.*register_family\(.*route='module'"
    ):
        run(model, make_tokens(8))
    assert model.config._attn_implementation == before


EXHAUST = """
import resource, psutil, torch
import transformers as hf
from nbhelpers.hooks.capture import capture
torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
config = hf.LlamaConfig(**sizes, **special, vocab_size=64, max_position_embeddings=4096)
model = hf.LlamaForCausalLM(config).eval()
ids = torch.zeros(1, 4096, dtype=torch.long)
capture(model, ids[:, :8], progress=False)
limit = psutil.Process().memory_info().vms + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    capture(model, ids, chunk=4096, progress=False)
except MemoryError as error:
    print("MemoryError:", error)
print("restored:", model.config._attn_implementation)
print(capture(model, ids, chunk=64, progress=False).key_profile.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, which only Linux enforces")
def test_out_of_memory_says_the_estimate_and_smaller_settings():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", EXHAUST], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MemoryError: Not enough memory for 1 sequences of 4096 tokens" in done.stdout
    assert "about 1542 MB beyond the model's weights" in done.stdout
    assert "batch_size=1, chunk=2048" in done.stdout
    assert "restored: sdpa" in done.stdout
    assert "torch.Size([1, 1, 4, 4096])" in done.stdout  # the smaller chunk fits the same memory


class Failing(KeyProfile):
    """A key profile that raises in the middle of a batch."""

    def __init__(self, error):
        self._error = error

    def update(self, state, block, layout):
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_the_ways_of_running_out_of_memory(llama, error):
    with pytest.raises(
        MemoryError, match=r"Not enough memory for 2 sequences.*batch_size=1, chunk=4"
    ) as caught:
        run(llama, make_tokens(8), Failing(error), batch_size=2, chunk=8)
    assert (str(error) or "MemoryError").splitlines()[0] in str(caught.value)


def test_other_errors_are_not_called_out_of_memory(llama):
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(llama, make_tokens(8), Failing(RuntimeError("size of tensor a must match")))


# --- interrupt and cache


class Interrupted(KeyProfile):
    """A key profile that Ctrl-C hits after some batches."""

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
        run(model, ids, Interrupted())
    assert (n_hooks(model), model.config._attn_implementation) == (hooks, implementation)
    assert RECORDER.get(None) is None
    monkeypatch.setattr(Interrupted, "after", None)
    same(run(model, ids, Interrupted()), run(model, ids))


def test_an_interrupted_run_keeps_what_is_done_and_resumes(monkeypatch, tmp_path, llama, forwards):
    ids = make_tokens(20, n=5)
    monkeypatch.setattr(Interrupted, "after", 2 * 2 + 1)  # two batches of two layers, and one layer more
    with pytest.raises(KeyboardInterrupt):
        run(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert len(forwards) == 3
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    monkeypatch.setattr(Interrupted, "after", None)
    resumed = run(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert len(forwards) == 3 + 3
    same(resumed, run(llama, ids, batch_size=1))
    assert resumed.provenance["n_sequences"] == 5
    del forwards[:]
    again = run(llama, ids, Interrupted(), batch_size=1, cache=tmp_path)
    assert forwards == []
    assert torch.equal(again.key_profile, resumed.key_profile)
    assert again.provenance == resumed.provenance


def test_files_and_fresh_batches_join(tmp_path, llama):
    # What a file gives back must equal what was never in one: a tuple became a list there.
    ids = make_tokens(20, n=3)
    whole = run(llama, ids, LocalMass((5,)), batch_size=1, cache=tmp_path)
    sorted(tmp_path.rglob("*.safetensors"))[2].unlink()
    again = run(llama, ids, LocalMass((5,)), batch_size=1, cache=tmp_path)
    assert torch.equal(again.local_mass, whole.local_mass)
    assert again.provenance == whole.provenance == run(llama, ids, LocalMass((5,)), batch_size=1).provenance


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_a_corrupt_cache_file_is_rebuilt_with_a_warning(tmp_path, llama, forwards, damage):
    ids = make_tokens(20, n=3)
    expected = run(llama, ids, batch_size=1, cache=tmp_path)
    victim = sorted(tmp_path.rglob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-7] if damage is None else damage)
    del forwards[:]
    with pytest.warns(UserWarning, match=f"{victim.name} is damaged.*captured again"):
        rebuilt = run(llama, ids, batch_size=1, cache=tmp_path)
    assert len(forwards) == 1
    assert torch.equal(rebuilt.key_profile, expected.key_profile)
    run(llama, ids, batch_size=1, cache=tmp_path)
    assert len(forwards) == 1


def test_other_batches_find_other_files(tmp_path, llama):
    # Files of single sequences once stood in for whole batches, and sequences were lost.
    ids = make_tokens(20, n=5)
    for batch_size in (1, 2, 5, 3):
        got = run(llama, ids, batch_size=batch_size, cache=tmp_path)
        assert got.n_sequences == 5
        same(got, run(llama, ids))


def changed_weight(model):
    model.model.layers[1].self_attn.k_proj.weight[0, 0] += 1e-3


def swapped_heads(model):
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.copy_(torch.cat([weight[8:16], weight[:8], weight[16:]]))


def changed_frequency(model):
    model.model.rotary_emb.inv_freq[1] *= 0.5


def changed_config(model):
    model.config.rms_norm_eps = 1e-2


@pytest.mark.parametrize("change", [changed_weight, swapped_heads, changed_frequency, changed_config])
def test_the_cache_knows_another_model(tmp_path, change):
    model, ids = make_model(), make_tokens(20)
    run(model, ids, cache=tmp_path)
    with torch.no_grad():
        change(model)
    got = run(model, ids, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(got.key_profile, run(model, ids).key_profile)


def test_the_cache_knows_other_questions(tmp_path, llama):
    ids, mask = make_tokens(20), make_padding(20, "left")
    other_ids = ids.clone()
    other_ids[0, 0] += 1 if ids[0, 0] < 63 else -1
    protocol = RowPsd(PAPER.replace(window="boxcar"))
    asked = [
        (llama, ids, "key_profile", {}),
        (llama, other_ids, "key_profile", {}),
        (llama, ids, "last_query", {}),
        (llama, ids, "row_psd", {}),
        (llama, ids, protocol, {}),
        (llama, ids, LocalMass((3,)), {}),
        (llama, ids, LocalMass((5,)), {}),
        (llama, ids, "key_profile", {"attention_mask": mask}),
        (llama, ids[:, :10], "key_profile", {}),
        (make_model().bfloat16(), ids, "key_profile", {}),
    ]
    for count, (model, tokens, reduction, options) in enumerate(asked, 1):
        got = run(model, tokens, reduction, **options, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == count
        same(got, run(model, tokens, reduction, **options))
    run(llama, ids, RowPsd(PAPER.replace(window="boxcar")), cache=tmp_path)  # an equal question is no other
    run(llama, ids, "key_profile", attention_mask=torch.ones(2, 20), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(asked)


def test_the_cache_refuses_a_model_with_hooks(tmp_path, llama):
    handle = llama.model.layers[0].register_forward_hook(lambda module, args, output: output)
    try:
        with pytest.raises(ValueError, match=r"forward hooks.*without cache="):
            run(llama, make_tokens(8), cache=tmp_path)
        run(llama, make_tokens(8))  # without a cache hooks are welcome
    finally:
        handle.remove()
    run(llama, make_tokens(8), cache=tmp_path)


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch, llama):
    monkeypatch.chdir(tmp_path)
    run(llama, make_tokens(8))
    assert list(tmp_path.iterdir()) == []


def test_captured_rows_are_distributions(llama):
    attn = captured_matrix(llama, make_tokens(30))
    assert abs(attn.sum(-1) - 1).max() < 1e-6
    assert attn.min() >= 0
