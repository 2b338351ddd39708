"""Training steps side by side: bgetrain, sentence-transformers and FlagEmbedding, one process at a time, in turns.

    python benchmarks/contrastive.py --data PATH/tldr/en --sizes 4x256 6x384 --batches 64,256,1024 64,256 --output benchmarks/out
    python benchmarks/contrastive.py --data PATH/tldr/en --memory --output benchmarks/out

The same weights, rows, vocabulary, batch, loss (InfoNCE over the batch, temperature 0.02, CLS, unit vectors), AdamW with
clipping at 1, dropout 0.1, fp32, threads. Every setting of a peer is tried at the smallest batch of each size; at the larger
ones only its fastest and its fastest memory-bounded setting run. Markdown goes to stdout, everything to OUTPUT/*.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import prepare
from machine import matmul_rate, operations
from peers import environment
from runs import Limits, watch
from settings import PEERS, Setting, Work, command, ours, paths

sys.path.insert(0, str(Path(__file__).parent.parent))  # this checkout's bgetrain, for the vocabulary
WARM, AHEAD = 1, 3  # steps before the timed ones; steps that the fastest reader of batches may be ahead


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the runs have it; before torch is loaded
    options = arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    peers_python = environment.python()
    record: dict[str, Any] = {
        "command": sys.argv,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": options.threads},
        "versions": {"peers": environment.versions(peers_python), "bgetrain": environment.versions(sys.executable)},
    }
    if options.memory:
        from memory import measure

        measure(options, peers_python, record)
        return
    print(f"rows: {options.rows} of {options.data}; {options.steps} timed steps after {WARM}, {options.rounds} round(s)\n")
    record["cells"] = []
    for size, batches in zip(options.sizes, options.batches, strict=True):
        layers, width = map(int, size.split("x"))
        chosen = candidates(options)
        for number, batch in enumerate(batches):
            cell = compare(options, peers_python, chosen, layers, width, batch, 1)
            record["cells"].append(cell)
            (options.output / "contrastive.json").write_text(json.dumps(record, indent=1), "utf8")
            report(cell)
            if number == 0 and options.probe:
                chosen = survivors(chosen, cell)
                names = "; ".join(f"{each.framework} {each.name}" for each in chosen)
                print(f"Best of each framework, and its best bounded one, at the larger batches of {size}: {names}\n", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="tldr in one language, BEIR layout")
    parser.add_argument("--rows", choices=["pages", "pairs"], help="query and page (default), or query and line (with --memory)")
    parser.add_argument("--sizes", nargs="+", default=["4x256", "6x384"], help="layers x width")
    parser.add_argument("--batches", nargs="+", default=["64,256,1024", "64,256"], help="for each size, queries a step")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--steps", type=int, default=2, help="timed steps")
    parser.add_argument("--rounds", type=int, default=1, help="turns of every setting")
    parser.add_argument("--dropout", type=float, default=0.1, help="0 shows that all have one loss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-len", type=int, nargs=2, metavar=("QUERY", "PASSAGE"), help="512 512; with --memory 16 32")
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[4096], help="of bgetrain")
    parser.add_argument("--modes", nargs="+", default=["single", "cached"], help="step_mode of bgetrain")
    parser.add_argument("--bgetrain", nargs="*", default=[], metavar="KEY=VALUE", help="more of bgetrain's command line")
    parser.add_argument("--only", nargs="*", default=[], help="endings of `framework setting`, such as sub_batch_size=16")
    parser.add_argument("--probe", action=argparse.BooleanOptionalAction, default=True, help="drop slow settings as said above")
    parser.add_argument("--memory-limit-gb", type=float, default=20.0, help="of each process")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds of each process")
    parser.add_argument("--memory", action="store_true", help="peak memory at growing batches instead")
    options = parser.parse_args()
    if not options.memory and len(options.sizes) != len(options.batches):
        parser.error(f"--batches has {len(options.batches)} lists for {len(options.sizes)} --sizes: give one for each size")
    options.batches = [[int(each) for each in some.split(",")] for some in options.batches]
    options.rows = options.rows or ("pairs" if options.memory else "pages")
    options.max_len = options.max_len or ([16, 32] if options.memory else [512, 512])
    options.output = options.output.resolve()
    return options


def candidates(options: argparse.Namespace) -> list[Setting]:
    """All settings, or those whose name has an ending in `--only`."""
    everything = [*ours(options.chunk_tokens, options.modes, options.bgetrain), *PEERS]
    return [each for each in everything if not options.only or f"{each.framework} {each.name}".endswith(tuple(options.only))]


def compare(
    options: argparse.Namespace,
    peers_python: str,
    chosen: list[Setting],
    layers: int,
    width: int,
    batch: int,
    group_size: int = 1,
) -> dict[str, Any]:
    """Every chosen setting on one model and batch, `rounds` times in turns."""
    folder = options.output / f"{layers}x{width}"
    pairs = prepare.read_pairs(options.data, options.rows)
    tokenizer = prepare.vocabulary(pairs, 8192, options.output / f"vocabulary-{options.rows}")
    home = options.output / f"model-{options.rows}-{layers}x{width}-dropout-{options.dropout}"
    model = prepare.model(home, tokenizer, layers, width, options.dropout)
    rows = folder / f"rows-{options.rows}-{batch}.jsonl"
    lens = tuple(options.max_len)
    amount = prepare.rows(rows, pairs, tokenizer, number=batch, max_lens=lens, group_size=group_size)
    work = Work(model, rows, batch, group_size, *lens, steps=WARM + options.steps + AHEAD)
    limits = Limits(int(options.memory_limit_gb * 1e9), options.time_limit, options.threads)
    rates = [matmul_rate(width, options.threads)]
    needed = operations(amount, layers, width, batch, group_size)
    results: list[dict[str, Any]] = [{"framework": each.framework, "setting": each.name, "runs": []} for each in chosen]
    for turn in range(options.rounds):
        for number, (setting, result) in enumerate(zip(chosen, results, strict=True)):
            name = f"{batch}-{setting.framework}-{number}-{turn}-{time.time_ns()}"
            words, lines = command(setting, work, options.threads, folder / name, peers_python)
            print(f"{layers}x{width} batch {batch}: {setting.framework} {setting.name}", file=sys.stderr, flush=True)
            log = folder / f"{name}.log"
            outcome = watch(words, lines, log, steps=WARM + options.steps, limits=limits, paths=paths(setting))
            result["runs"].append({"command": words, **outcome._asdict(), "log": str(log), "load": os.getloadavg()[0]})
    rates.append(matmul_rate(width, options.threads))
    for result in results:
        summarise(result, batch, needed["all"], max(rates))
    return {
        "layers": layers,
        "width": width,
        "batch": batch,
        "amount": amount._asdict(),
        "operations": needed,
        "matmul_rate": max(rates),
        "matmul_rates": rates,  # before and after the runs; far apart where somebody else used the machine
        "results": results,
    }


def summarise(result: dict[str, Any], batch: int, needed: float, rate: float) -> None:
    """Medians over the timed steps of all rounds; bgetrain's own log is read into the peers' words."""
    timed = [as_line(line, batch) for run in result["runs"] for line in run["lines"] if line["step"] > WARM]
    result["status"] = next((run["status"] for run in result["runs"] if run["status"] != "done"), "done")
    result["peak_bytes"] = max(run["peak_bytes"] for run in result["runs"])
    result["first_loss"] = next((run["lines"][0]["loss"] for run in result["runs"] if run["lines"]), None)
    if timed:
        seconds = statistics.median(line["seconds"] for line in timed)
        result |= {
            "seconds": seconds,
            "queries_per_second": batch / seconds,
            "tokens": statistics.median(line["tokens"] for line in timed),
            "padded": statistics.median(line["padded"] for line in timed),
            "utilisation": needed / seconds / rate,
            "between": statistics.median(line.get("between", 0.0) for line in timed),
        }


def as_line(line: dict[str, Any], batch: int) -> dict[str, Any]:
    """A line of bgetrain's metrics.jsonl as the peers' step lines are; theirs pass."""
    if "seconds" in line:
        return line
    seconds = batch / line["queries_per_second"]  # of the window, which log_every=1 makes one step
    tokens = round(line["tokens_per_second"] * seconds)
    return {**line, "seconds": seconds, "tokens": tokens, "padded": round(tokens / (1 - line["padding_ratio"]))}


def survivors(chosen: list[Setting], cell: dict[str, Any]) -> list[Setting]:
    """The fastest setting of each peer and its fastest bounded one; all of bgetrain's."""
    speed = {(each["framework"], each["setting"]): each.get("queries_per_second", 0.0) for each in cell["results"]}
    kept = {each for each in chosen if each.framework == "bgetrain"}
    for framework in {each.framework for each in chosen} - {"bgetrain"}:
        own = sorted((each for each in chosen if each.framework == framework), key=lambda each: -speed[framework, each.name])
        kept |= set(own[:1]) | set([each for each in own if each.bounded][:1])
    return [each for each in chosen if each in kept]


def report(cell: dict[str, Any]) -> None:
    """The cell as a markdown table, and the ratio that counts."""
    amount, needed = cell["amount"], cell["operations"]["all"]
    print(
        f"### {cell['layers']} layers x {cell['width']}, batch {cell['batch']}\n\n"
        f"{amount['tokens']:,} real tokens in {amount['texts']:,} texts a step, {needed / 1e9:,.0f} GFLOP on them alone; "
        f"matrix products at {cell['matmul_rate'] / 1e9:.0f} GFLOP/s: {needed / cell['matmul_rate']:.2f} s\n\n"
        "| framework | setting | s/step | queries/s | of matmul | peak GB | tokens | with padding | first loss | bgetrain |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    best = max((each.get("queries_per_second", 0.0) for each in cell["results"] if each["framework"] == "bgetrain"), default=0.0)
    for each in cell["results"]:
        start = f"| {each['framework']} | {each['setting']} |"
        if each["status"] != "done" or "seconds" not in each:
            print(f"{start} {each['status']} | | | {each['peak_bytes'] / 1e9:.2f} | | | | |")
            continue
        print(
            f"{start} {each['seconds']:.2f} | {each['queries_per_second']:.1f} | {each['utilisation']:.0%} | "
            f"{each['peak_bytes'] / 1e9:.2f} | {each['tokens']:,.0f} | {each['padded']:,.0f} | {each['first_loss']:.4f} | "
            f"{best / each['queries_per_second']:.2f} x |"
        )
    print(flush=True)


if __name__ == "__main__":
    main()
