"""Folders of runs as stages leave them, and their pages taken apart."""

import json
from html.parser import HTMLParser
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from bgetrain import config
from bgetrain.report import run

VOID = {"meta", "br", "img", "link", "input", "hr"}
PAIRS = ["stage=pairs", "data=synthetic", "model=tiny"]


class Parsed(HTMLParser):
    """What a page holds: every tag closed in its order, the texts, links, and ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.words, self.links, self.tags, self.attributes = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def made(folder: Path, overrides: list[str], lines: list[dict], result: dict | None) -> Path:
    """The folder of a run as its stage leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = OmegaConf.to_container(config.compose([*overrides, f"output_dir={folder}"]), resolve=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    session = {"began_at": 1000.0, "ranks": 2, "device": "cpu"}
    (folder / "provenance.json").write_text(json.dumps({"packages": {"torch": "2.13.0"}, "sessions": [session]}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"stage": "x", "status": "done", "finished_at": 1090.0, **result}))
    return folder


def line(step: int, total: int, **more: float | None) -> dict:
    figures = {"loss": 2.0 / step, "grad_norm": 1.5, "lr": 1e-5, "queries_per_second": 850.0, "tokens_per_second": 9000.0}
    figures |= {"padding_ratio": 0.08, "memory_gb": 1.25, "epoch": 0.1, "seconds_left": 9.0, "progress_ratio": step / total}
    return {"step": step, **figures, **more}


def shown(folder: Path) -> Parsed:
    run.write(folder)
    return Parsed((folder / "report.html").read_text("utf8"))
