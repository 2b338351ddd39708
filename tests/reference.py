"""Training in one process on the whole batch with torch and transformers alone: what every arrangement of ranks must equal."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

INSTRUCTION = "find: "


def embed(model, tokenizer, texts: list[str], pooling: str) -> Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][:, :, None].float()
    vectors = states[:, 0, :] if pooling == "cls" else (states * mask).sum(dim=1) / mask.sum(dim=1)
    return vectors / vectors.norm(dim=1, keepdim=True)


def train(
    model_folder: Path, data: Path, *, group_size: int, allowed: list[Tensor], pooling: str, lr: float, clip: float
) -> dict:
    """SGD on all rows of `data` at once.

    Args:
        allowed: for each step bool [rows, rows], True where a query may see a row's passages.

    Returns:
        losses and grad_norms of each step, gradients of the first, weights after the last; names are the backbone's.
    """
    model = AutoModel.from_pretrained(model_folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = [json.loads(line) for line in data.read_text("utf8").splitlines()]
    queries = [INSTRUCTION + row["query"] for row in rows]
    passages = [text for row in rows for text in [row["pos"][0], *row["neg"][: group_size - 1]]]
    parameters = {name: each for name, each in model.named_parameters() if not name.startswith("pooler.")}
    losses, norms, gradients = [], [], {}
    for seen in allowed:
        scores = embed(model, tokenizer, queries, pooling) @ embed(model, tokenizer, passages, pooling).T / 0.2
        scores = scores.masked_fill(~seen.repeat_interleave(group_size, dim=1), -1e9)
        positive = scores[torch.arange(len(rows)), torch.arange(len(rows)) * group_size]
        loss = (torch.logsumexp(scores, dim=1) - positive).mean()
        model.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((each.grad.double() ** 2).sum() for each in parameters.values()))
        if not gradients:
            gradients = {name: each.grad.clone() for name, each in parameters.items()}
        factor = min(1.0, clip / float(norm)) if clip else 1.0
        with torch.no_grad():
            for each in parameters.values():
                each -= lr * factor * each.grad
        losses.append(loss.item())
        norms.append(float(norm))
    weights = {name: each.detach().clone() for name, each in model.named_parameters()}
    return {"losses": losses, "norms": norms, "gradients": gradients, "weights": weights}
