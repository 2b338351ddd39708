"""Texts laid end to end give the embeddings and gradients that they give padded."""

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, ModernBertConfig, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

from bgetrain.model.bi_encoder import BiEncoder
from bgetrain.model.dropout import FastDropout
from bgetrain.model.packed import BlockAttention, blocks_of, can_pack

SHAPE = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=1)
KINDS = {
    "bert": (BertModel, BertConfig), "roberta": (RobertaModel, RobertaConfig), "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig)
}  # fmt: skip
LENGTHS = [1, 3, 3, 3, 9, 10, 11, 12]
CPU = torch.device("cpu")


def built(kind: str, dropout: float = 0.0):
    torch.manual_seed(0)
    model, config = KINDS[kind]
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return model(config(**SHAPE, **drops, max_position_embeddings=20, initializer_range=0.3), add_pooling_layer=False)


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same texts as (flat ids, lengths) and as (padded ids, mask)."""
    rows = torch.randint(2, 50, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1)).split(LENGTHS)
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=1)
    return torch.cat(rows), torch.tensor(LENGTHS), padded, torch.arange(12) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_padded_with_its_gradients(kind, pooling, checkpointing):
    backbone = built(kind)
    ids, lengths, padded, mask = texts()
    aim = torch.randn(len(LENGTHS), 32, generator=torch.Generator().manual_seed(2))
    found = []
    for packed, chunk in ((False, (padded, mask)), (True, (ids, lengths))):
        model = BiEncoder(deepcopy(backbone), pooling, packed=packed).train()
        if checkpointing:
            model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        embeddings, _ = model([0], *chunk)
        (embeddings * aim).sum().backward()
        with torch.inference_mode():
            assert_close(model.eval()(None, *chunk)[0], embeddings.detach(), rtol=0, atol=2e-6)
        found.append((embeddings, {name: each.grad for name, each in model.named_parameters()}))
    (expected, gradients), (ours, our_gradients) = found
    assert_close(ours, expected, rtol=0, atol=2e-6)
    for name, gradient in gradients.items():
        assert_close(our_gradients[name], gradient, rtol=0, atol=2e-6 + 1e-5 * float(gradient.abs().max()), msg=name)


def test_attention_s_gradient_equals_finite_differences_with_dropout_too():
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randn(10, 2, 4, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(3)]

    def attend(*rows):
        torch.manual_seed(5)
        return BlockAttention.apply(*rows, blocks_of([3, 3, 4]), 0.5, 0.3)

    assert torch.autograd.gradcheck(attend, rows)
    assert not torch.equal(attend(*rows), BlockAttention.apply(*rows, blocks_of([3, 3, 4]), 0.5, 0.0))


def test_texts_of_like_length_share_a_block():
    blocks = blocks_of([1, 3, 3, 8, 9, 10, 40])
    assert [(block.texts, block.width, block.tokens) for block in blocks] == [(1, 1, 1), (2, 3, 6), (3, 10, 27), (1, 40, 40)]
    assert [block.padding is None for block in blocks] == [True, True, False, True]
    rows = torch.arange(27.0).view(27, 1, 1)
    assert torch.equal(blocks[2].gather(blocks[2].spread(rows)), rows)


def test_dropout_in_attention_keeps_the_mean():
    value = torch.ones(300, 2, 4)
    query = torch.zeros(300, 2, 4)
    torch.manual_seed(0)
    dropped = BlockAttention.apply(query, query, value, blocks_of([100] * 3), 1.0, 0.2)  # weights are 1/100 each
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(dropped[..., 0].std()) == pytest.approx((0.2 / 0.8 / 100) ** 0.5, rel=0.1)


def test_hidden_dropout_is_replaced_and_seeded_and_checkpointing_repeats_it():
    backbone = built("bert", dropout=0.3)
    model = BiEncoder(backbone, "cls", packed=True).train()
    assert any(isinstance(each, FastDropout) for each in model.modules())
    assert not any(type(each) is torch.nn.Dropout for each in model.modules())
    ids, lengths, *_ = texts()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        embeddings, _ = model([7], ids, lengths)
        embeddings.square().mul(torch.arange(32)).sum().backward()
        gradients.append([embeddings, *(each.grad for each in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert not torch.allclose(model([8], ids, lengths)[0], model([7], ids, lengths)[0], atol=0.01)


def test_only_encoders_known_to_keep_texts_apart_are_packed():
    assert can_pack(built("bert"), CPU)
    assert not can_pack(built("bert"), torch.device("cuda"))
    other = built("bert")
    other.config = ModernBertConfig()
    assert not can_pack(other, CPU)


def test_a_packed_backbone_saves_the_config_that_it_was_loaded_with(tmp_path):
    backbone = built("bert")
    before = backbone.config.to_json_string()
    BiEncoder(backbone, "cls", packed=True)
    assert backbone.config.to_json_string() == before
