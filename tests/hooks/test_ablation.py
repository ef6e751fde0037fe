"""A head that is set to zero: against values and attention outputs that are zeroed another way; rotary pairs
that are changed: against the model's own table of cosines, changed by a hook."""

import contextlib
import itertools

import pytest
import torch
import transformers as hf
from tiny_models import make_model, make_tokens, n_hooks

from nbhelpers import load_model, load_text
from nbhelpers.hooks import ablation
from nbhelpers.hooks.capture import capture

WITH_INTERFACE = ["llama", "gemma", "gpt_neox", "gpt2", "phi", "opt"]


@torch.inference_mode()
def logits(model, ids):
    return model(ids, use_cache=False).logits


@contextlib.contextmanager
def silenced_output(model, heads, mean=False):
    """Zero what the attention functions return for some (layer, head), or give its mean."""
    original = hf.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module, *args, **options):
        output, weights = original(module, *args, **options)
        output = output.clone()
        for layer, head in heads:
            if module.layer_idx == layer:
                output[:, :, head] = output[:, :, head].mean((0, 1)) if mean else 0
        return output, weights

    hf.AttentionInterface.register("silenced", attend)
    hf.AttentionMaskInterface.register("silenced", hf.AttentionMaskInterface()["sdpa"])
    model.set_attn_implementation("silenced")
    yield
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("family", WITH_INTERFACE)
@pytest.mark.parametrize("heads", [[(0, 0)], [(1, 3)], [(1, 2), (0, 1), (1, 0)]])
def test_equal_to_heads_whose_attention_output_is_zero(family, heads):
    model, ids = make_model(family), make_tokens(12)
    with silenced_output(model, heads):
        wanted = logits(model, ids)
    before = logits(model, ids)
    with ablation.ablate_heads(model, heads):
        without = logits(model, ids)
    assert (without - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (without - before).abs().max() > 1e-3 * before.abs().max()
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", ["gptj", "gpt_neo"])
def test_equal_to_a_head_whose_values_are_zero(family):
    model, ids = make_model(family), make_tokens(12)
    with ablation.ablate_heads(model, [(1, 2)]):
        without = logits(model, ids)
    (values,) = (m for name, m in model.transformer.h[1].named_modules() if name.endswith("v_proj"))
    values.weight.detach()[16:24] = 0  # head 2 of 4, 8 wide
    assert (without - logits(model, ids)).abs().max() <= 1e-5 * without.abs().max()


@pytest.mark.parametrize("family", WITH_INTERFACE)
def test_a_head_that_gives_its_mean_and_layers_below_that_do_not_run(family):
    model, ids, run = make_model(family), make_tokens(12), []
    with silenced_output(model, [(1, 2)], mean=True):
        wanted = logits(model, ids)
    before, from_layer = ablation.resumable(model, ids)
    handle = ablation.layer_modules(model)[0].register_forward_hook(lambda *_: run.append(1))
    with ablation.ablate_heads(model, [(1, 2)], means=ablation.mean_outputs(model, ids)):
        assert (logits(model, ids) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        whole, passes = ablation.token_losses(model, ids), len(run)
        with from_layer(1):
            assert torch.equal(ablation.token_losses(model, ids), whole)
    assert len(run) == passes
    handle.remove()
    assert not torch.equal(whole, before)
    assert torch.equal(ablation.token_losses(model, ids), before)


def test_a_table_of_changes_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    loaded, path = load_model("zoo:rope"), tmp_path / "table.parquet"
    ids = load_text("moby-dick", loaded, n_sequences=2, length=24)
    changes = [(f"{la} 0", la, lambda la=la: ablation.ablate_heads(loaded, [(la, 0)])) for la in range(3)]
    whole = ablation.measure_changes(loaded, ids, changes, tmp_path / "whole.parquet", {"seed": 0})
    monkeypatch.setattr("nbhelpers.hooks.ablation.EVERY", 1)
    with pytest.raises(ZeroDivisionError):
        ablation.measure_changes(loaded, ids, [changes[0], ("fails", 0, lambda: 1 / 0)], path, {"seed": 0})
    again = [(changes[0][0], 0, lambda: 1 / 0), *changes[1:]]
    assert ablation.measure_changes(loaded, ids, again, path, {"seed": 0}).equals(whole)
    with pytest.raises(ValueError, match="measured otherwise"):
        ablation.measure_changes(loaded, ids, changes, path, {"seed": 1})
    before = ablation.token_losses(loaded, ids)
    with ablation.ablate_heads(loaded, [(2, 0)]):
        added = (ablation.token_losses(loaded, ids) - before).numpy()
    where = ablation.token_classes(loaded.tokenizer, ids)["content word"]
    of = whole[(whole.name == "2 0") & (whole["class"] == "content word")]
    assert of.nats.to_numpy() == pytest.approx((added * where).sum(1), abs=1e-5)
    assert of.tokens.tolist() == where.sum(1).tolist()


def test_token_losses_against_a_loop_in_float64():
    model, ids = make_model("llama"), make_tokens(9)
    scores = logits(model, ids).double()
    got = ablation.token_losses(model, ids)
    assert got.shape == (2, 8)
    for s, t in itertools.product(range(2), range(8)):
        assert abs(got[s, t] + scores[s, t].log_softmax(-1)[ids[s, t + 1]]) < 1e-5


def test_refusals():
    llama, bert, ids = make_model("llama"), make_model("bert"), make_tokens(9)
    with pytest.raises(ZeroDivisionError), ablation.ablate_heads(llama, [(0, 1)]):
        raise ZeroDivisionError
    assert n_hooks(llama) == 0
    for call, error, said in (
        (lambda: ablation.ablate_heads(llama, [(1, 0), (2, 0)]).__enter__(), IndexError, "layer 2 .* 0 to 1"),
        (lambda: ablation.ablate_heads(llama, [(1, 0), (0, 4)]).__enter__(), IndexError, "head 4 .* 0 to 3"),
        (lambda: ablation.ablate_heads(llama, [(0, -1)]).__enter__(), IndexError, "head -1"),
        (lambda: ablation.token_losses(bert, ids), ValueError, "no next token"),
        (lambda: ablation.token_losses(llama.model, ids), ValueError, "no language-model head"),
        (lambda: ablation.token_losses(llama, ids[:, :1]), ValueError, "at least 2 tokens"),
        (lambda: ablation.output_projection(bert, 0), NotImplementedError, "bert: its attention module Bert"),
    ):
        with pytest.raises(error, match=said):
            call()


@contextlib.contextmanager
def changed_table(model, family, pairs, action):
    """Change pairs in the model's own cosines and sines, (batch, position, dimension), or in its queries."""
    n = len(model.model.rotary_emb.inv_freq)
    columns = [c for k in pairs for c in ((2 * k, 2 * k + 1) if family == "cohere" else (k, k + n))]

    def turn(module, args, output):
        if module is not table:
            output.unflatten(-1, (4, 8))[..., columns] = 0
            return
        order = torch.randperm(output[0].shape[1], generator=torch.Generator().manual_seed(0))
        for part, still in zip(output, (1.0, 0.0), strict=True):
            part[..., columns] = still if action == "freeze" else part[:, order][..., columns]

    def scale(module, args, options):
        return args, options | {"position_ids": options["position_ids"] * 0.5}

    table, queries = model.model.rotary_emb, [layer.self_attn.q_proj for layer in model.model.layers]
    if action == "scale":
        handles = [table.register_forward_pre_hook(scale, with_kwargs=True)]
    else:
        handles = [each.register_forward_hook(turn) for each in (queries if action == "zero" else [table])]
    yield
    for handle in handles:
        handle.remove()


def change(model, pairs, action, **options):
    if action == "scale":
        return ablation.scale_positions(model, 0.5, **options)
    return ablation.change_pairs(model, pairs, action, **options)


@pytest.mark.parametrize("action", ["zero", "freeze", "shuffle", "scale"])
@pytest.mark.parametrize("family", ["llama", "phi", "cohere"])  # halves, partial, interleaved
def test_pairs_change_as_the_models_own_cosines_do(family, action):
    model, ids = make_model(family), make_tokens(24)
    before, cache = logits(model, ids), model(ids, use_cache=True).past_key_values
    with changed_table(model, family, [0, 1], action):
        wanted = logits(model, ids)
    with change(model, [0, 1], action):
        got = logits(model, ids)
        with pytest.raises(RuntimeError, match="changed already"):
            change(model, [1], action).__enter__()
        if action != "zero":
            with pytest.raises(ValueError, match="1 queries met 25 keys"):
                model(ids[:, :1], past_key_values=cache)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (got - before).abs().max() > 1e-2 * before.abs().max()
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("action", ["zero", "freeze", "shuffle", "scale"])
def test_one_head_of_two_that_share_a_key(action):
    model, ids = make_model("llama", layers=1), make_tokens(24)
    before, plain = logits(model, ids), capture(model, ids, "lag_profile").lag_profile
    with changed_table(model, "llama", range(4), action):
        whole = capture(model, ids, "lag_profile").lag_profile
    with change(model, range(4), action, heads=[(0, 1)]):
        seen = capture(model, ids, "lag_profile").lag_profile  # proved against what the model's layer gives
        with pytest.raises(ValueError, match="changed positions"):
            capture(model, ids, "lag_profile", cache="unused")
    torch.testing.assert_close(seen[:, :, 1], whole[:, :, 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[:, :, [0, 2, 3]], plain[:, :, [0, 2, 3]], rtol=0, atol=1e-6)
    assert (seen - plain).abs().max() > 1e-3
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_logits_are_bit_equal_after_an_error_in_the_pass(error):
    model, ids = make_model("gpt_neox"), make_tokens(24)
    before = logits(model, ids)

    def stop(module, args):
        raise error

    handle = model.gpt_neox.layers[1].register_forward_pre_hook(stop)
    blocks = ablation.change_pairs(model, [0], "shuffle"), ablation.scale_positions(model, 2, heads=[(1, 0)])
    for block in blocks:
        with pytest.raises(error), block:
            logits(model, ids)
    handle.remove()
    assert torch.equal(logits(model, ids), before)


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}}
REFUSED = [  # family, changes of it, arguments, error, what it says
    ("gpt2", {}, {}, ValueError, r"gpt2: no layer rotates .*\(positions: learned\)"),
    ("nbhelpers_zoo", {"position_encoding": "nope"}, {}, ValueError, "positions: none"),
    ("llama", DYNAMIC, {}, ValueError, "depend on the length"),
    ("llama", {}, {"pairs": [0, 4]}, IndexError, "pair 4 .* layer 0 has the pairs 0 to 3"),
    ("llama", {}, {"heads": [(0, 4)]}, IndexError, "head 4 .* 0 to 3"),
    ("llama", {}, {"heads": [(2, 0)]}, IndexError, "layer 2 .* 0 to 1"),
    ("smollm3", {"layers": 4}, {"heads": [(3, 0)]}, ValueError, "layer 3 does not rotate; .* 0 to 2"),
]


@pytest.mark.parametrize(("family", "changes", "options", "error", "said"), REFUSED)
def test_what_cannot_be_changed_is_refused_in_words(family, changes, options, error, said):
    options = {"pairs": [0], "action": "zero"} | options
    with pytest.raises(error, match=said):
        ablation.change_pairs(make_model(family, **changes), **options).__enter__()


def test_a_stated_length_is_the_one_that_is_changed():
    model, ids = make_model("llama", **DYNAMIC), make_tokens(24)
    before = logits(model, ids)
    with ablation.change_pairs(model, [0], "shuffle", length=24):
        assert not torch.equal(logits(model, ids), before)
        with pytest.raises(ValueError, match=r"texts of 24 tokens.* 20 queries met 20 keys"):
            logits(model, ids[:, :20])
