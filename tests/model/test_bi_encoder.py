"""Embeddings: unit length, fp32, and the same whatever a text is padded with or stands beside."""

import pytest
import torch
from transformers import BertConfig, BertModel

from bgetrain.model import bi_encoder


class BiEncoder(bi_encoder.BiEncoder):
    """The embeddings alone."""

    def forward(self, *arguments):
        return super().forward(*arguments)[0]


CONFIG = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return BertModel(BertConfig(**CONFIG, max_position_embeddings=32, initializer_range=0.2), add_pooling_layer=False).eval()


def chunk(*rows: list[int], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(width, *map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[place < len(row) for place in range(width)] for row in rows])


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_and_company_do_not_change_an_embedding(backbone, pooling):
    model = BiEncoder(backbone, pooling, packed=False)
    text, other = [2, 11, 12, 13, 3], [2, 21, 22, 23, 24, 25, 26, 3]
    with torch.inference_mode():
        alone = model(None, torch.tensor([text]), None)[0]
        for ids, mask in (chunk(text, width=12), chunk(text, other), chunk(text, [2, 3], width=20)):
            torch.testing.assert_close(model(None, ids, mask)[0], alone, rtol=0, atol=2e-6)
        assert not torch.allclose(model(None, torch.tensor([other]), None)[0], alone, atol=0.01)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_embeddings_are_the_pooled_states_at_length_one(backbone, pooling):
    ids, mask = chunk([2, 11, 12, 3], [2, 21, 3])
    with torch.inference_mode():
        states = backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        embeddings = BiEncoder(backbone, pooling, packed=False)(None, ids, mask)
    for row, length in ((0, 4), (1, 3)):
        real = states[row, :length]
        expected = {"cls": real[0], "mean": real.sum(0) / length, "last": real[-1]}[pooling]
        torch.testing.assert_close(embeddings[row], expected / expected.square().sum().sqrt(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_embeddings_are_fp32_and_of_length_one_also_from_bf16(backbone):
    torch.manual_seed(0)
    half = BertModel(BertConfig(**CONFIG), add_pooling_layer=False).bfloat16().eval()
    with torch.inference_mode():
        embeddings = BiEncoder(half, "mean", packed=False)(None, *chunk([2, 11, 12, 3], [2, 3]))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2), rtol=0, atol=1e-6)  # normalised after the cast


def test_several_chunks_in_one_call_are_those_of_several_calls(backbone):
    model = BiEncoder(backbone, "cls", packed=False)
    first, second = chunk([2, 11, 3], [2, 12, 13, 3]), (torch.tensor([[2, 14, 15, 3]]), None)
    with torch.inference_mode():
        together = model(None, *first, *second)
        torch.testing.assert_close(together, torch.cat([model(None, *first), model(None, *second)]), rtol=0, atol=0)


def test_a_chunk_s_seed_decides_its_dropout():
    torch.manual_seed(0)
    model = BiEncoder(
        BertModel(BertConfig(**CONFIG, hidden_dropout_prob=0.5), add_pooling_layer=False).train(), "cls", packed=False
    )
    one = (torch.tensor([[2, 11, 12, 3]]), None)
    first, again, other = model([7, 8], *one, *one), model([7, 8], *one, *one), model([9, 8], *one, *one)
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[1], atol=0.01)
    assert torch.equal(first[1], other[1])
    assert not torch.allclose(first[0], other[0], atol=0.01)
