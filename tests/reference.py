"""Training in one process on the whole batch with torch and transformers alone: what every arrangement of ranks must equal."""

import json
from pathlib import Path

import torch
from loss.reference import Batch, losses
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

INSTRUCTION = "find: "


def embed(model, tokenizer, texts: list[str], pooling: str) -> Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][:, :, None].float()
    vectors = states[:, 0, :] if pooling == "cls" else (states * mask).sum(dim=1) / mask.sum(dim=1)
    return vectors / vectors.norm(dim=1, keepdim=True)


def batch_of(rows: list[dict], group_size: int) -> Batch:
    """Rows as `loss.reference` has them: equal texts are equal numbers."""
    numbers: dict[str, int] = {}

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    groups = [[number(text) for text in [row["pos"][0], *row["neg"][: group_size - 1]]] for row in rows]
    teacher = [[row["pos_scores"][0], *row["neg_scores"][: group_size - 1]] for row in rows]
    return Batch([number(row["query"]) for row in rows], groups, [group[:1] for group in groups], torch.tensor(teacher))


def batch_loss(
    query: Tensor, passage: Tensor, batch: Batch, pools: list[list[int]], options: dict, temperature: Tensor
) -> Tensor:
    """The mean over queries of the loss written out."""
    plain = {"mask_equal": False} | {
        key: value for key, value in options.items() if not key.startswith(("matryoshka", "tile", "learnable"))
    }
    widths = options.get("matryoshka", [query.shape[1]])
    weights = options.get("matryoshka_weights", [1.0] * len(widths))
    total = torch.zeros(())
    for width, weight in zip(widths, weights, strict=True):
        parts = [each[:, :width] / each[:, :width].norm(dim=1, keepdim=True) for each in (query, passage)]
        rows, _ = losses(*parts, batch, pools, temperature=temperature.squeeze(), **plain)
        total = total + weight * rows.mean()
    return total / sum(weights)


def train(
    model_folder: Path, data: Path, *, group_size: int, pools: list[list[list[int]]], pooling: str, lr: float, clip: float,
    options: dict, guided: bool, optim: str,
) -> dict:  # fmt: skip
    """Trains on all rows of `data` at once.

    Args:
        pools: for each step and row the rows whose passages the row's query may see.
        options: keys of the loss that differ from InfoNCE without masks.
        guided: the model as it was at first judges what mask_margin takes out.
        optim: sgd | adamw.

    Returns:
        losses, grad_norms and temperatures of each step, gradients of the first, weights after the last; names are the
        backbone's.
    """
    model = AutoModel.from_pretrained(model_folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = [json.loads(line) for line in data.read_text("utf8").splitlines()]
    queries = [INSTRUCTION + row["query"] for row in rows]
    passages = [text for row in rows for text in [row["pos"][0], *row["neg"][: group_size - 1]]]
    batch = batch_of(rows, group_size)
    if guided:
        with torch.no_grad():
            batch = batch._replace(guide=tuple(embed(model, tokenizer, texts, "cls") for texts in (queries, passages)))
    parameters = {name: each for name, each in model.named_parameters() if not name.startswith("pooler.")}
    shift = torch.zeros(1, requires_grad=True)
    if options.get("learnable_temperature"):
        parameters["temperature_shift"] = shift
    if optim == "sgd":
        optimizer = torch.optim.SGD(parameters.values(), lr=lr)
    else:
        decayed = [each for each in parameters.values() if each.ndim > 1]
        others = [each for each in parameters.values() if each.ndim == 1]
        optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=lr, weight_decay=0.01)
    found, norms, temperatures, gradients = [], [], [], {}
    for pools_of_step in pools:
        query, passage = embed(model, tokenizer, queries, pooling), embed(model, tokenizer, passages, pooling)
        temperature = 0.2 / shift.exp()
        loss = batch_loss(query, passage, batch, pools_of_step, options, temperature)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((each.grad.double() ** 2).sum() for each in parameters.values()))
        if not gradients:
            gradients = {name: each.grad.clone() for name, each in parameters.items()}
        if clip:
            for each in parameters.values():
                each.grad *= min(1.0, clip / float(norm))
        optimizer.step()
        found.append(loss.item())
        norms.append(float(norm))
        temperatures.append(temperature.item())
    weights = {name: each.detach().clone() for name, each in model.named_parameters()}
    return {"losses": found, "norms": norms, "temperatures": temperatures, "gradients": gradients, "weights": weights}
