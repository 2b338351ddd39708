"""RetroMAE's model against a literal re-implementation in plain tensor operations with additive masks."""

import functools
from collections.abc import Callable

import pytest
import torch
from model import backbones, literal
from model.backbones import LENGTHS, gradients, inputs, plain, retromae, seen
from torch import Tensor
from torch.nn import functional

from bgetrain.model import masked_lm
from bgetrain.model.dropout import FastDropout, replace_dropout
from bgetrain.model.retromae import EnhancedDecoder
from bgetrain.types import Predictions

KINDS = list(masked_lm.ARCHITECTURES)
QUERIES = ["position", "embedding"]
# one for each way to have positions: learnt, learnt from padding_idx + 1, rotary
THREE = ["bert", "roberta", "modernbert"]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_a_literal_decoder(kind, query):
    model, batch = retromae(kind, query), inputs()
    ours = model(plain, **batch)
    theirs = literal.losses(model, batch)
    torch.testing.assert_close((ours[1]["encoder"], ours[1]["decoder"]), theirs, rtol=1e-5, atol=1e-5)
    expected = gradients(model, sum(theirs))
    torch.testing.assert_close(gradients(model, ours[0]), expected, rtol=1e-4, atol=2e-6)
    # a key's bias shifts all scores of a row alike
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if not ("key" in name and "bias" in name))


def test_logits_at_the_labels_equal_a_literal_decoder_where_nothing_is_padding():
    model, batch = retromae(), inputs([9, 9])
    predictions, *ours = seen(model, batch)
    encoder, decoder = literal.logits(model, batch)
    assert batch["mask"] is None
    torch.testing.assert_close(ours, [encoder[batch["encoder_at"]], decoder[batch["decoder_at"]]], rtol=1e-5, atol=1e-5)
    assert predictions.encoder_targets.equal(batch["clean_ids"][batch["encoder_at"]])
    assert predictions.decoder_targets.equal(batch["clean_ids"][batch["decoder_at"]])
    assert predictions.num_texts == 2


def test_a_decoder_with_another_query_gives_other_losses():
    batch = inputs()
    position, embedding = (retromae(query=query)(plain, **batch)[1]["decoder"] for query in QUERIES)
    assert (position - embedding).abs() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_text_gives_the_same_logits_as_alone(kind):
    model, batch = retromae(kind).eval(), inputs()
    _, encoder, decoder = seen(model, batch)
    for text, length in enumerate(LENGTHS):
        alone = {name: value[text : text + 1, :length] for name, value in batch.items() if name != "mask"}
        alone["visible"] = alone["visible"][:, :, :length]
        own = [batch[name].nonzero()[:, 0] == text for name in ("encoder_at", "decoder_at")]
        _, *expected = seen(model, {"mask": None, **alone})
        torch.testing.assert_close([encoder[own[0]], decoder[own[1]]], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_may_not_see_a_column_does_not_depend_on_its_token(kind):
    model, batch = retromae(kind).eval(), inputs([12])
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
    model, batch = retromae(kind).eval(), inputs([12])
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
    model, batch = retromae(), inputs(lengths)
    batch["visible"] &= torch.tensor(lengths)[:, None, None] > 1
    assert not batch["visible"].any(dim=-1).all()
    everywhere = torch.ones_like(batch["decoder_at"])
    loss, _ = model(plain, **batch | {"encoder_at": everywhere, "decoder_at": everywhere})
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())


def test_a_row_that_sees_nothing_attends_to_the_embedding():
    decoder = retromae().decoder
    query, context = torch.randn(2, 1, 6, 32).unbind(0)
    nothing = torch.zeros(1, 6, 6, dtype=torch.bool)
    embedding_only = nothing.index_fill(2, torch.tensor([0]), True)
    # Never an empty softmax, whatever a kernel makes of one
    assert torch.equal(decoder(query, context, nothing, None), decoder(query, context, embedding_only, None))


@pytest.mark.parametrize("bag_of_words", [False, True])
def test_a_chunk_without_labels_has_a_graph_and_zero_gradient(bag_of_words):
    model, batch = retromae(bag_of_words=bag_of_words), inputs()
    nowhere = torch.zeros_like(batch["decoder_at"])

    def score(predictions: Predictions, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        logits = [functional.linear(each, weight, bias) for each in (predictions.encoder, predictions.decoder)]
        assert logits[0].shape == logits[1].shape == (0, 200)
        return sum(each.sum() for each in logits), {}

    loss, _ = model(score, **batch | {"encoder_at": nowhere, "decoder_at": nowhere})
    assert not any(each.any() for each in gradients(model, loss).values())


@pytest.mark.parametrize("kind", THREE)
def test_the_bag_of_words_sees_every_token_but_the_first_and_padding(kind):
    model, batch = retromae(kind, bag_of_words=True).eval(), inputs()
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
    without = seen(retromae(kind).eval(), batch)[0]
    assert (without.words, without.word_texts, without.bag, without.bag_texts) == (None, None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_query_it_is_the_masked_lm_of_transformers(kind):
    model, batch = retromae(kind, query=None), inputs() | {"visible": None}
    labels = batch["clean_ids"].masked_fill(~batch["encoder_at"], -100)
    theirs = model.lm(input_ids=batch["encoder_ids"], attention_mask=batch["mask"], labels=labels).loss
    ours, metrics = model(plain, **batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert list(metrics) == ["encoder"]
    assert seen(model, batch)[0].decoder.shape == (0, 32)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"lm"}
    torch.testing.assert_close(gradients(model, ours), gradients(model, theirs), rtol=1e-4, atol=1e-6)


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
