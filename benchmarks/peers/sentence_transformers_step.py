"""Training steps of sentence-transformers' own trainer on the benchmark's rows; run in the peers' environment."""

import argparse
import json
from pathlib import Path

import torch
from clock import StepLines, Tokens, common_options, trainer_arguments
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses
from sentence_transformers.sentence_transformer import modules


def main() -> None:
    parser = common_options(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--mini-batch-size", type=int, help="cached loss, this many texts a forward")
    parser.add_argument("--mini-batch-num-tokens", type=int, help="cached loss, this many real tokens a forward")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # one cap for both sides: the rows are cut to their own caps when they are written
    encoder = modules.Transformer(options.model, max_seq_length=max(options.query_max_len, options.passage_max_len))
    pooling = modules.Pooling(encoder.get_embedding_dimension(), pooling_mode="cls")
    model = SentenceTransformer(modules=[encoder, pooling, modules.Normalize()], device="cpu")
    scale = 1 / options.temperature
    if options.mini_batch_num_tokens:
        loss = losses.CachedMultipleNegativesRankingLoss(model, scale, mini_batch_num_tokens=options.mini_batch_num_tokens)
    elif options.mini_batch_size:
        loss = losses.CachedMultipleNegativesRankingLoss(model, scale, mini_batch_size=options.mini_batch_size)
    else:
        loss = losses.MultipleNegativesRankingLoss(model, scale)
    rows = [json.loads(line) for line in Path(options.rows).read_text("utf8").splitlines()]
    columns = {"anchor": [row["query"] for row in rows], "positive": [row["pos"][0] for row in rows]}
    for number in range(options.group_size - 1):
        columns[f"negative_{number}"] = [row["neg"][number] for row in rows]
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**trainer_arguments(options)),
        train_dataset=Dataset.from_dict(columns),
        loss=loss,
        callbacks=[StepLines(options.lines, Tokens(encoder.model))],
    ).train()


if __name__ == "__main__":
    main()
