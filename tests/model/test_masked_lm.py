"""What each architecture's parts are called, and what is refused."""

import pytest
import torch
from model import backbones
from transformers import AlbertConfig, AutoModel, DebertaV2Config

from bgetrain.model import body, folder, masked_lm

KINDS = list(masked_lm.ARCHITECTURES)
LOAD = dict(dropout=None, pooling="cls", gradient_checkpointing=False, masked_lm=True, vocabulary=None)
LOAD |= dict(lora=None, lora_scale=2.0, lora_dropout=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_a_head_gets_a_fresh_one_by_the_seed_and_keeps_its_pooler(kind, model_folder, tmp_path):
    bare = AutoModel.from_config(backbones.tiny(kind).config)
    backbones.perturb(bare)
    bare.save_pretrained(tmp_path / "bare")
    first, again, other = (
        body.pretrained(str(tmp_path / "bare"), tokenizer=str(model_folder), seed=seed, **LOAD) for seed in (1, 1, 2)
    )
    for name, each in first.backbone.base_model.named_parameters():
        assert torch.equal(each, bare.get_parameter(name)), name
    states = torch.randn(3, 32)
    heads = [(each.backbone.get_output_embeddings(), each.backbone) for each in (first, again, other)]
    logits = [vocabulary(masked_lm.before_vocabulary(lm, states)) for vocabulary, lm in heads]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])

    weights = {name: each.detach() for name, each in first.backbone.named_parameters()}
    given = dict(pooling="cls", max_len=20, query_instruction="")
    folder.save(tmp_path / "again", first.backbone, {**weights, **first.unused}, first.tokenizer, **given)
    whole = AutoModel.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert whole.state_dict().keys() == bare.state_dict().keys()
    assert all(torch.equal(each, bare.state_dict()[name]) for name, each in whole.state_dict().items())
    assert bool(first.unused) == any("pooler" in name for name in bare.state_dict())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in backbones.ROTARY])
def test_a_text_may_have_as_many_tokens_as_there_are_positions(kind, model_folder, tmp_path):
    lm = backbones.tiny(kind)
    lm.save_pretrained(tmp_path)
    longest = body.pretrained(str(tmp_path), tokenizer=str(model_folder), seed=1, **LOAD).max_positions
    ids = torch.full((1, longest), 7)
    table = lm.base_model.embeddings.position_embeddings.weight
    assert masked_lm.position_embeddings(lm, ids)[0, -1].equal(table[-1])
    assert masked_lm.encoded(lm, ids, None).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        masked_lm.encoded(lm, torch.full((1, longest + 1), 7), None)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", dict(intermediate_size=48, hidden_act="relu", layer_norm_eps=1e-3, hidden_dropout_prob=0.2)),
        ("distilbert", dict(hidden_dim=48, activation="relu", dropout=0.2)),
        ("modernbert", dict(intermediate_size=48, hidden_activation="relu", norm_eps=1e-3, mlp_dropout=0.2)),
        ("eurobert", dict(intermediate_size=48, hidden_act="relu", rms_norm_eps=1e-3)),
    ],
)
def test_the_decoder_is_a_layer_like_the_backbone_s(kind, changes):
    attention = "attention_probs_dropout_prob" if kind == "bert" else "attention_dropout"
    layer = masked_lm.layer(backbones.tiny(kind, **{attention: 0.3}, **changes).config)
    assert layer == masked_lm.Layer(
        hidden_size=32,
        num_heads=2,
        head_size=24 if kind == "eurobert" else 16,
        intermediate_size=48,
        activation="relu",
        norm_eps=1e-12 if kind == "distilbert" else 1e-3,
        dropout=0.0 if kind == "eurobert" else 0.2,
        attention_dropout=0.3,
        initializer_range=0.2,
    )


@pytest.mark.parametrize("config", [AlbertConfig(), DebertaV2Config()], ids=lambda config: config.model_type)
def test_an_architecture_that_is_not_served_is_named_with_those_that_are(config):
    message = rf"config\.model_type of the backbone is '{config.model_type}', .* must be one of bert, ernie, .*, eurobert$"
    with pytest.raises(ValueError, match=message):
        masked_lm.layer(config)


def test_embeddings_narrower_than_the_layers_are_refused():
    config = backbones.tiny("electra", embedding_size=16).config
    with pytest.raises(ValueError, match=r"config\.embedding_size of the backbone is 16 and config\.hidden_size 32"):
        masked_lm.layer(config)
