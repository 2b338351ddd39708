"""Adapters on encoders of two kinds of linear layer, held against peft's own merge."""

import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from bgetrain.model import lora

ADAPT = dict(path="some/model", rank=3, scale=1.5, dropout=0.0, seed=2)


def backbone(kind: str):
    torch.manual_seed(1)
    if kind == "gpt2":  # its weights are [inputs, outputs]
        return GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()
    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()


def drawn(model) -> dict[str, torch.Tensor]:
    """Adapters away from their start, where B is 0."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_merged_weights_are_those_of_peft_and_embed_like_the_adapters_to_1e_6(kind, tmp_path):
    from peft import PeftModel

    adapted, ids = backbone(kind), torch.arange(20).view(2, 10)
    before = adapted(input_ids=ids).last_hidden_state
    adapters = lora.adapt(adapted, **ADAPT)
    assert torch.equal(adapted(input_ids=ids).last_hidden_state, before)
    trained = drawn(adapted)
    assert set(trained) == {f"{layer}.lora_{part}.default.weight" for layer in adapters.layers for part in "AB"}
    plain = backbone(kind)
    weights = lora.merged(adapters, trained)
    plain.load_state_dict(weights)
    assert_close(plain(input_ids=ids).last_hidden_state, adapted(input_ids=ids).last_hidden_state, rtol=0, atol=1e-5)
    lora.save(tmp_path, adapters, trained)
    reference = PeftModel.from_pretrained(backbone(kind), tmp_path).merge_and_unload().state_dict()
    for name, each in reference.items():
        assert_close(weights[name], each, rtol=0, atol=1e-6)


def test_the_adapter_of_an_encoder_without_pooler_loads_onto_one_with_it_and_leaves_the_pooler_alone(tmp_path):
    """24 adapted layers of 4: enough for peft to shorten their names to suffixes such as `dense`, the pooler's too."""
    from peft import PeftModel

    sizes = dict(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24)
    adapters = lora.adapt(without := BertModel(BertConfig(**sizes), add_pooling_layer=False), **ADAPT)
    lora.save(tmp_path, adapters, drawn(without))
    loaded = PeftModel.from_pretrained(BertModel(BertConfig(**sizes)), tmp_path)
    found = {name for name, each in loaded.named_modules() if hasattr(each, "lora_A")}
    assert found == {f"base_model.model.{name}" for name in adapters.layers}
    assert len(found) == 24


def test_adapters_are_drawn_by_the_seed():
    first, again, other = (backbone("bert") for _ in range(3))
    for model, seed in ((first, 2), (again, 2), (other, 4)):
        lora.adapt(model, **(ADAPT | {"seed": seed}))
    name = "encoder.layer.0.attention.self.query.lora_A.default.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^model\.lora=3 needs peft, which is not installed: pip install peft$"):
        lora.adapt(backbone("bert"), **ADAPT)
