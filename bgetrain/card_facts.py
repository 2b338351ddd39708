"""What a run has left of itself, as a model card tells it: no secret, and no path that says whose machine it was."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bgetrain import trust
from bgetrain.logger import console

SHOWN = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # safetensors' names
DEEPEST = 20  # steps from the first checkpoint to this model; more would be a circle


def read(path: Path) -> dict[str, Any]:
    """A JSON or YAML file; empty where there is none, or none that can be read: a card does without it."""
    try:
        text = path.read_text("utf8")
        found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, without a line that was cut."""
    found = []
    for line in path.read_text("utf8", "replace").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [each for each in found if isinstance(each, dict) and "step" in each]


def public(value: Any) -> Any:
    """A config without secrets; of absolute paths the last two names stay."""
    if isinstance(value, Mapping):
        return {key: public(each) for key, each in trust.masked(value).items()}
    if isinstance(value, list | tuple):
        return [public(each) for each in value]
    if not isinstance(value, str):
        return value
    parts = Path(value).parts
    if value.startswith(("/", "~")) and len(parts) > 2:
        return "/".join(["...", *parts[-2:]])
    return trust.masked_text(value.replace(str(Path.home()), "~"))


def is_hub_id(path: str, provenance: Mapping[str, Any]) -> bool:
    """Whether a model came from the hub: its id is one, and no local files were read for it."""
    return bool(HUB_ID.fullmatch(path)) and not Path(path).exists() and not provenance.get("model")


def lineage(folder: Path) -> list[Path]:
    """The runs that led to the model of `folder`, the first one first, itself last."""
    found: list[Path] = [folder]
    while len(found) < DEEPEST:
        path = str(read(found[0] / "config.yaml").get("model", {}).get("path") or "")
        before = Path(path).expanduser().parent
        known = any(before.resolve() == each.resolve() for each in found)
        if not path or Path(path).name != "model" or not (before / "config.yaml").is_file() or known:
            break
        found.insert(0, before)
    return found


def base_of(folder: Path) -> str | None:
    """The hub id of the checkpoint that a run began with, None where it was none of the hub's."""
    cfg, provenance = (read(folder / name) for name in ("config.yaml", "provenance.json"))
    path = str(cfg.get("model", {}).get("path") or "")
    return path if path and is_hub_id(path, provenance) else None


def shape(model: Path) -> dict[str, Any]:
    """Of a `model/` folder, what its files say: kind, width, layers, parameters, dtype, pooling, prompts, length."""
    config = read(model / "config.json")
    pooling = read(model / "1_Pooling/config.json")
    flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
    word = {"mean": "mean", "lasttoken": "last", "last": "last"}.get(str(pooling.get("pooling_mode")), "cls")  # of version 6
    whole = read(model / "config_sentence_transformers.json")
    length = read(model / "sentence_bert_config.json").get("max_seq_length")
    parameters, dtype = weights_of(model)
    return {
        "kind": config.get("model_type", "unknown"),
        "width": config.get("hidden_size"),
        "layers": config.get("num_hidden_layers"),
        "parameters": parameters,
        "dtype": dtype,
        "pooling": next((mode for key, mode in flags.items() if pooling.get(key)), word),
        "instruction": (whole.get("prompts") or {}).get("query") or "",
        "truncate_dim": whole.get("truncate_dim"),
        "max_len": length or config.get("max_position_embeddings") or 512,
    }


def weights_of(model: Path) -> tuple[int, str]:
    """Parameters and dtype of the safetensors in a folder, from their headers alone."""
    count, kinds = 0, set()
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, each in header.items():
            if name != "__metadata__":
                size = 1
                for length in each["shape"]:
                    size *= length
                count += size
                kinds.add(DTYPES.get(each["dtype"], each["dtype"]))
    return count, " and ".join(sorted(kinds))


def settings(folder: Path) -> dict[str, Any]:
    """Data, loss, hyper-parameters, hardware and time of a run, in words."""
    cfg, provenance, figures = (read(folder / name) for name in ("config.yaml", "provenance.json", "result.json"))
    logged = lines(folder / "metrics.jsonl")
    found: dict[str, Any] = {"data": data_words(cfg.get("data", {})), "rows": number(figures.get("rows", figures.get("texts")))}
    found["started from"] = public(str(cfg["model"]["path"])) if cfg.get("model", {}).get("path") else "random weights"
    found["loss"] = node_words(cfg.get("loss"))
    found["optimiser"] = node_words(cfg.get("optim"))
    asked = figures.get("steps")
    found["steps"] = number(asked if asked is not None else cfg.get("total_steps"))
    found["epochs"] = None if cfg.get("total_steps") else cfg.get("epochs")
    for key in ("global_batch", "group_size", "precision", "seed"):
        found[key] = cfg.get(key)
    found["ZeRO stage"] = cfg.get("engine", {}).get("zero_optimization", {}).get("stage")
    for key in ("query_max_len", "passage_max_len", "query_instruction"):
        found[key] = cfg.get("data", {}).get(key) or None
    found["last loss"] = f"{logged[-1]['loss']:.4f}" if logged and isinstance(logged[-1].get("loss"), int | float) else None
    found["memory"] = f"{logged[-1]['memory_gb']:.1f} GB on the fullest rank" if logged and "memory_gb" in logged[-1] else None
    found["time in training steps"] = duration(seconds_of(cfg, logged))
    sessions = provenance.get("sessions") or [{}]
    found["ranks"] = f"{sessions[-1]['ranks']} on {sessions[-1].get('device')}" if sessions[-1].get("ranks") else None
    found["hardware"] = provenance.get("hardware")
    found["machine"] = provenance.get("platform")
    packages = provenance.get("packages", {})
    names = ("bgetrain", "torch", "transformers", "deepspeed")
    wanted = {"python": provenance.get("python"), **{name: packages.get(name) for name in names}}
    found["versions"] = ", ".join(f"{name} {each}" for name, each in wanted.items() if each)
    found["commit of bgetrain"] = provenance.get("git")
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


def number(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else None


def data_words(data: Mapping[str, Any]) -> str:
    """The sources of a run: what names each, by the last names of its path."""
    parts = data.get("sources")
    named = parts if isinstance(parts, Mapping) and parts else {"": data}
    words = []
    for name, part in named.items():
        keys = public(part) if isinstance(part, Mapping) else {}
        where = next((keys[key] for key in ("path", "files", "repository", "name") if keys.get(key)), "")
        listed = where if isinstance(where, list) else [where]
        kind = str(keys.get("_target_", "")).rpartition(".")[2]
        words.append(": ".join(each for each in (str(name), f"{kind} {', '.join(map(str, listed))}".strip()) if each))
    return "; ".join(words)


def node_words(node: Any) -> str | None:
    """`info_nce(temperature=0.02, ...)` of a node of the config."""
    if not isinstance(node, Mapping) or not node.get("_target_"):
        return None
    given = {key: value for key, value in public(node).items() if key != "_target_" and value not in (None, [], False)}
    keys = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{str(node['_target_']).rpartition('.')[2]}({keys})"


def seconds_of(cfg: Mapping[str, Any], logged: list[dict[str, Any]]) -> float | None:
    """Time in training steps, from the speed that each logged line has of the steps before it."""
    total, last = 0.0, 0
    for line in logged:
        speed = next((line[key] for key in ("queries_per_second", "texts_per_second") if line.get(key)), None)
        if speed and cfg.get("global_batch"):
            total += (line["step"] - last) * cfg["global_batch"] / speed
        last = line["step"]
    return total or None


def duration(seconds: float | None) -> str | None:
    return None if seconds is None else console.duration(seconds)


def files(folder: Path) -> list[dict[str, Any]]:
    """Fingerprints of the data that a run read."""
    found = read(folder / "provenance.json").get("data", {})
    return [
        {"name": public(str(name)), "bytes": each.get("bytes", 0), "digest": str(each.get("sha256_of_ends", ""))[:16]}
        for name, each in found.items()
        if isinstance(each, Mapping)
    ]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """What is known of how well the model of `folder` retrieves: its own evaluations, then those of runs beside it."""
    cfg, logged = read(folder / "config.yaml"), lines(folder / "metrics.jsonl")
    instruction, rows = shape(folder / "model")["instruction"], []
    best = read(folder / "result.json").get("training", {}).get("best_step")
    measured = [line for line in logged if "ndcg@10" in line]
    chosen = next((line for line in measured if line["step"] == best), measured[-1] if measured else None)
    if chosen and "every" in cfg.get("evaluate", {}):
        where = f"{cfg['evaluate'].get('split') or 'held-out rows'} of {data_words(cfg.get('data', {}))}"
        rows.append(row(f"this model, step {chosen['step']}", where, chosen, split=cfg["evaluate"].get("split")))
    finished = read(folder / "result.json").get("finished_at", 0.0)
    for path in sorted(folder.resolve().parent.glob("*/result.json")):
        figures, other = read(path), read(path.parent / "config.yaml")
        if figures.get("finished_at", finished) < finished:  # of a model that was in this folder before
            continue
        model = str(other.get("model", {}).get("path") or "")
        ours = figures.get("stage") == "evaluate" and model and Path(model).expanduser().resolve() == (folder / "model").resolve()
        if ours and isinstance(figures.get("metrics"), Mapping):
            split = str(other["data"].get("split"))
            asked = other["data"].get("query_instruction", "")
            other_words = "" if asked == instruction else f", instruction {asked!r}" if asked else ", without the instruction"
            where = f"{data_words(other['data'])}, {split}{other_words}"
            rows += rows_of(figures, where, split)
            sets = figures.get("sets")
            for name, found in sets.items() if isinstance(sets, Mapping) and len(sets) > 1 else ():
                rows += rows_of(found, f"{name}{other_words}", split)
    return [each for each in rows if each["metrics"]]


def rows_of(figures: Mapping[str, Any], where: str, split: str) -> list[dict[str, Any]]:
    """The rows of one set, or of the mean over several."""
    rows = [row("this model", where, figures["metrics"], split=split)]
    if isinstance(figures.get("bm25"), Mapping):
        rows.append({**row("BM25", where, figures["bm25"], split=split), "ours": False})
    return rows


def judged(folder: Path) -> Path | None:
    """The run beside an evaluation whose model it has evaluated, where that run has a card."""
    cfg = read(folder / "config.yaml")
    path = Path(str(cfg.get("model", {}).get("path") or "")).expanduser()
    beside = path.name == "model" and path.parent.resolve().parent == folder.resolve().parent
    wanted = cfg.get("stage", {}).get("name") == "evaluate" and beside and (path / "README.md").is_file()
    return path.parent if wanted else None


def row(who: str, data: str, metrics: Mapping[str, Any], *, split: str | None) -> dict[str, Any]:
    found = {key: float(metrics[key]) for key in SHOWN if isinstance(metrics.get(key), int | float)}
    return {"who": who, "data": data, "metrics": found, "split": split, "ours": True}


def panels(folder: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The curves of a run: loss, learning rate, nDCG, as far as there are two points of each."""
    logged = lines(folder / "metrics.jsonl")
    wanted = {
        "loss": ("loss", "encoder_loss", "decoder_loss"),
        "learning rate": ("lr",),
        "nDCG@10 while training": ("ndcg@10",),
    }
    found = {}
    for title, keys in wanted.items():
        drawn = dict(series(logged, keys))
        if drawn:
            found[title] = drawn
    return found


def series(logged: list[dict[str, Any]], keys: tuple[str, ...]) -> Iterator[tuple[str, tuple[list[float], list[float]]]]:
    for key in keys:
        points = [(line["step"], line[key]) for line in logged if isinstance(line.get(key), int | float)]
        if len(points) > 1:
            yield key, ([step for step, _ in points], [value for _, value in points])
