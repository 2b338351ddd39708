"""The decoder beside the encoder: saved whole, loaded whole, or refused in one line."""

import re

import pytest
import torch
from model import backbones

from bgetrain.model import decoder_folder, masked_lm
from bgetrain.model.retromae import EnhancedDecoder


def decoder(seed: int = 1, **changes) -> EnhancedDecoder:
    layer = masked_lm.layer(backbones.tiny("bert").config)._replace(**changes)
    torch.manual_seed(seed)
    made = EnhancedDecoder(layer)
    backbones.perturb(made)
    return made


def save(folder, made: EnhancedDecoder, query: str = "position") -> None:
    weights = {name: each.detach() for name, each in made.named_parameters()}
    decoder_folder.save(folder, weights, query=query, model_type="bert", num_heads=made.num_heads)


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "decoder", decoder())
    return tmp_path / "decoder"


def refused(folder, made: EnhancedDecoder, reason: str) -> None:
    before = {name: each.clone() for name, each in made.state_dict().items()}
    with pytest.raises(ValueError, match=reason) as caught:
        decoder_folder.load(folder, made)
    assert str(caught.value).endswith("; decoder=fresh starts a new one")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(each, before[name]) for name, each in made.state_dict().items())


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    first, second = decoder(1), decoder(2)
    assert not torch.equal(first.query.weight, second.query.weight)
    save(tmp_path / "decoder", first.bfloat16())
    config = decoder_folder.load(tmp_path / "decoder", second)
    assert all(torch.equal(each.float(), second.state_dict()[name]) for name, each in first.state_dict().items())
    assert {each.dtype for each in second.parameters()} == {torch.float32}
    assert config == dict(query="position", model_type="bert", hidden_size=32, num_heads=2, intermediate_size=64)


def test_saving_again_replaces_and_leaves_nothing_beside(saved):
    other = decoder(2)
    save(saved, other, query="embedding")
    again = decoder()
    assert decoder_folder.load(saved, again)["query"] == "embedding"
    assert torch.equal(other.query.weight, again.query.weight)
    assert [each.name for each in saved.parent.iterdir()] == ["decoder"]


def test_a_save_that_fails_leaves_what_was_there(saved):
    with pytest.raises(KeyError):
        decoder_folder.save(saved, {"query.weight": torch.ones(2, 2)}, query="position", model_type="bert", num_heads=2)
    after = decoder(2)
    decoder_folder.load(saved, after)
    assert torch.equal(after.query.weight, decoder(1).query.weight)


def test_a_missing_file_is_named(saved):
    refused(saved.parent / "none", decoder(), "none: has no config.json")
    (saved / "decoder.safetensors").unlink()
    refused(saved, decoder(), "has no decoder.safetensors")


def test_a_damaged_file_is_named(saved):
    weights = (saved / "decoder.safetensors").read_bytes()
    for cut in (0, 5, 200, len(weights) - 1):
        (saved / "decoder.safetensors").write_bytes(weights[:cut])
        refused(saved, decoder(), "decoder.safetensors: is damaged or cut short")
    for text in ("", '{"query"', "[]", "{}"):
        (saved / "config.json").write_text(text, "utf8")
        refused(saved, decoder(), "config.json: is damaged")


def test_another_size_is_named_with_both_numbers(saved):
    refused(saved, decoder(intermediate_size=48), re.escape("intermediate.weight is [64, 32], but the model needs [48, 32]"))
    refused(saved, decoder(num_heads=4, head_size=8), "num_heads is 2, but the model has 4")
    refused(saved, decoder(hidden_size=16), re.escape("query.weight is [32, 32], but the model needs [32, 16]"))


def test_another_parameter_is_named(saved):
    made = decoder()
    made.extra = torch.nn.Parameter(torch.ones(1))
    refused(saved, made, "decoder.safetensors: extra is missing")
    del made.output_norm.bias
    del made.extra
    made.output_norm.register_parameter("bias", None)
    refused(saved, made, "decoder.safetensors: output_norm.bias is unknown")
