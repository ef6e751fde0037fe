import copy
import functools
from types import SimpleNamespace

import pytest
import tiny_models as tiny
import torch

from nbhelpers.hooks.attention import Recorder, interface_route, module_route
from nbhelpers.hooks.reductions import resolve
from nbhelpers.inputs.families import FAMILIES, family_of
from nbhelpers.inputs.models import describe

ONE_STACK = [name for name, family in FAMILIES.items() if family.kind != "encoder-decoder"]
STREAMS = ["encoder", "decoder", "cross"]


@functools.cache
def model_of(family):
    # T5 scales no scores, StableLM is as wide as two others; the others have few or normalised embeddings.
    std = {"t5": 0.15, "stablelm": 0.15, "roformer": 0.25, "rembert": 0.25, "squeezebert": 0.3}
    return tiny.make_model(family, std=std.get(family, 0.2))


def assert_same(got, expected, mask=None):
    if mask is not None:
        got, expected = (x * mask.numpy()[:, None, None, :, None] for x in (got, expected))
    assert got.shape == expected.shape
    assert abs(got - expected).max() <= 1e-6 * abs(expected).max()


@pytest.mark.parametrize("length", [1, 2, 9, 64, 130])
@pytest.mark.parametrize("family", ONE_STACK)
def test_equal_to_eager(family, length):
    model, ids = model_of(family), tiny.make_tokens(length)
    got, expected = tiny.captured_matrix(model, ids, chunk=5), tiny.eager_attention(model, ids)
    if abs(got - expected).max() > 1e-6 * expected.max():  # eager itself is that far off, on some CPUs
        expected = tiny.eager_attention(copy.deepcopy(model).double(), ids)
    assert_same(got, expected)
    assert length == 1 or describe(model).causal == (not torch.as_tensor(got).triu(1).any())
    if length == 64:
        assert got[..., -1, :].max() > 6 / 64, "the models of these tests are far from uniform"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ONE_STACK)
def test_padding_on_either_side_gives_what_the_same_tokens_have_alone(family, side):
    model, mask = model_of(family), tiny.make_padding(20, side)
    ids = tiny.make_tokens(20) * mask
    ids[:, 9], ids[:, 10] = 1, 3  # the padding token of MPNet, seen in the text, and one near it
    got = tiny.captured_matrix(model, ids, attention_mask=mask, chunk=8)
    if family in ("convbert", "nystromformer"):  # whose convolutions read the padding, too
        positions = (mask.cumsum(1) - 1).clamp(min=0) if side == "left" else None
        return assert_same(got, tiny.eager_attention(model, ids, mask, position_ids=positions), mask)
    for row, kept in enumerate(mask.bool()):
        own = got[row : row + 1][..., kept.numpy(), :]
        assert_same(own[..., kept.numpy()], tiny.eager_attention(model, ids[row : row + 1, kept]))
        assert not own[..., ~kept.numpy()].any()


@pytest.mark.parametrize("implementation", [None, "eager"])
@pytest.mark.parametrize("family", ONE_STACK)
def test_logits_and_model_are_unchanged(monkeypatch, family, implementation):
    model, ids = model_of(family), tiny.make_tokens(24)
    route = module_route if family_of(model.config).route == "module" else interface_route
    if implementation:
        monkeypatch.setattr(model.config, "_attn_implementation", implementation)
    implementation, hooks = model.config._attn_implementation, tiny.n_hooks(model)
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        recorder = Recorder(model, resolve("key_profile"))
        with route(model, recorder) as extra:
            during = model(input_ids=ids, **extra).logits
        after = model(input_ids=ids).logits
    mass = recorder.profiles().key_profile.sum(-1)
    if family == "gpt_oss":
        assert bool((mass < 1).all()), "sinks take a share"
    else:
        torch.testing.assert_close(mass, torch.ones(2, 2, 4))
    assert torch.equal(before, after)
    if family == "falcon":  # gives probabilities only off its SDPA path: equal to rounding
        assert (during - before).abs().max() <= 1e-5 * before.abs().max()
    else:
        assert torch.equal(during, before)
    assert model.config._attn_implementation == implementation
    assert tiny.n_hooks(model) == hooks


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_three_streams(family, stream):
    model, ids, mask = model_of(family), tiny.make_tokens(20), tiny.make_padding(20, "right")
    read, encoder = tiny.make_tokens(9, seed=2), stream == "encoder"
    expected = tiny.eager_attention(model, ids, mask, stream=stream, decoder_input_ids=read)
    ask = {"attention_mask": mask, "stream": stream, "chunk": 4, "decoder_ids": None if encoder else read}
    assert_same(tiny.captured_matrix(model, ids, **ask), expected, mask if encoder else None)


@pytest.mark.parametrize(("start", "pad", "first"), [(5, 7, 5), (0, 7, 0), (None, 7, 7), (None, None, 0)])
@pytest.mark.parametrize("stream", ["decoder", "cross"])
def test_a_decoder_reads_the_sequences_behind_its_start_token(monkeypatch, stream, start, pad, first):
    model, ids = model_of("bart"), tiny.make_tokens(9)
    monkeypatch.setattr(model.config, "decoder_start_token_id", start)
    monkeypatch.setattr(model.config, "pad_token_id", pad)
    shifted = ids.roll(1, 1)
    shifted[:, 0] = first
    expected = tiny.eager_attention(model, ids, stream=stream, decoder_input_ids=shifted)
    assert_same(tiny.captured_matrix(model, ids, stream=stream), expected)


class Prompted(torch.nn.Module):
    def __init__(self, model, prompts):
        super().__init__()
        self.get_base_model = lambda: model
        self.peft_config = {"default": SimpleNamespace(is_prompt_learning=prompts)}


def test_wrappers_are_taken_off_and_compiled_layers_run_as_written():
    model, ids = tiny.make_model("llama"), tiny.make_tokens(9)
    expected = tiny.capture_quietly(model, ids)
    compiled, parallel = torch.compile(model, backend="eager"), torch.nn.DataParallel
    for wrapped in (parallel(model), compiled, parallel(compiled), Prompted(model, False)):
        assert torch.equal(tiny.capture_quietly(wrapped, ids).key_profile, expected.key_profile)
    met = []
    torch.compiler.reset()

    def backend(graph, inputs):
        return lambda *args: met.append(graph) or graph(*args)

    model.model.layers[1].compile(backend=backend)
    model.model.layers[0].self_attn.compile(backend=backend)
    with torch.inference_mode():
        model(input_ids=ids)
    assert met
    met.clear()
    assert torch.equal(tiny.capture_quietly(compiled, ids).key_profile, expected.key_profile)
    assert not met
    with pytest.raises(TypeError, match="learned prompts before the tokens"):
        tiny.capture_quietly(Prompted(model, True), ids)


def test_only_the_encoder_runs_where_only_it_is_read(monkeypatch):
    model = model_of("t5")
    monkeypatch.setattr(model.decoder, "forward", None)
    assert tiny.capture_quietly(model, tiny.make_tokens(9)).provenance["stream"] == "encoder"
