"""Ranks of srun, from SLURM's variables, and the desk where they meet; no SLURM, and no torch but where GPUs are."""

import os
import random
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bgetrain.cluster import desk, guest, local, srun
from bgetrain.cluster.desk import Keeper
from bgetrain.cluster.guest import Guest
from bgetrain.cluster.wire import AbandonedError

# of the last of five tasks on three nodes
TASK = {
    "SLURM_JOB_ID": "31007", "SLURM_STEP_ID": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "gpu-b[007,9-10],c1",
}  # fmt: skip
LISTS = {
    "node1": "node1", "node[1-4]": "node1", "gpu[08-11,2]": "gpu08", "a7-[3,5]": "a7-3", "n1,n2": "n1", "x[003-4],y1": "x003",
    "rack[2-3]n[07-08]": "rack2n07", "b,a[1-2]": "b", "h100-[12]": "h100-12",
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of SLURM or a launcher; what the code sets goes with the test."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "MASTER", "CUDA", "ROCR")) or name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
        ):
            monkeypatch.delenv(name)
    kept = dict(os.environ)
    yield monkeypatch.setenv
    for each in srun.DESKS:
        each.close(0)
    srun.DESKS.clear()
    os.environ.clear()
    os.environ.update(kept)


def task(setenv, **others) -> None:
    for name, value in {**TASK, **others}.items():
        setenv(name, value)


def free_ports(number: int) -> list[int]:
    """Ports that nothing holds, outside of those that the system hands out."""
    found = []
    while len(found) < number:
        port = random.randint(12_000, 19_000)
        try:
            desk.listening(port).close()
        except OSError:
            continue
        if port not in found:
            found.append(port)
    return found


@pytest.mark.parametrize(("nodes", "first"), LISTS.items())
def test_the_first_host_of_a_list(nodes, first):
    assert srun.first_host(nodes) == first


@pytest.mark.skipif(not shutil.which("scontrol"), reason="no scontrol to compare with")
def test_the_first_host_is_the_one_that_scontrol_names(tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=x\n")
    draw = random.Random(0)
    for nodes in [*LISTS, *(drawn(draw) for _ in range(60))]:
        words = ["scontrol", "show", "hostnames", nodes]
        known = subprocess.run(words, env={**os.environ, "SLURM_CONF": f"{tmp_path}/slurm.conf"}, capture_output=True, text=True)
        assert known.stdout.split()[0] == srun.first_host(nodes), nodes


def drawn(draw: random.Random) -> str:
    """A list of one to three parts, such as `a3-[02-07,9],node`."""
    parts = []
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(["n", "gpu-", "a3-", "h100-x", "r2d2n"])
        ranges = []
        for _ in range(draw.randint(0, 3)):
            width, first = draw.randint(1, 4), draw.randint(0, 900)
            ranges.append(draw.choice([f"{first:0{width}}", f"{first:0{width}}-{first + draw.randint(1, 9):0{width}}"]))
        parts.append(f"{name}[{','.join(ranges)}]" if ranges else f"{name}7")
    return ",".join(parts)


@pytest.mark.parametrize(("counts", "each"), [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("8(x6)", [8] * 6), ("1,4(x2)", [1, 4, 4])])
def test_tasks_of_each_node(counts, each):
    assert [srun.tasks_of_node(counts, node) for node in range(len(each))] == each


def test_a_task_knows_its_place(environment):
    task(environment)
    srun.adopt()
    place = local.joined(1.0, 60.0)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (4, 5, 0, 1)
    assert os.environ["MASTER_ADDR"] == "gpu-b007"
    assert int(os.environ["MASTER_PORT"]) == srun.ports(31007, 2, 0)[0] == 20_000 + (31007 + 2 * 1_009) % 12_000


@pytest.mark.parametrize(
    "others",
    [
        {"RANK": "1"},  # torchrun under srun
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_ID": "4294967290"},  # the shell of salloc
    ],
)
def test_who_is_no_rank_of_srun_stays_so(environment, others):
    task(environment, **others)
    srun.adopt()
    assert not srun.is_rank()
    assert "MASTER_ADDR" not in os.environ


def test_an_address_and_a_port_that_are_given_hold_and_a_foreign_world_does_not(environment):
    task(environment, MASTER_ADDR="10.0.0.7", MASTER_PORT="29500", WORLD_SIZE="64")
    srun.adopt()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["WORLD_SIZE"]) == ("10.0.0.7", "29500", "5")
    assert srun.DESKS[0].ports[0] == 29500


def test_ports_are_those_of_the_step_and_differ_for_neighbours():
    one = srun.ports(12345, 0, 0)
    assert len(set(one)) == srun.CANDIDATES
    assert all(20_000 <= port < 32_000 for port in one)
    others = [srun.ports(12346, 0, 0), srun.ports(12345, 1, 0), srun.ports(12345, 0, 1)]
    assert all(not set(one) & set(other) for other in others)


@pytest.mark.parametrize(
    ("usable", "variables", "local_size", "threads"),
    [
        (64, {}, 8, None),  # a machine without SLURM
        (64, {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "16"}, 8, 2),  # torchrun in a batch script, where nothing binds
        (8, {**TASK, "SLURM_CPUS_ON_NODE": "64", "SLURM_NODEID": "0"}, 2, 8),  # bound to its own
        (16, {**TASK, "SLURM_CPUS_ON_NODE": "16", "SLURM_NODEID": "0"}, 2, 8),  # bound to those of its job
        (64, {**TASK, "SLURM_CPUS_ON_NODE": "16", "SLURM_NODEID": "0"}, 2, 8),  # not bound
        (64, {**TASK, "SLURM_CPUS_ON_NODE": "16", "SLURM_CPUS_PER_TASK": "6", "SLURM_NODEID": "0"}, 2, 6),
        (1, {**TASK, "SLURM_CPUS_ON_NODE": "16", "SLURM_CPUS_PER_TASK": "6", "SLURM_NODEID": "0"}, 2, 1),
    ],
)
def test_cores_that_slurm_has_dealt_out_are_not_divided_again(environment, monkeypatch, usable, variables, local_size, threads):
    for name, value in variables.items():
        environment(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    srun.adopt()
    assert srun.threads(local_size) == threads


@pytest.mark.parametrize(
    ("visible", "on_node", "own"), [("0,1", "2", False), ("1", "2", True), ("0", "1", False), (None, None, False)]
)
def test_a_task_bound_to_its_gpus_is_told_from_one_that_sees_all(environment, visible, on_node, own):
    task(environment, **({"CUDA_VISIBLE_DEVICES": visible, "SLURM_GPUS_ON_NODE": on_node} if visible else {}), SLURM_LOCALID="1")
    srun.adopt()
    assert local.joined(1.0, 60.0).has_own_gpus == own
    assert local.joined(1.0, 60.0).local_rank == 1
    assert os.environ["LOCAL_RANK"] == ("0" if own else "1")  # which DeepSpeed takes for the number of a GPU


@pytest.mark.parametrize(("own", "visible", "device"), [(True, 1, 0), (True, 2, 0), (False, 2, 1), (False, 1, None)])
def test_a_task_with_gpus_of_its_own_takes_the_first_and_one_that_sees_all_takes_its_own(monkeypatch, own, visible, device):
    import torch

    from bgetrain import distributed

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    if device is None:
        with pytest.raises(ValueError, match="num_processes=2 exceeds the 1 GPUs of this machine"):
            distributed.start(1, 2, 1, 2, 1.0, threads=3, has_own_gpus=own)
    else:
        assert distributed.start(1, 2, 1, 2, 1.0, threads=3, has_own_gpus=own).device == torch.device("cuda", device)
        assert chosen == [3, torch.device("cuda", device)]


# --- the desk ---------------------------------------------------------------------------------------------------------


def meet(keeper: Keeper, guests: list[Guest], seconds: float = 20.0) -> list:
    """What each rank's `meet` returned or raised."""

    def one(each):
        try:
            return each.meet(seconds)
        except (AbandonedError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(guests) + 1) as pool:
        return list(pool.map(one, [keeper, *guests]))


def run_of(size: int, ports: list[int], name: str = "run 1") -> tuple[Keeper, list[Guest]]:
    return Keeper(name, size, "127.0.0.1", ports), [Guest(name, rank, "127.0.0.1", ports) for rank in range(1, size)]


def test_ranks_meet_at_the_first_port_that_no_other_holds(monkeypatch):
    """The first is held by a program that never speaks, the second by the desk of another run, the third by a store."""
    import torch.distributed

    monkeypatch.setattr(guest, "ANSWER_SECONDS", 0.3)
    ports = free_ports(4)
    with desk.listening(ports[0]):
        other = Keeper("run 2", 3, "127.0.0.1", [ports[1]])
        store = torch.distributed.TCPStore("127.0.0.1", ports[2], None, True, wait_for_workers=False)
        keeper, guests = run_of(3, ports)
        found = meet(keeper, guests)
        assert [each.port for each in found] == [ports[3]] * 3
        assert [each.listener is None for each in found] == [False, True, True]
        os.close(found[0].listener)
        assert other.waiting == {}
        del store
        for each in (keeper, other):
            each.close(0)


def test_a_first_rank_that_stands_still_is_waited_for(monkeypatch):
    """As it does where torch comes from a cold disk; guests that called again would be taken for dead."""
    monkeypatch.setattr(guest, "ANSWER_SECONDS", 0.3)
    ports = free_ports(2)
    with desk.listening(ports[0]):  # by a program that is silent for ever
        keeper, guests = run_of(3, ports)
        still = threading.Thread(target=keeper.have, args=(lambda: time.sleep(1.5),))
        still.start()
        assert [each.port for each in meet(keeper, guests)] == [ports[1]] * 3
        still.join()
        keeper.close(0)


def test_a_rank_that_calls_again_has_not_left():
    keeper, guests = run_of(3, free_ports(1))
    port = keeper.port
    earlier, _ = guests[0].ask(port, "meet")
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(guests[0].meet, 20.0)
        time.sleep(0.3)
        earlier.close()
        time.sleep(0.3)
        found = meet(keeper, guests[1:])
        assert [each.port for each in [*found, later.result()]] == [port] * 3
    os.close(found[0].listener)
    keeper.close(0)


def test_torch_s_store_takes_the_port_over():
    from datetime import timedelta

    from bgetrain import distributed

    keeper, guests = run_of(2, free_ports(2))
    found = meet(keeper, guests)
    stores = [distributed.store_at(each, timedelta(seconds=10)) for each in found]
    stores[0].set("a", "b")
    assert stores[1].get("a") == b"b"
    assert stores[1].clone().port == found[0].port
    keeper.close(0)


def test_a_fixed_port_that_is_taken_is_refused_by_all_in_one_line(capfd, monkeypatch):
    monkeypatch.setattr(guest, "ANSWER_SECONDS", 0.3)
    taken, *ports = free_ports(3)
    keeper, guests = run_of(3, ports)
    with desk.listening(taken):
        for each in guests:
            each.move(taken)
        with pytest.raises(ValueError, match=f"cluster.port={taken} cannot be used on 127.0.0.1 .*: choose another, or null"):
            keeper.move(taken)
        keeper.say("refused")  # as the command line does
        assert all(isinstance(each, AbandonedError) for each in meet(keeper, guests))
        keeper.close(2)
    assert capfd.readouterr().err == "refused\n"


def test_a_fixed_port_that_is_free_is_where_they_meet():
    fixed, *ports = free_ports(3)
    keeper, guests = run_of(2, ports)
    for each in (keeper, *guests):
        each.move(fixed)
    found = meet(keeper, guests)
    assert [each.port for each in found] == [fixed] * 2
    os.close(found[0].listener)
    keeper.close(0)


def test_what_several_ranks_say_comes_once_and_what_one_says_is_heard(capfd, monkeypatch):
    keeper, guests = run_of(4, free_ports(1))
    assert not guests[0].told()
    assert all(each.say("same") for each in guests)
    assert guests[2].say("own")
    assert guests[0].told()
    assert keeper.told()
    keeper.say("same")
    keeper.close(2)
    assert capfd.readouterr().err.splitlines() == ["same", "[rank 3] own"]
    monkeypatch.setattr(guest, "SAY_SECONDS", 0.1)
    assert not guests[0].say("too late")


def test_a_line_of_several_ranks_but_the_first_says_of_how_many(capfd, monkeypatch):
    monkeypatch.setattr(desk, "MERGE_SECONDS", 0.2)
    keeper, guests = run_of(4, free_ports(1))
    for each in guests:
        each.say("same")
    time.sleep(0.5)
    assert capfd.readouterr().err == "[rank 1 and 2 others] same\n"
    keeper.close(0)


def test_one_that_fails_before_all_have_met_ends_the_waiting_of_all(capfd):
    keeper, guests = run_of(4, free_ports(1))
    threading.Timer(0.3, lambda: guests[2].say("no such file")).start()
    assert all(isinstance(each, AbandonedError) for each in meet(keeper, guests[:2]))
    keeper.close(1)
    assert capfd.readouterr().err == "[rank 3] no such file\n"


def test_one_that_dies_while_it_waits_is_named(capfd):
    keeper, guests = run_of(4, free_ports(1))
    threading.Timer(0.3, guests[1].ask(keeper.port, "meet")[0].close).start()
    assert all(isinstance(each, AbandonedError) for each in meet(keeper, guests[:1]))
    keeper.close(0)
    assert capfd.readouterr().err == "[rank 2] bgetrain: rank 2 of 4 has left before all had met\n"


def test_the_death_of_rank_0_ends_the_waiting_of_the_others():
    port = free_ports(1)[0]
    code = f"""
        import time
        from bgetrain.cluster.desk import Keeper
        Keeper("run 1", 3, "x", [{port}])
        print(flush=True)
        time.sleep(60)
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    first.stdout.readline()
    threading.Timer(0.5, first.kill).start()
    with pytest.raises(ValueError, match=f"rank 0 .127.0.0.1:{port}. has left before all ranks had met"):
        Guest("run 1", 1, "127.0.0.1", [port]).meet(30.0)
    first.wait()


def test_ranks_that_do_not_come_are_named():
    keeper, guests = run_of(4, free_ports(1))
    found = meet(keeper, guests[:1], 1.0)
    assert str(found[0]) == f"ranks 2, 3 of 4 did not come to 127.0.0.1:{keeper.port} within 0.0166667 min"
    assert isinstance(found[1], AbandonedError)
    keeper.close(0)


def test_a_host_that_cannot_be_found_is_named_with_its_port_before_any_timeout(monkeypatch):
    monkeypatch.setattr(guest, "NAME_SECONDS", 0.1)
    with pytest.raises(
        ValueError, match=r"no-such-host\.invalid:20001: the name of rank 0's host cannot be resolved on .*MASTER_ADDR"
    ):
        Guest("run 1", 1, "no-such-host.invalid", [20001]).meet(1800.0)


def test_a_host_that_cannot_be_reached_is_named_with_its_port_before_any_timeout(monkeypatch):
    monkeypatch.setattr(guest, "KNOWN_SECONDS", 0.1)

    def unreachable(*_):
        raise OSError(113, "No route to host")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(ValueError, match=r"rank 0 cannot be reached from \S+ at 127\.0\.0\.1:20001: no route to host"):
        Guest("run 1", 1, "127.0.0.1", [20001]).meet(1800.0)


def test_ports_that_others_hold_for_good_are_named_before_any_timeout(monkeypatch):
    monkeypatch.setattr(guest, "KNOWN_SECONDS", 0.1)
    monkeypatch.setattr(guest, "ANSWER_SECONDS", 0.1)
    port = free_ports(1)[0]
    other = Keeper("run 2", 3, "127.0.0.1", [port])
    with pytest.raises(ValueError, match=f"other programs hold 127.0.0.1:{port}"):
        Guest("run 1", 1, "127.0.0.1", [port]).meet(1800.0)
    other.close(0)


def test_of_ports_that_are_silent_it_is_not_said_that_others_hold_them(monkeypatch):
    monkeypatch.setattr(guest, "KNOWN_SECONDS", 0.1)
    port = free_ports(1)[0]
    with desk.listening(port), pytest.raises(ValueError, match=f"nobody has answered .* at 127.0.0.1:{port} for 0.1 s: rank 0"):
        Guest("run 1", 1, "127.0.0.1", [port]).meet(1800.0)
