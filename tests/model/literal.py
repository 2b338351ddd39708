"""RetroMAE's decoder, literally: plain operations on whole tensors, additive masks, one head at a time; no dropout.

Written from the formulas of the papers' code and, for rotary backbones, of Su et al. 2021 with complex numbers; the encoder is
transformers' own forward pass. What is slow here is what the fast path avoids: logits over the vocabulary at every position.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# of each architecture: modules of the MLM head and of the embeddings' norm, the norms' epsilon, the activation of the layers
BERT_HEAD = ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder")
ROBERTA_HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
HEADS = {
    "bert": BERT_HEAD,
    "ernie": BERT_HEAD,
    "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head"),
    "roberta": ROBERTA_HEAD,
    "xlm-roberta": ROBERTA_HEAD,
    "camembert": ROBERTA_HEAD,
    "mpnet": ROBERTA_HEAD,
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    "modernbert": ("head.dense", "head.norm", "decoder"),
    "nomic_bert": ("cls.predictions.transform.dense", "cls.predictions.transform.layer_norm", "cls.predictions.decoder"),
    "gte": ROBERTA_HEAD,
    "eurobert": ("", "", "lm_head"),
}


def losses(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Token-mean cross-entropy of encoder and decoder.

    Args:
        model: a `RetroMAE` with dropout 0.
        batch: arguments of its forward pass but `score`.
    """
    encoder, decoder = logits(model, batch)
    clean = batch["clean_ids"]
    return tuple(
        functional.cross_entropy(each.flatten(0, 1), clean.masked_fill(~batch[where], -100).flatten())
        for each, where in ((encoder, "encoder_at"), (decoder, "decoder_at"))
    )


def logits(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits of encoder and decoder at all positions, [N, L, V] each."""
    states = model.lm.base_model(input_ids=batch["encoder_ids"], attention_mask=batch["mask"]).last_hidden_state
    cls = states[:, :1]
    decoding = Decoding(model)
    clean = batch["clean_ids"]
    context = torch.cat([cls, decoding.embedding(clean)[:, 1:]], dim=1)
    if model.query == "embedding":
        query = decoding.embedding(cls.expand_as(context))
    else:
        query = decoding.position(clean.shape[1]) + cls.expand_as(context)
    return decoding.head(states), decoding.head(decoding.layer(query, context, batch["visible"]))


class Decoding:
    """The formulas, on a model's weights by name."""

    def __init__(self, model: Any) -> None:
        self.weight = dict(model.named_parameters(remove_duplicate=False))
        self.config = model.lm.config
        self.kind = self.config.model_type
        self.table = f"lm.{model.lm.base_model_prefix}.embeddings."
        self.num_heads = self.config.num_attention_heads

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weight.get(f"{name}.bias")
        product = x @ self.weight[f"{name}.weight"].T
        return product if bias is None else product + bias

    def norm(self, name: str, x: Tensor) -> Tensor:
        epsilon = {"modernbert": "norm_eps", "eurobert": "rms_norm_eps"}.get(self.kind, "layer_norm_eps")
        centred = x - x.mean(dim=-1, keepdim=True)
        spread = (centred.pow(2).mean(dim=-1, keepdim=True) + getattr(self.config, epsilon, 1e-12)).sqrt()
        scaled = centred / spread * self.weight[f"{name}.weight"]
        return scaled + self.weight[f"{name}.bias"] if f"{name}.bias" in self.weight else scaled

    def activation(self, x: Tensor) -> Tensor:
        if self.kind in ("nomic_bert", "eurobert"):
            return x * torch.sigmoid(x)
        return gelu(x)

    def position(self, length: int) -> Tensor:
        """Position embeddings [L, D]; 0 where angles tell positions apart."""
        table = self.weight.get(self.table + "position_embeddings.weight")
        if table is None:
            return torch.zeros(length, self.config.hidden_size)
        padding = self.config.pad_token_id
        first = padding + 1 if self.kind in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
        return table[first : first + length]

    def embedding(self, words: Tensor) -> Tensor:
        """The embedding layer, of token ids [N, L] or of vectors [N, L, D] in the place of word embeddings."""
        if self.kind == "eurobert":
            return words if words.is_floating_point() else self.weight["lm.model.embed_tokens.weight"][words]
        name = "tok_embeddings" if self.kind == "modernbert" else "word_embeddings"
        total = words if words.is_floating_point() else self.weight[f"{self.table}{name}.weight"][words]
        total = total + self.position(words.shape[1])
        for kind in ("token_type", "task_type"):
            if f"{self.table}{kind}_embeddings.weight" in self.weight:
                total = total + self.weight[f"{self.table}{kind}_embeddings.weight"][0]
        return self.norm(self.table + ("norm" if self.kind == "modernbert" else "LayerNorm"), total)

    def turned(self, x: Tensor) -> Tensor:
        """A head's queries or keys [N, L, E] turned by their positions' angles."""
        angles = getattr(self.config, "rope_parameters", None)
        if angles is None:
            return x
        theta = angles.get("full_attention", angles)["rope_theta"]
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
        pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def layer(self, query: Tensor, context: Tensor, visible: Tensor) -> Tensor:
        """The enhanced decoder, [N, L, D]."""
        additive = torch.where(visible, 0.0, torch.finfo(torch.float32).min)
        q, k, v = (
            self.linear(f"decoder.{name}", x).chunk(self.num_heads, dim=-1)
            for name, x in (("query", query), ("key", context), ("value", context))
        )
        heads = []
        for i in range(self.num_heads):
            scores = self.turned(q[i]) @ self.turned(k[i]).transpose(1, 2) / math.sqrt(q[i].shape[-1]) + additive
            heads.append(scores.softmax(dim=-1) @ v[i])
        attended = self.linear("decoder.attention_output", torch.cat(heads, dim=-1))
        hidden = self.norm("decoder.attention_norm", attended + query)
        inner = self.activation(self.linear("decoder.intermediate", hidden))
        return self.norm("decoder.output_norm", self.linear("decoder.output", inner) + hidden)

    def head(self, states: Tensor) -> Tensor:
        """The MLM head, [N, L, V]."""
        dense, norm, vocabulary = HEADS[self.kind]
        if dense:
            # the heads of nomic_bert take the layers' activation, those of the others GELU
            inner = self.linear(f"lm.{dense}", states)
            states = self.norm(f"lm.{norm}", self.activation(inner) if self.kind == "nomic_bert" else gelu(inner))
        return self.linear(f"lm.{vocabulary}", states)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
