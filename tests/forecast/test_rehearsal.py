"""A rehearsed pass: operations as counted by hand, parameters of the real model, bytes as autograd saves them."""

import pytest
import torch
from transformers import BertConfig, BertModel

from bgetrain.forecast.passes import Encoder, Setting, auto_encoder, backbone, bi_encoder, counts, encoded, rebuilt
from bgetrain.loss.retromae import dupmae, mlm, retromae

BASE = Encoder(BertConfig(), "cls", None)
SMALL = BertConfig(
    vocab_size=1000,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=128,
)
PLAIN = BertConfig.from_dict({**SMALL.to_dict(), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
THREE = Encoder(BertConfig(num_hidden_layers=3), "cls", None)
OBJECTIVES = {
    "retromae": retromae(query="position"),
    "dupmae": dupmae(query="embedding", bag_of_words_weight=0.1, repeated="once"),
    "mlm": mlm(),
}


def test_operations_of_bert_base_are_two_for_each_weight_of_its_layers_and_token_and_four_for_each_pair_of_tokens():
    """Of 64 texts of 128 tokens: 12 layers of 4 D^2 + 2 D I weights, products with keys and values of 4 L D a token; exact."""
    setting = Setting("cuda", torch.bfloat16, False, False)
    found = encoded(bi_encoder(BASE, setting), setting, 64, 128, training=True)
    tokens, weights = 64 * 128, 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 4 * 128 * 768 * tokens
    assert weights == 84_934_656
    assert found.forward_flops == 2 * weights * tokens + attention
    # going back: two products for each, and fused attention makes its scores anew
    assert found.flops == 3 * 2 * weights * tokens + 3.5 * attention


def test_checkpointing_computes_the_forward_pass_of_the_layers_anew_and_keeps_their_inputs_alone():
    plain, checkpointed = (
        encoded(bi_encoder(THREE, setting), setting, 64, 128, training=True)
        for setting in (Setting("cuda", torch.bfloat16, on, False) for on in (False, True))
    )
    assert checkpointed.flops == plain.flops + plain.forward_flops
    tokens = 64 * 128
    embedding = tokens * 768 * (2 + 1)  # the embedding layer: LayerNorm's input, and a byte of dropout
    inputs = 3 * tokens * 768 * 2
    assert inputs <= checkpointed.kept - embedding <= 1.02 * inputs
    # 8 D + 2 I numbers a token and layer, two bytes of dropout, a log-sum-exp for each head
    by_hand = 3 * tokens * ((8 * 768 + 2 * 3072) * 2 + 2 * 768 + 4 * 12)
    assert plain.kept == pytest.approx(by_hand + embedding, rel=0.02)


def test_parameters_are_those_of_the_real_models():
    base = counts(backbone(BASE, Setting("cuda", torch.float32, False, True), masked_lm=False))
    real = BertModel(BertConfig.from_dict(SMALL.to_dict()), add_pooling_layer=False)
    assert base == (108_891_648, 0, 30522 * 768)  # google-bert/bert-base-uncased, 109,482,240 with its pooler
    assert counts(backbone(BASE._replace(config=SMALL), Setting("cpu", torch.float32, False, True), masked_lm=False))[0] == sum(
        each.numel() for each in real.parameters()
    )


def saved(module, chunk) -> int:
    """Bytes that a real pass saves, each storage once, without parameters."""
    held = {each.untyped_storage().data_ptr() for each in [*module.parameters(), *module.buffers()]}
    seen, kept = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module([0], *chunk)[0]
    del output
    return sum(seen.values())


@pytest.mark.parametrize("dropped", [False, True])
def test_what_a_packed_pass_keeps_is_what_autograd_saves_in_a_real_one(dropped):
    """8 texts of 100 tokens on a CPU; within 2 %, for a few small tensors are held by others than autograd."""
    config = SMALL if dropped else PLAIN
    setting = Setting("cpu", torch.float32, False, True)
    found = encoded(bi_encoder(Encoder(config, "cls", None), setting), setting, 8, 100, training=True)
    from bgetrain.model.bi_encoder import BiEncoder

    real = BiEncoder(BertModel(BertConfig.from_dict(config.to_dict()), add_pooling_layer=False), "cls", packed=True).train()
    assert found.kept == pytest.approx(saved(real, (torch.ones(800, dtype=torch.int64), torch.full((8,), 100))), rel=0.02)
    assert found.peak > found.kept


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_objective_of_masked_auto_encoding_is_rehearsed(name, device):
    """The bag of words adds an fp32 gradient as large as the vocabulary layer; the decoder a layer's activations."""
    objective, setting = OBJECTIVES[name], Setting(device, torch.float32, False, True)
    found = {}
    for each in (name, "mlm"):
        module = auto_encoder(Encoder(SMALL, "cls", None), setting, OBJECTIVES[each])
        found[each] = rebuilt(module, setting, OBJECTIVES[each], 8, 64, ratio=0.3, specials=2)
    assert found[name].kept > 0
    if objective.bag_of_words:
        without = auto_encoder(Encoder(SMALL, "cls", None), setting, OBJECTIVES["retromae"])
        alone = rebuilt(without, setting, OBJECTIVES["retromae"], 8, 64, ratio=0.3, specials=2)
        assert found[name].kept >= alone.kept + 4 * SMALL.vocab_size * SMALL.hidden_size
    elif name == "retromae":
        assert found[name].kept > found["mlm"].kept + 8 * 64 * 64 * (8 * 4)
