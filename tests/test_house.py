"""The house: imports go one way, each foreign package has one place, and every YAML binds to what it names."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from bgetrain import config, selection
from bgetrain.target import named, signature

ROOT = selection.PACKAGE
FILES = sorted(ROOT.rglob("*.py"))
# A file imports from a lower number or its own folder; two of the same number and different folders do not see each other.
LAYERS = {
    "__init__": 0, "types": 0, "sources": 0, "target": 0, "hub": 0, "progress": 0, "mteb_names": 0, "quiet": 0,
    "distributed": 1,
    "data": 2, "model": 2, "loss": 2, "optim": 2, "search": 2, "metric": 2, "cluster": 2, "logger": 2,
    "engine": 3, "forecast": 3,
    "stage": 4, "config": 4, "parts": 4, "rules": 4, "selection": 4, "overrides": 4, "recipe": 4, "output": 4, "usage": 4,
    "embedder": 4, "encoding": 4, "loading": 4,
    "recipe_file": 4, "chain": 4, "steps": 4, "sweep": 4, "provenance": 4, "owner": 4, "lock": 4, "trust": 4, "planning": 4,
    "report": 4, "card": 4, "card_facts": 4,
    "cli": 5,
    "__main__": 6,
}  # fmt: skip
# Foreign packages that one place alone imports.
PLACES = {
    "deepspeed": {"engine/deepspeed.py"},
    "torch.distributed": {"distributed.py"},
    "faiss": {"search/index.py"},
    "hydra": {"cli.py", "config.py", "selection.py", "overrides.py"},
    "wandb": {"logger/wandb.py"},
    "mlflow": {"logger/mlflow.py"},
    "peft": {"model/lora.py"},
    "mteb": {"metric/mteb.py"},
    "onnx": {"model/onnx.py"},
    "onnxscript": {"model/onnx.py"},
    "onnxruntime": {"model/onnx.py"},
}
# Before the config is checked nothing may import torch: these never do so at module level, nor what they import.
LIGHT = [
    "cli",
    "config",
    "parts",
    *("rules", "selection", "overrides", "target", "mteb_names"),
    "usage",
    *("recipe", "recipe_file", "chain", "steps", "sweep", "stage.status", "stage.compare", "planning"),
    *("output", "provenance", "owner", "lock", "trust", "card", "card_facts"),
    "cluster.host",
    *("cluster.desk", "cluster.guest", "cluster.wire"),
    *("cluster.local", "cluster.place", "cluster.srun", "cluster.slurm", "cluster.sbatch", "cluster.queue"),
    "cluster.signals",
    "__main__",
]
ENVIRONMENT = {"cluster/host.py", "cluster/local.py", "cluster/srun.py", "trust.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(module: str) -> str:
    """`bgetrain.loss.info_nce` -> `loss`."""
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports, at any depth of its functions, and the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = str(node.module)
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                is_module = module == "bgetrain" or whole in MODULES or whole == "torch.distributed"
                found.append((whole if is_module else module, node.lineno))
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def test_every_part_has_a_layer():
    assert {part_of(module_of(path)) for path in FILES} - set(LAYERS) == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path):
    own = part_of(module_of(path))
    for module, line in imports(path):
        if module.split(".")[0] != "bgetrain":
            continue
        other = part_of(module)
        if other == "__version__" or (other == own and path.parent != ROOT):
            continue
        same_layer_allowed = LAYERS[own] == 4 and own != "stage" and other not in ("stage", own)
        stage_reads = own == "stage" and other in ("output", "parts", "rules", "card")
        stage_reads |= name_of(path) == "stage/status.py" and other in (
            "lock",
            "owner",
            "steps",
        )  # what others leave is its matter
        stage_reads |= name_of(path) in ("stage/report.py", "stage/compare.py") and other in ("report", "steps")
        allowed = LAYERS[other] < LAYERS[own] or same_layer_allowed or stage_reads
        assert allowed, f"{path}:{line}: {own} (layer {LAYERS[own]}) imports {module} (layer {LAYERS[other]})"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "stage"], ids=name_of)
def test_a_stage_imports_no_stage_but_what_they_share(path):
    others = {module for module, _ in imports(path) if module.startswith("bgetrain.stage.")}
    names = (
        *("against", "benchmark", "build", "documents", "embed", "examples", "foreseen", "masked", "outcomes"),
        *("preflight", "results", "retrieval", "sets", "shapes", "supply", "told", "validation"),
    )
    shared = {f"bgetrain.stage.{name}" for name in names}
    assert others <= shared


def test_target_and_types_import_nothing_of_ours():
    for name in ("target", "types"):
        assert [module for module, _ in imports(ROOT / f"{name}.py") if module.startswith("bgetrain")] == []


@pytest.mark.parametrize("package", PLACES)
def test_a_foreign_package_has_one_place(package):
    found = {name_of(path) for path in FILES for module, _ in imports(path) if f"{module}.".startswith(f"{package}.")}
    assert found <= PLACES[package]
    assert found, f"nothing imports {package}: the rule is out of date"


def test_the_environment_is_read_in_few_places_only():
    reads = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv"):
                reads.add(name_of(path))
    assert reads <= ENVIRONMENT


@pytest.mark.parametrize("name", LIGHT)
def test_what_runs_before_the_check_never_imports_torch(name):
    heavy = {"torch", "transformers", "deepspeed", "datasets", "numpy", "faiss"}
    seen, ahead = set(), [f"bgetrain.{name}"]
    while ahead:
        module = ahead.pop()
        if module in seen or module not in MODULES:
            continue
        seen.add(module)
        file = ROOT.parent / Path(*module.split(".")).with_suffix(".py")
        for node in ast.parse((file if file.exists() else file.with_suffix("") / "__init__.py").read_text("utf8")).body:
            if isinstance(node, ast.Import):
                new = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                new = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            assert not {each.split(".")[0] for each in new} & heavy, f"{module} imports {new}"
            ahead += new


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_imports(path):
    if path.name != "__main__.py":
        if path.stem in ("wandb", "tensorboard", "mlflow"):
            pytest.importorskip(path.stem)
        importlib.import_module(module_of(path))


# --- conf/ ------------------------------------------------------------------------------------------------------------

OPTIONS = [(group, option) for group in selection.groups() for option in selection.options(group)]


def yaml_of(group: str, option: str) -> dict:
    return yaml.safe_load((selection.CONF / group / f"{option}.yaml").read_text("utf8"))


def nodes(cfg: dict) -> dict[str, dict]:
    return {key: node for key, node in cfg.items() if isinstance(node, dict) and node.get("_target_")}


def binds(key: str, node: dict) -> None:
    """Every key of a node is an argument of its function, and what is left to the caller is not in YAML."""
    function = named(node["_target_"])
    parameters = inspect.signature(function).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    given = {name for name in node if name != "_target_" and not (key == "stage" and name in ("name", "answers"))}
    assert open_ended or given <= set(parameters), f"{key}: {node['_target_']} has no argument {given - set(parameters)}"


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_binds_and_names_a_function_of_the_folder_of_its_group(group, option):
    node = yaml_of(group, option)
    node = node["stage"] if group == "stage" else node
    target = node["_target_"]
    if target is None:
        assert (group, option) == ("logger", "none")
        return
    assert target.startswith(f"bgetrain.{group}."), f"conf/{group}/{option}.yaml: {target}"
    binds(group, node)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_the_signature_read_from_source_is_the_real_one(group, option):
    node = yaml_of(group, option)
    target = (node["stage"] if group == "stage" else node)["_target_"]
    if target is None:
        return
    read, real = signature(target), inspect.signature(named(target)).parameters
    assert read is not None
    assert set(read.parameters) == {name for name, each in real.items() if each.kind is not each.VAR_KEYWORD}
    assert read.positional == [name for name, each in real.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert read.open_ended == any(each.kind is each.VAR_KEYWORD for each in real.values())


@pytest.mark.parametrize(("group", "option"), [each for each in OPTIONS if each[0] != "stage"], ids=lambda value: value)
def test_what_a_function_needs_stands_in_its_yaml_or_comes_from_its_caller(group, option):
    """An argument that no YAML has and no option of the group differs in must be one that the caller hands over."""
    node = yaml_of(group, option)
    if node["_target_"] is None:
        return
    real = inspect.signature(named(node["_target_"])).parameters
    missing = {name for name, each in real.items() if name not in node and each.default is each.empty}
    missing -= {name for name, each in real.items() if each.kind is each.VAR_KEYWORD}
    assert missing <= CALLERS.get(group, set()), f"conf/{group}/{option}.yaml lacks {missing - CALLERS.get(group, set())}"


CALLERS = {
    "model": {"masked_lm", "seed", "vocabulary"},
    "optim": {"named_parameters"},
    "engine": {"module", "optimizer", "precision", "world"},
    "cluster": {"run", "command", "num_processes"},
    "logger": {"output_dir", "config"},
    "search": {"queries", "passages", "k", "world", "advance"},
    "loss": {"contrast", "counts", "world", "encoder_logits", "encoder_targets", "decoder_logits",
             "decoder_targets", "encoder_count", "decoder_count"},
}  # fmt: skip


def test_conf_mirrors_the_packages():
    packages = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert set(selection.groups()) <= packages


def fitting(stage: str, group: str) -> list[str]:
    """Options of a group that a stage can use: all, but losses, which belong to their stage.

    Data sets of one format are alike but for their names: all of them for one stage, the first of each for the others.
    """
    if group == "loss":
        return ["retromae", "dupmae", "mlm"] if stage == "retromae" else ["info_nce"]
    if group == "data" and stage != "pairs":
        return list({yaml_of(group, option)["_target_"]: option for option in reversed(selection.options(group))}.values())
    return selection.options(group)


def dummies(group: str, option: str) -> list[str]:
    unset = [key for key, value in yaml_of(group, option).items() if value == "???"]
    values = {"files": "[x]", "sources": "{a: {data: jsonl, files: [x]}}"}
    return [f"{group}.{key}={values.get(key, 'x')}" for key in unset]


def parts(stage: str) -> list[str]:
    listed = [key for each in yaml_of("stage", stage).get("defaults", []) if isinstance(each, dict) for key in each]
    return [key.removeprefix("/") for key in listed] + ["cluster", "logger"]


COMBINED = [
    (stage, group, option) for stage in selection.options("stage") for group in parts(stage) for option in fitting(stage, group)
]


@pytest.mark.parametrize(("stage", "group", "option"), COMBINED, ids=lambda value: value)
def test_every_stage_composes_and_binds_with_every_option(stage, group, option):
    data = [] if group == "data" else ["data.path=x"]
    unset = {"evaluate": data, "search": data, "compare": ["runs=[x,y]"]}.get(stage, [])
    chosen_options = [f"stage={stage}", f"{group}={option}", *unset, *dummies(group, option)]
    cfg = OmegaConf.to_container(config.compose(chosen_options), resolve=True)
    assert isinstance(cfg, dict)
    for key, node in nodes(cfg).items():
        binds(key, node)
    # `data: OPTION` in the sources of a mixture becomes the keys of that option
    chosen = {key: value for key, value in yaml_of(group, option).items() if value != "???" and key != "sources"}
    stages = yaml_of("stage", stage).get(group, {})
    assert {key: cfg[group][key] for key in chosen} == {**chosen, **{key: stages[key] for key in stages if key in chosen}}


@pytest.mark.parametrize("stage", selection.options("stage"))
def test_the_schema_covers_every_top_level_key_and_the_stage_reads_each(stage):
    cfg = config.compose([f"stage={stage}"], missing=True)
    assert set(cfg) <= set(config.Config.__annotations__)
    source = "".join(path.read_text("utf8") for path in FILES)
    for key in cfg:
        assert f'cfg["{key}"]' in source or f'cfg.get("{key}"' in source or f'"{key}"' in source, f"nothing reads {key}"


def test_every_key_of_the_schema_stands_in_some_stage():
    found = {key for stage in selection.options("stage") for key in config.compose([f"stage={stage}"], missing=True)}
    assert found == set(config.Config.__annotations__)
