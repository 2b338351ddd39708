"""The parts of a masked language model, whatever its architecture calls them.

Parts are looked up when they are called and never kept, so that others may take their places in between; and they are called,
never read for their weights: ZeRO-3 gathers parameters around each call and nowhere else.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# E = D / heads, or `head_dim` where the config has it

# not part of the encoder: what a checkpoint of the bare encoder lacks
HEADS = ("pooler.", "cls.", "lm_head.", "head.", "decoder.", "generator_", "vocab_", "bert.pooler.")
FIRST_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions start at padding_idx + 1


class Architecture(NamedTuple):
    """What a `...ForMaskedLM` class of transformers and its config call their parts.

    Attributes:
        head: modules between the last hidden state and the vocabulary layer, in order; "gelu" is the function.
        rotary: what the encoder's `rotary_emb` takes after positions; None: positions have learnt embeddings.
        embeddings: the encoder's embedding layer; `embed_tokens` is a table alone.
        intermediate_size: the config's name for it, as all that follow.
        activation: of the feed-forward layers.
        norm_eps: of LayerNorm; None: it is no part of the config, which here means 1e-12.
        dropout: of hidden states; None: there is none.
        attention_dropout: of attention weights.
    """

    head: tuple[str, ...]
    rotary: tuple[str, ...] | None = None
    embeddings: str = "embeddings"
    intermediate_size: str = "intermediate_size"
    activation: str = "hidden_act"
    norm_eps: str | None = "layer_norm_eps"
    dropout: str | None = "hidden_dropout_prob"
    attention_dropout: str = "attention_probs_dropout_prob"


BERT = Architecture(("cls.predictions.transform",))
ROBERTA = Architecture(("lm_head.dense", "gelu", "lm_head.layer_norm"))
DISTILBERT = Architecture(
    ("vocab_transform", "activation", "vocab_layer_norm"),
    intermediate_size="hidden_dim",
    activation="activation",
    norm_eps=None,
    dropout="dropout",
    attention_dropout="attention_dropout",
)
MODERNBERT = Architecture(
    ("head",),
    rotary=("full_attention",),  # theta of the global layers: the decoder sees whole texts
    activation="hidden_activation",
    norm_eps="norm_eps",
    dropout="mlp_dropout",
    attention_dropout="attention_dropout",
)
EUROBERT = Architecture(
    (), rotary=(), embeddings="embed_tokens", norm_eps="rms_norm_eps", dropout=None, attention_dropout="attention_dropout"
)
ARCHITECTURES = {
    "bert": BERT,
    "ernie": BERT,
    "electra": Architecture(("generator_predictions",)),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "mpnet": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    "nomic_bert": BERT._replace(rotary=()),
    "gte": ROBERTA._replace(rotary=()),
    "eurobert": EUROBERT,
}


class Layer(NamedTuple):
    """A transformer layer as wide as a backbone's.

    Attributes:
        hidden_size: D.
        num_heads: of attention.
        head_size: E.
        intermediate_size: of the feed-forward part.
        activation: its name in transformers.
        norm_eps: of LayerNorm.
        dropout: of hidden states.
        attention_dropout: of attention weights.
        initializer_range: standard deviation of new weights.
    """

    hidden_size: int
    num_heads: int
    head_size: int
    intermediate_size: int
    activation: str
    norm_eps: float
    dropout: float
    attention_dropout: float
    initializer_range: float


def architecture(config: Any) -> Architecture:
    """What this backbone calls its parts.

    Raises:
        ValueError: the architecture is none of those served, or its embeddings are not as wide as its layers.
    """
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"config.model_type of the backbone is {config.model_type!r}, which masked auto-encoding does not serve: "
            f"it must be one of {', '.join(ARCHITECTURES)}"
        )
    width = getattr(config, "embedding_size", config.hidden_size)
    if width != config.hidden_size:
        raise ValueError(
            f"config.embedding_size of the backbone is {width} and config.hidden_size {config.hidden_size}: masked auto-encoding "
            "needs them equal, as they are in ELECTRA's base size"
        )
    return ARCHITECTURES[config.model_type]


def layer(config: Any) -> Layer:
    """Sizes, activation, dropouts and initial spread of a layer like the backbone's."""
    names = architecture(config)
    return Layer(
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate_size=getattr(config, names.intermediate_size),
        activation=getattr(config, names.activation),
        norm_eps=1e-12 if names.norm_eps is None else getattr(config, names.norm_eps),
        dropout=0.0 if names.dropout is None else getattr(config, names.dropout),
        attention_dropout=getattr(config, names.attention_dropout),
        initializer_range=config.initializer_range,
    )


def first_position(config: Any) -> int:
    """Number of a text's first position; RoBERTa's start at padding_idx + 1."""
    return config.pad_token_id + 1 if config.model_type in FIRST_AFTER_PADDING else 0


def positions(lm: Any, tokens: Tensor) -> Tensor:
    """int64 [1, L]: numbers of a text's positions, for tokens [N, L, ...]."""
    return torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0) + first_position(lm.config)


def encoded(lm: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """[N, L, D], the encoder's last hidden states.

    Args:
        lm: a masked LM of one of `ARCHITECTURES`, as in all that follow.
        ids: int64 [N, L].
        mask: bool [N, L], True on real tokens; None where no token is padding.
    """
    # RoBERTa's own numbers skip tokens that equal the padding token, which random replacement may put anywhere
    where = {"position_ids": positions(lm, ids)} if first_position(lm.config) else {}
    states: Tensor = lm.base_model(input_ids=ids, attention_mask=mask, **where).last_hidden_state
    return states


def embedded(lm: Any, ids: Tensor) -> Tensor:
    """[N, L, D]: tokens through the embedding layer, all of it.

    Args:
        lm: see `encoded`.
        ids: int64 [N, L].
    """
    names = architecture(lm.config)
    where = {"position_ids": positions(lm, ids)} if names.rotary is None else {}
    states: Tensor = getattr(lm.base_model, names.embeddings)(ids, **where)
    return states


def embedded_vectors(lm: Any, vectors: Tensor) -> Tensor:
    """[N, L, D]: vectors in the place of word embeddings through the rest of the embedding layer.

    Args:
        lm: see `encoded`.
        vectors: [N, L, D].
    """
    names = architecture(lm.config)
    if names.embeddings == "embed_tokens":
        return vectors
    where = {"position_ids": positions(lm, vectors)} if names.rotary is None else {}
    states: Tensor = getattr(lm.base_model, names.embeddings)(input_ids=None, inputs_embeds=vectors, **where)
    return states


def position_embeddings(lm: Any, ids: Tensor) -> Tensor | None:
    """[1, L, D], learnt embeddings of the positions of tokens [N, L], nothing added; None where the backbone is rotary."""
    if architecture(lm.config).rotary is not None:
        return None
    states: Tensor = lm.base_model.embeddings.position_embeddings(positions(lm, ids))
    return states


def rotation(lm: Any, ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cosine and sine of the backbone's rotary angles for tokens [N, L], fp32 [L, E] each; None where positions are learnt."""
    names = architecture(lm.config)
    if names.rotary is None:
        return None
    like = torch.empty(0, dtype=torch.float32, device=ids.device)  # the module reads dtype and device of it alone
    cosine, sine = lm.base_model.rotary_emb(like, positions(lm, ids), *names.rotary)
    return cosine[0], sine[0]


def before_vocabulary(lm: Any, states: Tensor) -> Tensor:
    """The MLM head without its vocabulary layer: [..., D] -> [..., D]."""
    for name in architecture(lm.config).head:
        states = functional.gelu(states) if name == "gelu" else lm.get_submodule(name)(states)
    return states
