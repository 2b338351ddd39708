"""The model card: `model/README.md`, made from what runs have left."""

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml

from bgetrain import card_facts as facts
from bgetrain import output

# as in conf/stage/*.yaml: what a model of the stage is, where it is no embedder yet
NOTES = {
    "retromae": "Pre-trained and not fine-tuned: train it by stage=pairs or stage=finetune before its vectors are of use.",
    "tokenizer": "Random weights: a start for training, of no use by itself.",
}
UNSTATED = "not-stated"  # hub's license_name beside `license: other`
SIGNED = re.compile(r"\n<!-- made by bgetrain, edits are kept: ([0-9a-f]{16}) -->\n\Z")


def write(folder: Path, figures: Mapping[str, Any] | None = None) -> None:
    """Writes `folder/model/README.md` and its picture; a card that somebody has edited stays as it is.

    Args:
        folder: of a run that leaves `model/`, or of an evaluation, which brings the card of the run beside it up to date;
            nothing is done for others.
        figures: of the run, as `result.json` will have them; None: that file is read.

    Raises:
        OSError: it cannot be written.
    """
    model, cfg = folder / "model", facts.read(folder / "config.yaml")
    path = model / "README.md"
    evaluated = None if model.is_dir() else facts.judged(folder)
    if evaluated is not None:
        write(evaluated)
    if not model.is_dir() or not is_ours(path):
        return
    figures = facts.read(folder / "result.json") if figures is None else figures
    stage = cfg.get("stage", {}).get("name", "")
    asked = cfg.get("export", {}) if stage == "export" else {}
    runs = facts.lineage(folder)
    trained = [each for each in runs if facts.read(each / "config.yaml").get("stage", {}).get("name") != "export"]
    told = [told_of(each, model) for each in trained]
    origin = trained[-1] if trained else None
    evaluation = facts.evaluations(origin) if origin else []
    if stage == "export":
        earlier = [{**each, "who": each["who"].replace("this model", "before export")} for each in evaluation]
        evaluation = [*earlier, *facts.evaluations(folder)]
    shape = facts.shape(model)
    last = facts.read(origin / "config.yaml").get("stage", {}).get("name", "") if origin else ""
    base = facts.base_of(runs[0])
    name = name_of(origin or folder, asked)
    values = {
        "front": front(name, last, evaluation, base=base, asked=asked, onnx=bool(figures.get("onnx"))),
        "name": name,
        "summary": summary(shape, last),
        "note": NOTES.get(last),
        "facts": properties(shape, base),
        "instruction": shape["instruction"],
        "place": asked.get("push_to") or "path/to/this/folder",
        "max_len": shape["max_len"],
        "pooling": shape["pooling"],
        "truncation": f"[:, :{shape['truncate_dim']}]" if shape["truncate_dim"] else "",
        "onnx": (figures.get("onnx") or {}).get("inputs"),
        "evaluation": evaluation,
        "shown": facts.SHOWN,
        "means": facts.read((origin or folder) / "examples.json").get("means"),
        "vectors": figures.get("vectors"),
        "vectors_of": figures.get("vectors_of"),
        "runs": told,
        "licence": licence(asked.get("license"), runs[0]),
    }
    output.write(path, signed(rendered(values)))


def told_of(folder: Path, model: Path) -> dict[str, Any]:
    """A run as the card tells it; draws its curves beside the card."""
    from bgetrain.logger.curves import curves

    cfg = facts.read(folder / "config.yaml")
    panels, picture = facts.panels(folder), None
    stage = str(cfg.get("stage", {}).get("name", folder.name))
    if panels:
        picture = f"curves-{stage}.png"
        curves(model / picture, panels)
    text = yaml.safe_dump(facts.public(cfg), sort_keys=False, allow_unicode=True).rstrip()
    return {"stage": stage, "settings": facts.settings(folder), "files": facts.files(folder), "config": text, "curves": picture}


def name_of(run: Path, asked: Mapping[str, Any]) -> str:
    """Of the repository that it goes to, else of the run; one of a recipe has the recipe's name before it."""
    if asked.get("push_to"):
        return str(asked["push_to"]).rpartition("/")[2]
    folder = run.resolve()
    return f"{folder.parent.name}-{folder.name}" if (folder.parent / "steps.json").is_file() else folder.name


def front(
    name: str, stage: str, evaluation: list[dict[str, Any]], *, base: str | None, asked: Mapping[str, Any], onnx: bool
) -> str:
    """The YAML at the head, by huggingface_hub's own classes."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", each["data"].lower()).strip("-") or "unknown",
            dataset_name=each["data"],
            dataset_split=each["split"],
            metric_type=key.replace("@", "_at_"),
            metric_name=key,
            metric_value=round(value, 5),
        )
        for each in evaluation
        if each["ours"]
        for key, value in each["metrics"].items()
    ]
    stated = asked.get("license")
    data = ModelCardData(
        language=list(asked.get("language") or []) or None,
        license=stated or "other",
        license_name=None if stated else UNSTATED,
        base_model=base,
        library_name="sentence-transformers",
        pipeline_tag="fill-mask" if stage == "retromae" else "sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "bgetrain", *(["onnx"] if onnx else [])],
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def summary(shape: Mapping[str, Any], stage: str) -> str:
    """What the model does, in a sentence or two."""
    width = shape["truncate_dim"] or shape["width"]
    made = f" It was made by bgetrain, stage `{stage}`." if stage else ""
    return f"Maps texts to vectors of {width} numbers, whose inner product says how close two texts are.{made}"


def properties(shape: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    found = {
        "architecture": f"{shape['kind']}, {shape['layers']} layers, width {shape['width']}",
        "parameters": f"{shape['parameters']:,}, {shape['dtype']}",
        "pooling": f"{shape['pooling']}, then normalised",
        "dimension": f"{shape['truncate_dim']}, the first of {shape['width']}" if shape["truncate_dim"] else None,
        "longest text": f"{shape['max_len']} tokens; the rest is cut",
        "instruction of queries": repr(shape["instruction"]) if shape["instruction"] else "none",
        "base model": base,
    }
    return {key: value for key, value in found.items() if value}


def licence(stated: str | None, first: Path) -> str:
    """The words on the licence; what is not known is said."""
    if stated:
        return f"`{stated}`, as stated by whoever exported this model."
    path = str(facts.read(first / "config.yaml").get("model", {}).get("path") or "")
    theirs = re.search(r"(?m)^license: *['\"]?([\w.-]+)", card_of(Path(path).expanduser()) if path else "")
    known = f" The card of the checkpoint that training began with states `{theirs[1]}`." if theirs else ""
    return (
        f"Not stated.{known} Weights may be bound by the licences of that checkpoint and of the data: look, and state it by "
        "`bgetrain stage=export export.license=...` before you publish them."
    )


def card_of(model: Path) -> str:
    """The YAML head of a model's card; empty where there is none."""
    try:
        text = (model / "README.md").read_text("utf8", "replace")
    except OSError:
        return ""
    found = re.match(r"---\n(.*?)\n---", text, re.S)
    return found[1] if found else ""


def rendered(values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    text = environment.get_template("card.md").render(values)
    return re.sub(r"\n{4,}", "\n\n", text).rstrip() + "\n"


def cell(value: Any) -> str:
    """A value that ends neither its cell nor its row, and is no HTML."""
    text = " ".join(str(value).split(" ")).replace("\n", " ").replace("|", "\\|")
    return text.replace("<", "&lt;")


def signed(text: str) -> str:
    """The text with a line at its end by which edits are seen."""
    return f"{text}\n<!-- made by bgetrain, edits are kept: {digest(text)} -->\n"


def is_ours(path: Path) -> bool:
    """Whether a card may be written over: there is none, or it is as bgetrain has left it."""
    try:
        text = path.read_text("utf8", "replace")
    except FileNotFoundError:
        return True
    found = SIGNED.search(text)
    return found is not None and found[1] == digest(text[: found.start()])


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
