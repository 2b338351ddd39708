"""RetroMAE's model against a literal re-implementation in plain tensor operations with additive masks."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from bgetrain.model.retromae import RetroMAE

LENGTHS = [11, 7, 3]


def tiny(**changes) -> RetroMAE:
    """A model of width 32 with 2 layers and 2 heads, 200 tokens, dropout 0 unless changed."""
    settings = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) | changes
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=24, initializer_range=0.2, **settings,
    )  # fmt: skip
    model = RetroMAE(BertForMaskedLM(config))
    with torch.no_grad():  # biases and norms away from 0 and 1, so that leaving one out shows
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(lengths: list[int] = LENGTHS, seed: int = 0) -> dict[str, Tensor | None]:
    """Texts padded together with random masks under the rules: row i hides i, column 0 is open but to row 0."""
    generator = torch.Generator().manual_seed(seed)
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    clean = torch.randint(5, 200, (count, longest), generator=generator).masked_fill(~mask, 0)
    encoder_at = (torch.rand(count, longest, generator=generator) < 0.4) & mask
    visible = torch.rand(count, longest, longest, generator=generator) < 0.5
    visible[:, :, 0] = True
    visible[:, 0, 1:2] = True
    visible &= ~torch.eye(longest, dtype=torch.bool) & mask[:, None, :] & mask[:, :, None]
    decoder_at = mask.clone()
    decoder_at[:, 0] = False
    return dict(
        encoder_ids=clean.masked_fill(encoder_at, 4),
        mask=None if mask.all() else mask,
        encoder_at=encoder_at,
        clean_ids=clean,
        visible=visible,
        decoder_at=decoder_at,
    )


def reference(model: RetroMAE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits at all positions, [N, L, V] twice, by the formulas of the paper's code; dropout 0."""
    weight = dict(model.named_parameters())
    _, length = batch["clean_ids"].shape

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        spread = (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-12).sqrt()
        return centred / spread * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    output = model.lm(batch["encoder_ids"], attention_mask=batch["mask"], output_hidden_states=True)
    cls = output.hidden_states[-1][:, :1]
    table = "lm.bert.embeddings."
    position = weight[table + "position_embeddings.weight"][:length]
    kind = weight[table + "token_type_embeddings.weight"][0]
    embedded = norm(table + "LayerNorm", weight[table + "word_embeddings.weight"][batch["clean_ids"]] + position + kind)
    context = torch.cat([cls, embedded[:, 1:]], dim=1)
    query = position + cls

    additive = torch.where(batch["visible"], 0.0, torch.finfo(torch.float32).min)
    q, k, v = (linear(f"decoder.{n}", x) for n, x in (("query", query), ("key", context), ("value", context)))
    heads = []
    for head in (slice(0, 16), slice(16, 32)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / 4 + additive
        heads.append(scores.exp() / scores.exp().sum(-1, keepdim=True).clamp(min=1e-30) @ v[..., head])
    hidden = norm("decoder.attention_norm", linear("decoder.attention_output", torch.cat(heads, -1)) + query)
    inner = gelu(linear("decoder.intermediate", hidden))
    hidden = norm("decoder.output_norm", linear("decoder.output", inner) + hidden)

    head = "lm.cls.predictions."
    hidden = norm(head + "transform.LayerNorm", gelu(linear(head + "transform.dense", hidden)))
    return output.logits, hidden @ weight[table + "word_embeddings.weight"].T + weight[head + "bias"]


def gradients(model: nn.Module, logits: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of both cross-entropies, by parameter name."""
    model.zero_grad()
    clean = batch["clean_ids"]
    loss = functional.cross_entropy(logits[0], clean[batch["encoder_at"]])
    loss = loss + functional.cross_entropy(logits[1], clean[batch["decoder_at"]])
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("lengths", [LENGTHS, [9, 9]])
def test_logits_and_gradients_equal_a_literal_decoder(lengths):
    model, batch = tiny(), inputs(lengths)
    ours = model(**batch)
    everywhere = reference(model, batch)
    theirs = everywhere[0][batch["encoder_at"]], everywhere[1][batch["decoder_at"]]
    assert ours[0].shape == (int(batch["encoder_at"].sum()), 200)
    assert ours[1].shape == (sum(lengths) - len(lengths), 200)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = gradients(model, theirs, batch)
    torch.testing.assert_close(gradients(model, model(**batch), batch), expected, rtol=1e-4, atol=1e-6)
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if "key.bias" not in name)


def test_a_padded_text_gives_the_same_logits_as_alone():
    model, batch = tiny().eval(), inputs()
    encoder, decoder = model(**batch)
    for text, length in enumerate(LENGTHS):
        alone = {name: value[text : text + 1, :length] for name, value in batch.items() if name != "mask"}
        alone["visible"] = alone["visible"][:, :, :length]
        own = [batch[name].nonzero()[:, 0] == text for name in ("encoder_at", "decoder_at")]
        expected = model(mask=None, **alone)
        torch.testing.assert_close((encoder[own[0]], decoder[own[1]]), expected, rtol=1e-5, atol=1e-5)


def test_a_row_that_may_not_see_a_column_does_not_depend_on_its_token():
    model, batch = tiny().eval(), inputs([12])
    column = 5
    seers = batch["visible"][0, 1:, column]
    assert 0 < seers.sum() < 11
    before = model(**batch)[1]
    changed = batch["clean_ids"].clone()
    changed[0, column] = (changed[0, column] + 1) % 200
    moved = (model(**batch | {"clean_ids": changed})[1] - before).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == seers.tolist()


@pytest.mark.parametrize("lengths", [[6, 1], [1, 1]])
def test_rows_that_see_nothing_are_finite_forward_and_backward(lengths):
    model, batch = tiny(), inputs(lengths)
    batch["visible"] &= torch.tensor(lengths)[:, None, None] > 1
    assert not batch["visible"].any(dim=-1).all()
    everywhere = torch.ones_like(batch["decoder_at"])
    logits = model(**batch | {"encoder_at": everywhere, "decoder_at": everywhere})
    (logits[0].pow(2).mean() + logits[1].pow(2).mean()).backward()
    assert all(part.isfinite().all() for part in logits)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_row_that_sees_nothing_attends_to_the_embedding():
    decoder = tiny().decoder
    query, context = torch.randn(2, 1, 6, 32).unbind(0)
    nothing = torch.zeros(1, 6, 6, dtype=torch.bool)
    embedding_only = nothing.index_fill(2, torch.tensor([0]), True)
    # Never an empty softmax, whatever a kernel makes of one
    assert torch.equal(decoder(query, context, nothing), decoder(query, context, embedding_only))


def test_a_chunk_without_labels_has_a_graph_and_zero_gradient():
    model, batch = tiny(), inputs()
    nowhere = torch.zeros_like(batch["decoder_at"])
    encoder, decoder = model(**batch | {"encoder_at": nowhere, "decoder_at": nowhere})
    assert encoder.shape == decoder.shape == (0, 200)
    (encoder.sum() + decoder.sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_every_parameter_is_read_inside_its_own_module_only():
    # What ZeRO-3 does: a parameter is whole while its module runs, and empty otherwise
    model, batch = tiny().eval(), inputs()
    with torch.no_grad():
        expected = model(**batch)
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
        torch.testing.assert_close(model(**batch), expected, rtol=0, atol=0)


def test_gradient_checkpointing_recomputes_the_backbone_and_keeps_the_gradients():
    model, batch = tiny(), inputs()
    calls = []
    model.lm.bert.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    plain = gradients(model, model(**batch), batch)
    assert len(calls) == 1
    model.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = gradients(model.train(), model(**batch), batch)
    assert len(calls) == 3
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-7)


def test_bf16_runs_forward_and_backward_and_stays_near_fp32():
    model, batch = tiny(), inputs()
    expected = model(**batch)
    logits = model.bfloat16()(**batch)
    assert {part.dtype for part in logits} == {torch.bfloat16}
    for part, exact in zip(logits, expected, strict=True):
        assert (part - exact).abs().mean() < 0.03 * exact.abs().mean()
    assert all(gradient.isfinite().all() for gradient in gradients(model, logits, batch).values())


@pytest.mark.parametrize("dropout", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_decoder_drops_out_in_training_only(dropout):
    decoder = tiny(**{dropout: 0.5}).decoder
    query, context = torch.randn(2, 1, 6, 32).unbind(0)
    visible = torch.ones(1, 6, 6, dtype=torch.bool)
    assert not torch.equal(decoder(query, context, visible), decoder(query, context, visible))
    decoder.eval()
    assert torch.equal(decoder(query, context, visible), decoder(query, context, visible))


def test_new_weights_have_the_initial_spread_of_the_backbone_and_no_vocabulary():
    config = BertConfig(vocab_size=200, hidden_size=128, num_hidden_layers=1, num_attention_heads=2)
    decoder = RetroMAE(BertForMaskedLM(config)).decoder
    for name, parameter in decoder.named_parameters():
        assert 200 not in parameter.shape, "predictions go through the backbone's MLM head"
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(config.initializer_range, rel=0.05)
        else:
            assert (parameter == (1 if "norm.weight" in name else 0)).all()


def test_a_backbone_other_than_bert_is_refused_by_name():
    config = RobertaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    with pytest.raises(ValueError, match=r"config\.model_type .* must be 'bert' for RetroMAE, got 'roberta'"):
        RetroMAE(RobertaForMaskedLM(config))
