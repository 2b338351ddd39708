"""The command line as a person meets it: flags, sweeps, Tab, Ctrl-C, ranks under torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bgetrain import cli

BGETRAIN = Path(sys.executable).with_name("bgetrain")


def shell(*command: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


# --- before anything runs ---------------------------------------------------------------------------------------------

HEAVY = ["torch", "deepspeed", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "faiss", "matplotlib"]
QUICK = [
    (["--help"], 0),
    (["stage=finetune", "--help"], 0),
    (["stage=finetune", "--cfg", "job"], 0),
    (["stage=finetune", "optim.lrr=1e-5"], 2),
    (["stage=finetune", "optim.lr=-1"], 2),
    (["recipe=quickstart", "dry_run=true"], 0),
]


@pytest.mark.parametrize(("arguments", "status"), QUICK, ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_pages_and_mistakes_are_answered_without_the_imports_that_take_seconds(arguments, status, tmp_path):
    # benchmarks/RESULTS.md has the seconds; a test that took the time would judge the machine
    code = (
        "import sys; from bgetrain.cli import main; status = main(sys.argv[1:]); "
        f"assert not sys.modules.keys() & set({HEAVY}), sorted(sys.modules); sys.exit(status)"
    )
    done = shell(sys.executable, "-c", code, *arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == (1 if status else 0)
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_show_the_help_page_and_fail(capsys):
    assert cli.main([]) == 2
    assert "Examples:" in capsys.readouterr().out


def test_version(capsys):
    from bgetrain import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bgetrain {__version__}\n"


def test_a_closed_pipe_is_no_crash():
    done = shell("bash", "-c", f"{BGETRAIN} --help | head -1")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_cfg_job_prints_the_composed_config(capsys):
    assert cli.main(["stage=finetune", "data=jsonl", "optim.lr=3e-5", "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["optim"]["lr"], shown["data"]["files"], shown["output_dir"]) == (3e-5, "???", "outputs/${stage.name}")
    assert cli.main(["--cfg=job", "--resolve", "stage=finetune"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["output_dir"] == "outputs/finetune"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("stage=f", {"stage=filter", "stage=finetune"}),
        ("stage=finetune optim.l", {"optim.lr="}),
        ("stage=finetune data=j", {"data=jsonl"}),
        ("stage=finetune engine=", {f"engine=zero{stage}" for stage in range(4)}),
    ],
)
def test_tab_completes_in_bash(typed, expected):
    """The script that `--shell-completion install=bash` prints, loaded into a real bash that is asked as Tab asks."""
    line = f"bgetrain {typed}"
    script = f"""
        export PATH={BGETRAIN.parent}:$PATH
        eval "$(bgetrain --shell-completion install=bash)"
        complete -p bgetrain >/dev/null || exit 3
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_CWORD={len(line.split()) - 1}
        COMP_WORDS=({line})
        hydra_bash_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = shell("bash", "-c", script)
    assert set(done.stdout.split()) == expected, done.stderr


# --- sweeps -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": f"the {word} sleeps in the {word}s den"} for word in ("fox", "owl", "cat")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenizer(texts: Path, *more: str) -> list[str]:
    small = ["model.vocab_size=60", "model.hidden_size=16", "model.num_layers=1", "data.passage_max_len=64"]
    return ["stage=tokenizer", "data=text", f"data.files=[{texts}]", *small, *more]


def test_a_sweep_runs_each_job_into_a_folder_of_its_own(texts, tmp_path, capsys):
    assert cli.main(["-m", *tokenizer(texts, "seed=1,2", f"output_dir={tmp_path}/sweep")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")] == ["[1/2] seed=1", "[2/2] seed=2"]
    for number, seed in enumerate((1, 2)):
        folder = tmp_path / "sweep" / str(number)
        assert json.loads((folder / "result.json").read_text())["status"] == "done"
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
    assert cli.main(["-m", *tokenizer(texts, "seed=1,2", f"output_dir={tmp_path}/sweep")]) == 0
    assert capsys.readouterr().out.count("already done: ") == 2


def test_a_sweep_that_parts_its_folders_itself_keeps_them(texts, tmp_path):
    assert cli.main(["--multirun", *tokenizer(texts, "seed=1,2", f"output_dir='{tmp_path}/seed_${{seed}}'")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed_1", "seed_2"]


def test_a_job_that_fails_leaves_the_others_and_shows_in_the_status(texts, tmp_path, capsys):
    assert cli.main(["-m", *tokenizer(texts, f"output_dir={tmp_path}", f"data.files=[{texts}],[/nowhere.jsonl],[{texts}]")]) == 2
    assert capsys.readouterr().err == "bgetrain: data.files=/nowhere.jsonl: no such file or folder\n"
    assert sorted(path.parent.name for path in tmp_path.rglob("result.json")) == ["0", "2"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["seed=1,x"], "seed must be a whole number, 0 or above, got 'x'"),
        (["sed=1,2"], "stage=tokenizer has no key 'sed'; did you mean seed?"),
        (["model=tiny,tinny"], "model=tinny: conf/model has no option 'tinny'; did you mean tiny?"),
    ],
)
def test_a_mistake_in_any_job_is_said_before_the_first_runs(texts, tmp_path, capsys, more, said):
    assert cli.main(["-m", *tokenizer(texts, f"output_dir={tmp_path}/out", *more)]) == 2
    assert capsys.readouterr() == ("", f"bgetrain: {said}\n")
    assert not (tmp_path / "out").exists()


# --- real training ----------------------------------------------------------------------------------------------------


def training(model: Path, beir: Path, output: Path, *more: str) -> list[str]:
    return ["stage=finetune", f"model.path={model}", "model.dropout=0", "data=beir", f"data.path={beir}", "data.query_max_len=16",
            "data.passage_max_len=32", "global_batch=8", "group_size=2", "precision=fp32", "save_every=1000", "log_every=1",
            f"output_dir={output}", *more]  # fmt: skip


def logged(output: Path) -> list[dict]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def alive_with(text: str) -> list[int]:
    """Processes whose command line holds `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stopped = path.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not stopped and text in path.joinpath("cmdline").read_text() and int(path.name) != os.getpid():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found


class Terminal:
    """A run in a process group of its own; `ctrl_c` signals the whole group, as a terminal does."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bgetrain", *arguments], stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True
        )

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def train_until(self, output: Path, step: int) -> None:
        deadline = time.monotonic() + 90
        while len(logged(output)) < step:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_ends_after_the_step_saved_and_the_same_command_goes_on_to_the_end(ranks, model_folder, beir_folder, tmp_path):
    output = tmp_path / "out"
    arguments = training(model_folder, beir_folder, output, "total_steps=80", f"num_processes={ranks}")
    first = Terminal(arguments, tmp_path / "first.log")
    first.train_until(output, 3)
    first.ctrl_c()
    assert first.process.wait(30) == 75, first.log.read_text()
    assert alive_with(str(output)) == []
    last = logged(output)[-1]["step"]
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step_{last}"
    said = [line for line in first.log.read_text().splitlines() if "interrupted" in line]
    assert said == [f"interrupted, step {last} of 80 is saved in {output}/checkpoints: the same command goes on from there"]
    assert "Traceback" not in first.log.read_text()
    assert not (output / "result.json").exists()

    second = Terminal(arguments, tmp_path / "second.log")
    assert second.process.wait(90) == 0, second.log.read_text()
    assert [each["step"] for each in logged(output)] == list(range(1, 81))
    assert (output / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_ctrl_c_ends_all_at_once(ranks, model_folder, beir_folder, tmp_path):
    output = tmp_path / "out"
    run = Terminal(training(model_folder, beir_folder, output, "total_steps=100000", f"num_processes={ranks}"), tmp_path / "log")
    run.train_until(output, 2)
    assert len(alive_with(str(output))) == (1 if ranks == 1 else 3)
    run.ctrl_c()
    time.sleep(0.01)
    run.ctrl_c()
    run.process.wait(20)
    assert alive_with(str(output)) == []


@pytest.mark.slow
def test_the_death_of_the_launcher_ends_training(model_folder, beir_folder, tmp_path):
    output = tmp_path / "out"
    run = Terminal(training(model_folder, beir_folder, output, "total_steps=100000", "num_processes=2"), tmp_path / "log")
    run.train_until(output, 2)
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 20
    while alive_with(str(output)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_ranks_that_torchrun_starts_give_the_losses_of_one_process(model_folder, beir_folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    steps = ["total_steps=3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    torchrun += ["-m", "bgetrain"]
    two = shell(*torchrun, *training(model_folder, beir_folder, tmp_path / "two", *steps))
    assert two.returncode == 0, two.stderr
    one = shell(sys.executable, "-m", "bgetrain", *training(model_folder, beir_folder, tmp_path / "one", *steps))
    assert one.returncode == 0, one.stderr
    for ours, theirs in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    again = shell(*torchrun, *training(model_folder, beir_folder, tmp_path / "two", *steps))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") == 1
