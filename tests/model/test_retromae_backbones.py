"""RetroMAE's model on every architecture: what training, ZeRO-3 and saving need of it."""

from types import SimpleNamespace

import pytest
import torch
from model import backbones
from model.backbones import gradients, inputs, plain, retromae, seen
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM

from bgetrain.model import folder, masked_lm
from bgetrain.model.body import checkpoint_activations

KINDS = list(masked_lm.ARCHITECTURES)
QUERIES = ["position", "embedding"]
# one for each way to have positions: learnt, learnt from padding_idx + 1, rotary
THREE = ["bert", "roberta", "modernbert"]


def test_random_words_that_are_padding_tokens_do_not_shift_positions():
    model, batch = retromae("roberta", query=None).eval(), inputs([12]) | {"visible": None}
    drawn = batch["encoder_ids"].clone()
    drawn[0, 4] = 1  # RoBERTa's padding_idx
    states = masked_lm.encoded(model.lm, drawn, None)
    torch.testing.assert_close(states, model.lm.roberta(drawn, position_ids=torch.arange(2, 14)[None]).last_hidden_state)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_read_inside_its_own_module_only(kind, query):
    # What ZeRO-3 does: a parameter is whole while its module runs, and empty otherwise
    model, batch = retromae(kind, query).eval(), inputs()
    with torch.no_grad():
        expected = model(plain, **batch)[0]
        whole = {parameter: parameter.data for parameter in model.parameters()}

        def gather(module: nn.Module, _: object) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = whole[parameter]

        def release(module: nn.Module, *_: object) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty(0)

        for module in model.modules():
            module.register_forward_pre_hook(gather)
            module.register_forward_hook(release)
            release(module)
        torch.testing.assert_close(model(plain, **batch)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mpnet"])
def test_gradient_checkpointing_recomputes_the_backbone_and_keeps_the_gradients(kind, recwarn):
    model, batch = retromae(kind), inputs()
    calls = []
    layers = next(module for module in model.lm.modules() if isinstance(module, nn.ModuleList))
    next(layers[0].children()).register_forward_hook(lambda *_: calls.append(1))
    wanted = gradients(model, model(plain, **batch)[0])
    assert len(calls) == 1
    checkpoint_activations(model.lm)
    again = gradients(model.train(), model(plain, **batch)[0])
    assert len(calls) == 3
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=1e-7)
    # reentrant checkpointing cannot do this
    (alone,) = torch.autograd.grad(model(plain, **batch)[0], [model.vocabulary.weight])
    torch.testing.assert_close(alone, model.vocabulary.weight.grad, rtol=1e-6, atol=1e-7)
    assert not [str(each.message) for each in recwarn if "checkpointing" in str(each.message)]


def test_an_architecture_that_cannot_recompute_is_named():
    with pytest.raises(ValueError, match=r"model\.gradient_checkpointing=true: .* 'mpnet': set it to false"):
        checkpoint_activations(backbones.tiny("mpnet"))


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", THREE)
def test_bf16_runs_forward_and_backward_and_stays_near_fp32(kind, query):
    model, batch = retromae(kind, query), inputs()
    expected = seen(model, batch)[1:]
    logits = seen(model.bfloat16(), batch)[1:]
    assert {part.dtype for part in logits} == {torch.bfloat16}
    for part, exact in zip(logits, expected, strict=True):
        assert (part - exact).abs().mean() < 0.03 * exact.abs().mean()
    assert all(each.isfinite().all() for each in gradients(model, model(plain, **batch)[0]).values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_both_losses_and_the_saved_encoder_reloads_equal(kind, tmp_path):
    model, batch = retromae(kind), inputs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = model(plain, **batch)[1]
    for _ in range(8):
        optimizer.zero_grad()
        model(plain, **batch)[0].backward()
        optimizer.step()
    after = model.eval()(plain, **batch)[1]
    assert after["encoder"] < before["encoder"]
    assert after["decoder"] < before["decoder"]
    # as the stage has them: names that begin with lm, each parameter once
    weights = {name[3:]: each.detach() for name, each in model.named_parameters() if name.startswith("lm.")}
    tokenizer = SimpleNamespace(save_pretrained=lambda path: None)
    folder.save(tmp_path / "model", model.lm, weights, tokenizer, pooling="cls", max_len=24, query_instruction="")
    given = dict(input_ids=batch["clean_ids"], attention_mask=batch["mask"])
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32)(**given).last_hidden_state
        torch.testing.assert_close(states, model.lm.base_model(**given).last_hidden_state, rtol=0, atol=0)
        logits = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", dtype=torch.float32)(**given).logits
        torch.testing.assert_close(logits, model.lm(**given).logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_layer_is_the_masked_lm_s_own(kind):
    model = retromae(kind)
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"lm", "decoder"}
    assert names[: names.index("decoder.query.weight")] == [f"lm.{name}" for name, _ in model.lm.named_parameters()]
    layer = model.lm.get_output_embeddings()
    assert model.vocabulary.weight is layer.weight
    assert model.vocabulary.bias is layer.bias
