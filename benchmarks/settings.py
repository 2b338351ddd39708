"""Each framework's settings, and the command line that trains with one of them."""

import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent
TEMPERATURE = 0.02  # BGE v1.5


class Setting(NamedTuple):
    """One way to run a framework.

    Attributes:
        framework: bgetrain | sentence-transformers | FlagEmbedding.
        name: the framework's own words.
        options: of the command line.
        bounded: memory does not grow with the batch (but for embeddings and scores), or grows by a fraction only.
    """

    framework: str
    name: str
    options: tuple[str, ...]
    bounded: bool


class Work(NamedTuple):
    """What every framework is given.

    Attributes:
        model: folder.
        rows: .jsonl of exactly `batch` rows, so that every step is the whole file, whatever the order.
        batch: queries a step.
        group_size: passages a query.
        query_max_len, passage_max_len: tokens.
        steps: asked of the framework.
    """

    model: Path
    rows: Path
    batch: int
    group_size: int
    query_max_len: int
    passage_max_len: int
    steps: int


SENTENCE, FLAG = "sentence-transformers", "FlagEmbedding"
PEERS = [
    Setting(SENTENCE, "MultipleNegativesRankingLoss", (), False),
    *[
        Setting(SENTENCE, f"Cached..., mini_batch_size={size}", ("--mini-batch-size", str(size)), True)
        for size in (8, 16, 32, 64)  # of its own words 32 is the default; on a CPU smaller ones pad less
    ],
    *[
        Setting(SENTENCE, f"Cached..., mini_batch_num_tokens={tokens}", ("--mini-batch-num-tokens", str(tokens)), True)
        for tokens in (1024, 4096, 16384)
    ],
    Setting(FLAG, "no sub_batch_size", (), False),
    *[Setting(FLAG, f"sub_batch_size={size}", ("--sub-batch-size", str(size)), False) for size in (2, 4, 8, 16, 32, 64)],
    # the nearest to bounded memory that it has: its sub-batches keep all activations
    *[
        Setting(
            FLAG,
            f"sub_batch_size={size}, gradient_checkpointing",
            ("--sub-batch-size", str(size), "--gradient-checkpointing"),
            True,
        )
        for size in (8, 32)
    ],
]
SCRIPTS = {SENTENCE: "sentence_transformers_step.py", FLAG: "flagembedding_step.py"}


def ours(chunk_tokens: list[int], modes: list[str], extra: list[str]) -> list[Setting]:
    """bgetrain's settings: each step mode at each chunk size."""
    return [
        Setting(
            "bgetrain",
            f"step_mode={mode}, chunk_tokens={tokens}",
            (f"step_mode={mode}", f"chunk_tokens={tokens}", *extra),
            mode == "cached",
        )
        for mode in modes
        for tokens in chunk_tokens
    ]


def command(setting: Setting, work: Work, threads: int, folder: Path, peers_python: str) -> tuple[list[str], Path]:
    """The command line of a run, and the file where its step lines appear."""
    if setting.framework == "bgetrain":
        return [
            *(sys.executable, "-m", "bgetrain", "stage=pairs", "data=jsonl", f"data.files=[{work.rows}]"),
            *(f"model.path={work.model}", "model.pooling=cls", "model.gradient_checkpointing=false"),
            *(f"global_batch={work.batch}", f"group_size={work.group_size}", f"total_steps={work.steps}"),
            *(f"data.query_max_len={work.query_max_len}", f"data.passage_max_len={work.passage_max_len}"),
            *(f"loss.temperature={TEMPERATURE}", "optim.lr=2e-5", "optim.warmup_ratio=0", "precision=fp32", "seed=1"),
            *("log_every=1", "save_every=1000000", "num_processes=1", "resume=never", f"output_dir={folder}"),
            *setting.options,
        ], folder / "metrics.jsonl"
    lines = folder.with_suffix(".jsonl")
    return [
        *(peers_python, str(HERE / "peers" / SCRIPTS[setting.framework]), "--model", str(work.model)),
        *("--rows", str(work.rows), "--lines", str(lines), "--output-dir", str(folder)),
        *("--batch", str(work.batch), "--steps", str(work.steps), "--group-size", str(work.group_size)),
        *("--query-max-len", str(work.query_max_len), "--passage-max-len", str(work.passage_max_len)),
        *("--temperature", str(TEMPERATURE), "--threads", str(threads), *setting.options),
    ], lines


def paths(setting: Setting) -> list[str]:
    """PYTHONPATH: this checkout for bgetrain, nothing for the peers."""
    return [str(ROOT)] if setting.framework == "bgetrain" else []
