"""job.sbatch: a script that starts one run under SLURM, readable, and good for running by hand."""

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bgetrain.cluster.place import Command

TEMPLATE = Path(__file__).with_name("job.sh")
SCRIPT, TASKS = "job.sbatch", "jobs.txt"
PLAIN = re.compile(r"[\w./:,=+@%-]+", re.ASCII)  # what sbatch takes without quotes
NEVER = re.compile(r"\+{0,2}resume=['\"]?never['\"]?")  # as Hydra takes it
LEFT_SECONDS = 60  # beyond the heartbeat, for ranks that remain when one has left: the first one may be writing
SIGNAL_EARLY_SECONDS = 60  # by which SLURM may send its signal before it is due
FIRST_START = """\
# resume=never counts until this job has begun the run: from then on it goes on
mark=$out/.began-$job
if [ ! -e "$mark" ]; then
    mkdir -p "$out" && : >"$mark"
elif [ "$out/config.yaml" -nt "$mark" ]; then
    for each in "${!run[@]}"; do
        word=${run[each]//[+\\"\\']/} # +resume= and ++resume= say the same
        [ "$word" != resume=never ] || unset "run[each]"
    done
fi"""


def write(command: Command, request: Mapping[str, Any]) -> Path:
    """Writes OUT/job.sbatch and returns its absolute path.

    Args:
        command: what it starts.
        request: the keys of conf/cluster/slurm.yaml.
    """
    folder = Path(command.output_dir).absolute()
    listed = "\n".join(f"    {shlex.quote(each)}" for each in command.arguments)
    return put(folder, [command], request, f"out={shlex.quote(str(folder))}\nrun=(\n{listed}\n)")


def write_array(commands: Sequence[Command], folder: Path, request: Mapping[str, Any]) -> Path:
    """Writes a script that runs one command for each task of an array, and jobs.txt, where they stand; returns its path.

    Args:
        commands: of a sweep, each with a folder of its own.
        folder: receives job.sbatch, jobs.txt and the logs.
        request: the keys of conf/cluster/slurm.yaml; each task gets all of it.

    Raises:
        ValueError: an override with a line break, which jobs.txt cannot hold.
    """
    rows = [shlex.join([str(Path(each.output_dir).absolute()), *each.arguments]) for each in commands]
    broken = next((row for row in rows if "\n" in row), None)
    if broken is not None:
        raise ValueError(f"a sweep under cluster=slurm cannot hold a line break: {broken!r}")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = folder / TASKS
    tasks.write_text("".join(f"{row}\n" for row in rows), "utf8")
    picked = f"""\
# {tasks.name} has a line for each task of the array, from 0: output folder, overrides
eval "run=($(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(tasks))}))"
out=${{run[0]}} run=("${{run[@]:1}}")"""
    return put(folder, commands, request, picked)


def put(folder: Path, commands: Sequence[Command], request: Mapping[str, Any], run: str) -> Path:
    """Fills in the template."""
    request = sized(commands[0], request)
    path, is_array = folder / SCRIPT, len(commands) > 1 or TASKS in run
    first = commands[0]
    log = f"slurm-{'%A_%a' if is_array else '%j'}.out"
    folders = list(dict.fromkeys(str(Path(each.output_dir).absolute()) for each in commands))
    nodes, tasks = request["nodes"], tasks_per_node(request)
    shape = f"{nodes * tasks} rank{'s' * (nodes * tasks > 1)}: {counted(nodes, 'node')} x {counted(tasks, 'task')}"
    many = f"{len(commands)} runs of " if is_array else ""
    filled = {
        "OPTIONS": "\n".join(f"#SBATCH {each}" for each in options(first.name, folder / log, request)),
        "TITLE": f"bgetrain: {many}stage={first.name} on {shape}{' each' * is_array}",
        "SCRIPT": shlex.quote(str(path)) if not is_array else f"--array=0-{len(commands) - 1} {shlex.quote(str(path))}",
        "LOG": shlex.quote(str(folder / log.replace("%j", "ID").replace("%A_%a", "ID_TASK"))),
        "SECONDS": str(request["save_before_seconds"]),
        "RESTARTS": str(request["max_restarts"]),
        "SOON": str(2 * request["save_before_seconds"] + SIGNAL_EARLY_SECONDS),
        "RUN": run,
        "PREPARE": "\n".join(preparation(commands, request)),
        "START": starting(request, folders),
    }
    text = re.sub(r"@([A-Z]+)@", lambda found: filled[found[1]], TEMPLATE.read_text("utf8"))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\n{3,}", "\n\n", text), "utf8")
    return path


def sized(command: Command, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request, for one node where the stage, such as check, has a number of processes, and for no more GPUs than those.

    One that uses no GPU still asks for one where its cluster has some: a partition of GPUs may refuse jobs without.
    """
    tasks = command.num_processes
    if tasks is None:
        return request
    return {**request, "nodes": 1, "tasks_per_node": tasks, "gpus_per_node": min(request["gpus_per_node"], tasks)}


def size(command: Command, request: Mapping[str, Any]) -> str:
    """The size of a job in words."""
    asked = sized(command, request)
    gpus = asked["gpus_per_node"]
    return f"{counted(asked['nodes'], 'node')} of {counted(gpus, 'GPU') if gpus else counted(tasks_per_node(asked), 'rank')}"


def tasks_per_node(request: Mapping[str, Any]) -> int:
    """Ranks on each node."""
    return int(request["tasks_per_node"] or request["gpus_per_node"] or 1)


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def options(name: str, log: Path, request: Mapping[str, Any]) -> list[str]:
    """What stands behind #SBATCH; the user's own lines come last, and count where they repeat one."""
    gpus, kind = request["gpus_per_node"], f"{request['gpu_type']}:" if request["gpu_type"] else ""
    asked = {"gpus-per-node": f"--gpus-per-node={kind}{gpus}", "gres": f"--gres=gpu:{kind}{gpus}", "none": ""}
    escaped = str(log.parent).replace("%", "%%")
    given = {
        "job-name": request["job_name"] or f"bgetrain-{name}",
        "chdir": str(Path.cwd()),
        "output": f"{escaped}/{log.name}",
        "open-mode": "append",
        "nodes": request["nodes"],
        "ntasks-per-node": tasks_per_node(request),
        "cpus-per-task": request["cpus_per_task"],
        "mem": request["memory"],
        "time": request["time"],
        "partition": request["partition"],
        "account": request["account"],
        "qos": request["qos"],
        "reservation": request["reservation"],
        "constraint": request["constraint"],
        "signal": f"B:USR1@{request['save_before_seconds']}",
    }
    lines = [option(key, value) for key, value in given.items() if value is not None]
    lines += [asked[request["gpu_request"]]] * (gpus > 0)
    lines += ["--exclusive"] * request["exclusive"] + ["--requeue", *request["sbatch_lines"]]
    return [line for line in lines if line]


def option(key: str, value: object) -> str:
    """`--key=value` as sbatch reads it from a script."""
    text = str(value)
    if "\n" in text:
        raise ValueError(f"--{key}={text!r} of job.sbatch holds a line break: use another folder")
    if PLAIN.fullmatch(text):
        return f"--{key}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{key}="{escaped}"'


def preparation(commands: Sequence[Command], request: Mapping[str, Any]) -> list[str]:
    """What the batch script does before srun: variables, modules, the user's lines; one that fails ends the job."""
    environment = dict(request["environment"])
    if request["port"] is not None:
        environment["MASTER_PORT"] = request["port"]
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    own = []
    if request["modules"]:
        own.append("command -v module >/dev/null || . /etc/profile")
        own.append(shlex.join(["module", "load", *request["modules"]]))
    own += request["setup"]
    if own:
        lines += ["", "set -e # a line that fails ends the job", *own, "set +e"]
    if any(NEVER.fullmatch(word) for each in commands for word in each.arguments):
        lines += ["", *FIRST_START.split("\n")]
    return ["", *lines, ""] if lines else [""]


def starting(request: Mapping[str, Any], folders: Sequence[str]) -> str:
    """The command that starts the ranks, a line for each part of it."""
    flags = [shlex.join(part) for part in srun_parts(request, folders)]
    return " \\\n        ".join([f"    {flags[0]}", *flags[1:], '"${run[@]}"'])


def srun_parts(request: Mapping[str, Any], folders: Sequence[str]) -> list[list[str]]:
    """srun, its flags, and what each task runs, up to the overrides.

    A rank that ends is no reason to kill the others, which may be saving, or about to say why; they leave by themselves, and
    `--wait` is for those that cannot.

    Args:
        request: the keys of conf/cluster/slurm.yaml.
        folders: that a container needs, beside the current one.
    """
    nodes, tasks = request["nodes"], tasks_per_node(request)
    wait = math.ceil(request["heartbeat_seconds"]) + LEFT_SECONDS
    shape = [f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}"]
    shape += [f"--cpus-per-task={request['cpus_per_task']}"] if request["cpus_per_task"] else []  # srun does not inherit it
    parts = [["srun", *shape], ["--kill-on-bad-exit=0", f"--wait={wait}", "--export=ALL"]]
    parts += [list(request["srun_flags"])] if request["srun_flags"] else []
    inside = [str(Path.cwd()), *folders]
    mounts = [*(f"{each}:{each}" for each in dict.fromkeys(inside)), *request["container_mounts"]]
    if request["container"] and request["container_with"] == "pyxis":
        parts.append([f"--container-image={request['container']}", f"--container-workdir={Path.cwd()}"])
        parts.append([f"--container-mounts={','.join(mounts)}"])
    elif request["container"]:
        nvidia = ["--nv"] * (request["gpus_per_node"] > 0)
        binds = [word for mount in mounts for word in ("--bind", mount)]
        parts.append(["apptainer", "exec", *nvidia, "--pwd", str(Path.cwd()), *binds, request["container"]])
    python = request["python"] or ("python3" if request["container"] else sys.executable)
    return [*parts, [python, "-m", "bgetrain"]]
