"""Whether a model folder can be loaded without running code that it brings along."""

import json
from pathlib import Path

ATTENTION = ("attn_implementation", "_attn_implementation")  # of a config, which may name a kernel on a hub


def check_safe(path: str, key: str, *, trust_remote_code: bool) -> None:
    """Refuses a folder whose code would be run, or whose weights are pickled; the hub's are left to transformers.

    Raises:
        ValueError: such a folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    if not trust_remote_code:
        check_code(folder, key, "config.json")
    for index in folder.glob("*.index.json"):
        outside = [name for name in named_files(index) if Path(name).name != name]
        if outside:
            raise ValueError(f"{key}={path}: {index.name} names {outside[0]!r}, which is outside of the folder: not loaded")
    pickled = sorted(each.name for each in folder.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        convert = (
            "import sys, torch; from safetensors.torch import save_file; w = torch.load(sys.argv[1], weights_only=True); "
            "save_file({k: v.clone() for k, v in w.items()}, sys.argv[2], {'format': 'pt'})"
        )
        raise ValueError(
            f"{key}={path}: its weights are pickled ({pickled[0]}), which can run code when it is read, and are not loaded: "
            f'convert them once: python -c "{convert}" {folder}/pytorch_model.bin {folder}/model.safetensors'
        )


def named_files(index: Path) -> list[str]:
    """The files that an index of weights names."""
    try:
        return sorted({str(each) for each in json.loads(index.read_text("utf8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # said by whoever loads it
        return []


def check_code(folder: Path, key: str, name: str) -> None:
    """Refuses a folder whose `name` asks for code of its own, which transformers would run, or leave out without a word.

    Raises:
        ValueError: such a folder.
    """
    try:
        facts = json.loads((folder / name).read_text("utf8"))
    except (OSError, ValueError):  # said by whoever loads it
        return
    named = [str(facts.get(each)) for each in ATTENTION] if isinstance(facts, dict) else []
    kernels = [each for each in named if "/" in each]
    if kernels:
        raise ValueError(f"{key}={folder}: {name} asks for attention from a hub, {kernels[0]!r}, which is code: take it out")
    if isinstance(facts, dict) and facts.get("auto_map"):
        raise ValueError(
            f"{key}={folder}: {name} asks for code of its own (auto_map), which is not run: set model.trust_remote_code=true if "
            f"you trust it, or take auto_map out to load it as transformers' own {facts.get('model_type', 'class')}"
        )
