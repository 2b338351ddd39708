"""Training steps of FlagEmbedding's own runner on the benchmark's rows; run in the peers' environment."""

import argparse

import torch
from clock import StepLines, Tokens, common_options, trainer_arguments
from FlagEmbedding.finetune.embedder.encoder_only.base import (
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderRunner,
    EncoderOnlyEmbedderTrainingArguments,
)


def main() -> None:
    parser = common_options(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--sub-batch-size", type=int, help="texts a forward; all activations are kept")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runner = EncoderOnlyEmbedderRunner(
        model_args=EncoderOnlyEmbedderModelArguments(model_name_or_path=options.model),
        data_args=EncoderOnlyEmbedderDataArguments(
            train_data=[options.rows],
            cache_path=options.output_dir + "-cache",
            train_group_size=options.group_size,
            query_max_len=options.query_max_len,
            passage_max_len=options.passage_max_len,
        ),
        training_args=EncoderOnlyEmbedderTrainingArguments(
            **trainer_arguments(options),
            remove_unused_columns=False,
            temperature=options.temperature,
            sentence_pooling_method="cls",
            normalize_embeddings=True,
            sub_batch_size=options.sub_batch_size,
            gradient_checkpointing=options.gradient_checkpointing,
        ),
    )
    runner.trainer.add_callback(StepLines(options.lines, Tokens(runner.model.model)))
    runner.run()


if __name__ == "__main__":
    main()
