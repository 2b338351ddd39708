"""RetroMAE's model against a literal re-implementation in plain tensor operations with additive masks."""

import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from model import backbones, literal
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoModelForMaskedLM

from bgetrain.model import folder, masked_lm
from bgetrain.model.body import checkpoint_activations
from bgetrain.model.dropout import FastDropout, replace_dropout
from bgetrain.model.retromae import EnhancedDecoder, RetroMAE
from bgetrain.types import Predictions

LENGTHS = [11, 7, 3]
KINDS = list(masked_lm.ARCHITECTURES)
QUERIES = ["position", "embedding"]
# one for each way to have positions: learnt, learnt from padding_idx + 1, rotary
THREE = ["bert", "roberta", "modernbert"]


def tiny(kind: str = "bert", query: str | None = "position", bag_of_words: bool = False, **changes) -> RetroMAE:
    lm = backbones.tiny(kind, **changes)
    model = RetroMAE(lm, query=query, bag_of_words=bag_of_words)
    if model.decoder:
        backbones.perturb(model.decoder)
    return model


def inputs(lengths: list[int] = LENGTHS, seed: int = 0) -> dict[str, Tensor | None]:
    """Texts padded together with random masks under the rules: row i hides i, column 0 is open but to row 0."""
    generator = torch.Generator().manual_seed(seed)
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    clean = torch.randint(5, 200, (count, longest), generator=generator).masked_fill(~mask, 1)
    visible = torch.rand(count, longest, longest, generator=generator) < 0.5
    visible[:, :, 0] = True
    visible[:, 0, 1:2] = True
    visible &= ~torch.eye(longest, dtype=torch.bool) & mask[:, None, :] & mask[:, :, None]
    decoder_at = mask.clone()
    decoder_at[:, 0] = False
    encoder_at = (torch.rand(count, longest, generator=generator) < 0.4) & decoder_at
    return dict(
        encoder_ids=clean.masked_fill(encoder_at, 4),
        mask=None if mask.all() else mask,
        encoder_at=encoder_at,
        clean_ids=clean,
        visible=visible,
        decoder_at=decoder_at,
    )


def plain(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-mean cross-entropies on whole logits."""
    losses = [
        functional.cross_entropy(functional.linear(states, weight, bias), targets)
        for states, targets in (
            (predictions.encoder, predictions.encoder_targets),
            (predictions.decoder, predictions.decoder_targets),
        )
        if len(states)
    ]
    return sum(losses), dict(zip(("encoder", "decoder"), losses, strict=False))


def seen(model: RetroMAE, batch: dict[str, Tensor | None]) -> tuple[Predictions, Tensor, Tensor]:
    """Predictions, and logits of encoder [M, V] and decoder [K, V]."""
    kept = []

    def score(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        logits = (functional.linear(each, weight, bias) for each in (predictions.encoder, predictions.decoder))
        kept.append((predictions, *logits))
        return predictions.encoder.sum(), {}

    model(score, **batch)
    return kept[0]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_a_literal_decoder(kind, query):
    model, batch = tiny(kind, query), inputs()
    ours = model(plain, **batch)
    theirs = literal.losses(model, batch)
    torch.testing.assert_close((ours[1]["encoder"], ours[1]["decoder"]), theirs, rtol=1e-5, atol=1e-5)
    expected = gradients(model, sum(theirs))
    torch.testing.assert_close(gradients(model, ours[0]), expected, rtol=1e-4, atol=2e-6)
    # a key's bias shifts all scores of a row alike
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if not ("key" in name and "bias" in name))


def test_logits_at_the_labels_equal_a_literal_decoder_where_nothing_is_padding():
    model, batch = tiny(), inputs([9, 9])
    predictions, *ours = seen(model, batch)
    encoder, decoder = literal.logits(model, batch)
    assert batch["mask"] is None
    torch.testing.assert_close(ours, [encoder[batch["encoder_at"]], decoder[batch["decoder_at"]]], rtol=1e-5, atol=1e-5)
    assert predictions.encoder_targets.equal(batch["clean_ids"][batch["encoder_at"]])
    assert predictions.decoder_targets.equal(batch["clean_ids"][batch["decoder_at"]])
    assert predictions.num_texts == 2


def test_a_decoder_with_another_query_gives_other_losses():
    batch = inputs()
    position, embedding = (tiny(query=query)(plain, **batch)[1]["decoder"] for query in QUERIES)
    assert (position - embedding).abs() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_text_gives_the_same_logits_as_alone(kind):
    model, batch = tiny(kind).eval(), inputs()
    _, encoder, decoder = seen(model, batch)
    for text, length in enumerate(LENGTHS):
        alone = {name: value[text : text + 1, :length] for name, value in batch.items() if name != "mask"}
        alone["visible"] = alone["visible"][:, :, :length]
        own = [batch[name].nonzero()[:, 0] == text for name in ("encoder_at", "decoder_at")]
        _, *expected = seen(model, {"mask": None, **alone})
        torch.testing.assert_close([encoder[own[0]], decoder[own[1]]], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_may_not_see_a_column_does_not_depend_on_its_token(kind):
    model, batch = tiny(kind).eval(), inputs([12])
    column = 5
    seers = batch["visible"][0, 1:, column]
    assert 0 < seers.sum() < 11
    before = seen(model, batch)[2]
    changed = batch["clean_ids"].clone()
    changed[0, column] = 5 + (changed[0, column] + 1) % 190
    moved = (seen(model, batch | {"clean_ids": changed})[2] - before).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == seers.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_knows_where_a_token_stands(kind, monkeypatch):
    """Two tokens that change places, in a text whose embedding and masks stay as they are."""
    model, batch = tiny(kind).eval(), inputs([12])
    batch["visible"] |= ~torch.eye(12, dtype=torch.bool)
    order = torch.arange(12)
    order[[3, 8]] = order[[8, 3]]

    def change() -> Tensor:
        """Of the logits at all other places."""
        logits = [seen(model, batch | {"clean_ids": ids})[2] for ids in (batch["clean_ids"], batch["clean_ids"][:, order])]
        return (logits[0] - logits[1])[[0, 1, 3, 4, 5, 6, 8, 9, 10]].abs().max()

    assert change() > 1e-2
    if kind in backbones.ROTARY:
        monkeypatch.setattr(masked_lm, "rotation", lambda *_: (torch.ones(12, 1), torch.zeros(12, 1)))  # by 0
        assert change() < 1e-5


@pytest.mark.parametrize("lengths", [[6, 1], [1, 1]])
def test_rows_that_see_nothing_are_finite_forward_and_backward(lengths):
    model, batch = tiny(), inputs(lengths)
    batch["visible"] &= torch.tensor(lengths)[:, None, None] > 1
    assert not batch["visible"].any(dim=-1).all()
    everywhere = torch.ones_like(batch["decoder_at"])
    loss, _ = model(plain, **batch | {"encoder_at": everywhere, "decoder_at": everywhere})
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())


def test_a_row_that_sees_nothing_attends_to_the_embedding():
    decoder = tiny().decoder
    query, context = torch.randn(2, 1, 6, 32).unbind(0)
    nothing = torch.zeros(1, 6, 6, dtype=torch.bool)
    embedding_only = nothing.index_fill(2, torch.tensor([0]), True)
    # Never an empty softmax, whatever a kernel makes of one
    assert torch.equal(decoder(query, context, nothing, None), decoder(query, context, embedding_only, None))


@pytest.mark.parametrize("bag_of_words", [False, True])
def test_a_chunk_without_labels_has_a_graph_and_zero_gradient(bag_of_words):
    model, batch = tiny(bag_of_words=bag_of_words), inputs()
    nowhere = torch.zeros_like(batch["decoder_at"])

    def score(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        logits = [functional.linear(each, weight, bias) for each in (predictions.encoder, predictions.decoder)]
        assert logits[0].shape == logits[1].shape == (0, 200)
        return sum(each.sum() for each in logits), {}

    loss, _ = model(score, **batch | {"encoder_at": nowhere, "decoder_at": nowhere})
    assert not any(each.any() for each in gradients(model, loss).values())


@pytest.mark.parametrize("kind", THREE)
def test_the_bag_of_words_sees_every_token_but_the_first_and_padding(kind):
    model, batch = tiny(kind, bag_of_words=True).eval(), inputs()
    predictions, encoder, _ = seen(model, batch)
    assert predictions.word_texts.tolist() == [0] * 10 + [1] * 6 + [2] * 2
    weight, bias = model.vocabulary.weight, model.vocabulary.bias
    everywhere = model.lm(input_ids=batch["encoder_ids"], attention_mask=batch["mask"]).logits
    real = batch["mask"].clone()
    real[:, 0] = False
    words = functional.linear(predictions.words, weight, bias)
    torch.testing.assert_close(words, everywhere[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder, everywhere[batch["encoder_at"]], rtol=1e-5, atol=1e-5)
    assert predictions.bag.equal(batch["clean_ids"][batch["decoder_at"]])
    assert predictions.bag_texts.equal(batch["decoder_at"].nonzero()[:, 0])
    without = seen(tiny(kind).eval(), batch)[0]
    assert (without.words, without.word_texts, without.bag, without.bag_texts) == (None, None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_query_it_is_the_masked_lm_of_transformers(kind):
    model, batch = tiny(kind, query=None), inputs() | {"visible": None}
    labels = batch["clean_ids"].masked_fill(~batch["encoder_at"], -100)
    theirs = model.lm(input_ids=batch["encoder_ids"], attention_mask=batch["mask"], labels=labels).loss
    ours, metrics = model(plain, **batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert list(metrics) == ["encoder"]
    assert seen(model, batch)[0].decoder.shape == (0, 32)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"lm"}
    torch.testing.assert_close(gradients(model, ours), gradients(model, theirs), rtol=1e-4, atol=1e-6)


def test_random_words_that_are_padding_tokens_do_not_shift_positions():
    model, batch = tiny("roberta", query=None).eval(), inputs([12]) | {"visible": None}
    drawn = batch["encoder_ids"].clone()
    drawn[0, 4] = 1  # RoBERTa's padding_idx
    states = masked_lm.encoded(model.lm, drawn, None)
    torch.testing.assert_close(states, model.lm.roberta(drawn, position_ids=torch.arange(2, 14)[None]).last_hidden_state)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_read_inside_its_own_module_only(kind, query):
    # What ZeRO-3 does: a parameter is whole while its module runs, and empty otherwise
    model, batch = tiny(kind, query).eval(), inputs()
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
    model, batch = tiny(kind), inputs()
    calls = []
    layers = next(module for module in model.lm.modules() if isinstance(module, nn.ModuleList))
    next(layers[0].children()).register_forward_hook(lambda *_: calls.append(1))
    wanted = gradients(model, model(plain, **batch)[0])
    assert len(calls) == 1
    checkpoint_activations(model.lm)
    again = gradients(model.train(), model(plain, **batch)[0])
    assert len(calls) == 3
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=1e-7)
    assert not [str(each.message) for each in recwarn if "checkpointing" in str(each.message)]


def test_an_architecture_that_cannot_recompute_is_named():
    with pytest.raises(ValueError, match=r"model\.gradient_checkpointing=true: .* 'mpnet': set it to false"):
        checkpoint_activations(backbones.tiny("mpnet"))


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", THREE)
def test_bf16_runs_forward_and_backward_and_stays_near_fp32(kind, query):
    model, batch = tiny(kind, query), inputs()
    expected = seen(model, batch)[1:]
    logits = seen(model.bfloat16(), batch)[1:]
    assert {part.dtype for part in logits} == {torch.bfloat16}
    for part, exact in zip(logits, expected, strict=True):
        assert (part - exact).abs().mean() < 0.03 * exact.abs().mean()
    assert all(each.isfinite().all() for each in gradients(model, model(plain, **batch)[0]).values())


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_both_losses_and_the_saved_encoder_reloads_equal(kind, tmp_path):
    model, batch = tiny(kind), inputs()
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
    model = tiny(kind)
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"lm", "decoder"}
    assert names[: names.index("decoder.query.weight")] == [f"lm.{name}" for name, _ in model.lm.named_parameters()]
    layer = model.lm.get_output_embeddings()
    assert model.vocabulary.weight is layer.weight
    assert model.vocabulary.bias is layer.bias


def decoder_of(**changes) -> EnhancedDecoder:
    return EnhancedDecoder(masked_lm.layer(backbones.tiny("bert").config)._replace(**changes))


@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout"])
def test_decoder_drops_out_in_training_only(dropout):
    decoder = decoder_of(**{dropout: 0.5})
    query, context = torch.randn(2, 1, 6, 32).unbind(0)
    run: Callable[[], Tensor] = functools.partial(decoder, query, context, torch.ones(1, 6, 6, dtype=torch.bool), None)
    assert not torch.equal(run(), run())
    decoder.eval()
    assert torch.equal(run(), run())


def test_the_decoder_s_dropout_can_be_replaced_by_the_fast_one():
    decoder = decoder_of(dropout=0.5)
    replace_dropout(decoder)
    assert [type(each) for name, each in decoder.named_modules() if "dropout" in name] == [FastDropout]
    query, context = torch.randn(2, 1, 6, 32).unbind(0)
    run = functools.partial(decoder, query, context, torch.ones(1, 6, 6, dtype=torch.bool), None)
    assert not torch.equal(run(), run())


def test_new_weights_have_the_initial_spread_of_the_backbone_and_no_vocabulary():
    decoder = decoder_of(hidden_size=128, head_size=64, intermediate_size=512, initializer_range=0.02)
    for name, parameter in decoder.named_parameters():
        assert 200 not in parameter.shape, "predictions go through the backbone's MLM head"
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
        else:
            assert (parameter == (1 if "norm.weight" in name else 0)).all()
