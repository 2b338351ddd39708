"""What both peers' step scripts share: one line a step with its seconds and the tokens that went through the encoder."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class Tokens:
    """Counts the tokens of every forward pass that keeps a graph: of two passes over a text, the second."""

    def __init__(self, encoder: Any) -> None:
        self.real = self.padded = 0
        self.pad_id = encoder.config.pad_token_id
        # not on the encoder: sentence-transformers calls its forward() past the hooks
        encoder.embeddings.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _module: torch.nn.Module, _args: Any, named: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.real += int((named["input_ids"] != self.pad_id).sum())
            self.padded += named["input_ids"].numel()

    def take(self) -> dict[str, int]:
        taken = {"tokens": self.real, "padded": self.padded}
        self.real = self.padded = 0
        return taken


class StepLines(TrainerCallback):
    """Writes {"step", "seconds", "between", "loss", "tokens", "padded"} as each step ends.

    `seconds` goes from the end of one step to the end of the next, so the batch's making is in it; `between` is the part
    before the step begins: the batch's making, and Trainer's own work between two epochs of one batch each.
    """

    def __init__(self, path: str, tokens: Tokens) -> None:
        self.path, self.tokens = Path(path), tokens
        self.ended = time.perf_counter()
        self.line: dict[str, Any] = {}
        self.between = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.between = time.perf_counter() - self.ended

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.line = {"step": state.global_step, "seconds": now - self.ended, "between": self.between, **self.tokens.take()}
        self.ended = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.line and logs and "loss" in logs:
            with self.path.open("a", encoding="utf8") as lines:
                lines.write(json.dumps({**self.line, "loss": logs["loss"]}) + "\n")
            self.line = {}


def trainer_arguments(options: Any) -> dict[str, Any]:
    """Arguments of transformers' Trainer that both peers are given; every epoch is one batch, the whole file."""
    return {
        "output_dir": options.output_dir,
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "seed": 1,
    }


def common_options(parser: Any) -> Any:
    for name in ("--model", "--rows", "--lines", "--output-dir"):
        parser.add_argument(name, required=True)
    for name in ("--batch", "--steps", "--query-max-len", "--passage-max-len", "--group-size", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--temperature", type=float, required=True)
    return parser
