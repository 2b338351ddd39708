"""Where the ranks that srun has started find each other, and where an error that several have is said once.

Rank 0 keeps a desk on the first free one of some ports of its host. The others come there on plain sockets: before torch is
imported, and because the client of torch's store hangs where another program holds the port. When all are here, the desk's
port becomes that of torch's store, with no moment between in which another program could take it, and the desk moves to a
port that the system chooses.
"""

import contextlib
import errno
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from bgetrain.cluster.wire import AbandonedError, Meeting, heard_from, send

REQUEST_SECONDS = 1.0  # for a guest, which may be another program, to say what it wants
MERGE_SECONDS = 1.0  # in which others may say the same
LINGER_SECONDS = 20.0  # for all ranks to hear that rank 0 has left before they met; they come within a second or two
LAST_SECONDS = 3.0  # for those that have met
WAITING_SECONDS = 60.0  # after which rank 0 says for whom it waits


class Keeper:
    """The desk of rank 0. Its state belongs to one thread; the others have that do what they want done.

    Args:
        name: of the run, which no other has.
        size: ranks in all.
        host: as the others know this machine.
        ports: those to try, in this order.

    Raises:
        ValueError: none of the ports is free.
    """

    def __init__(self, name: str, size: int, host: str, ports: Sequence[int]) -> None:
        self.name, self.size, self.host = name, size, host
        self.listener = claim(host, ports)
        self.waiting: dict[int, socket.socket] = {}  # ranks that are here, by their connections
        self.heard: set[int] = set()  # ranks that have said a line, or have learnt that the run is over
        self.lines: dict[str, list[int]] = {}  # by whom each was said
        self.due: dict[str, float] = {}  # when a line is printed
        self.over = self.met = self.closed = False
        self.orders: list[tuple[Future, Callable[[], Any]]] = []
        self.bell, self.rope = socket.socketpair()
        self.selector = selectors.DefaultSelector()
        for each in (self.bell, self.listener):
            self.selector.register(each, selectors.EVENT_READ)
        threading.Thread(target=self.serve, daemon=True, name="desk").start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """The thread."""
        while not self.closed:
            soonest = min(self.due.values(), default=None)
            for key, _ in self.selector.select(None if soonest is None else max(0.0, soonest - time.monotonic())):
                if key.fileobj is self.bell:
                    self.bell.recv(1)
                elif key.fileobj is self.listener:
                    self.receive()
                else:
                    self.lose(key.fileobj)
            while self.orders:
                future, act = self.orders.pop(0)
                try:
                    future.set_result(act())
                except Exception as error:  # for whoever has ordered it
                    future.set_exception(error)
            for line in [line for line, moment in self.due.items() if moment <= time.monotonic()]:
                self.print_line(line)

    def have(self, act: Callable[[], Any]) -> Any:
        """Has the thread call `act`; returns what that returns."""
        future: Future = Future()
        self.orders.append((future, act))
        self.rope.send(b".")
        return future.result(30)

    def receive(self) -> None:
        """Answers one guest."""
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            try:
                asked = heard_from(connection, REQUEST_SECONDS)
                rank = asked.get("rank")
                if asked.get("name") != self.name or not isinstance(rank, int) or not 0 < rank < self.size:
                    return
                told = any(set(ranks) != {rank} for ranks in self.lines.values())
                send(connection, {"name": self.name, "told": told})
                if asked.get("line"):
                    self.take(str(asked["line"]), rank)
                if asked["what"] == "meet" and not self.over:
                    if rank in self.waiting:  # it has called again: what becomes of its earlier call says nothing
                        self.forget(rank)
                        self.heard.discard(rank)
                    self.waiting[rank] = connection
                    self.selector.register(connection, selectors.EVENT_READ)
                elif asked["what"] == "meet":
                    send(connection, {"over": True})
                if asked["what"] != "meet" or self.over:
                    self.heard.add(rank)
            finally:
                if connection not in self.waiting.values():
                    connection.close()

    def take(self, line: str, rank: int) -> None:
        """Keeps what a rank says; before the ranks have met it is the end of all."""
        if line not in self.lines:
            self.due[line] = time.monotonic() + MERGE_SECONDS
        if rank not in self.lines.setdefault(line, []):  # whoever had no answer says it again
            self.lines[line].append(rank)
        if not self.met:
            self.end()

    def lose(self, connection: Any) -> None:
        """One that waited has gone, unless it has called again or was sent away meanwhile."""
        rank = next((rank for rank, each in self.waiting.items() if each is connection), None)
        if rank is None:
            return
        self.forget(rank)
        if not self.over:
            self.take(f"bgetrain: rank {rank} of {self.size} has left before all had met", rank)

    def forget(self, rank: int) -> None:
        self.heard.add(rank)
        connection = self.waiting.pop(rank)
        self.selector.unregister(connection)
        connection.close()

    def end(self) -> None:
        """Tells all that wait that they wait in vain."""
        self.over = True
        for rank, connection in list(self.waiting.items()):
            with contextlib.suppress(OSError):
                send(connection, {"over": True})
            self.forget(rank)

    def print_line(self, line: str) -> None:
        """Prints what ranks have said, unless rank 0 says the same."""
        self.due.pop(line, None)
        first, *others = sorted(self.lines[line])
        if first:
            who = f"rank {first}" + (f" and {len(others)} other{'s' * (len(others) > 1)}" if others else "")
            print(f"[{who}] {line}", file=sys.stderr, flush=True)

    def say(self, line: str) -> bool:
        """Says a line of rank 0's; False where the desk is closed."""
        if self.closed:
            return False

        def speak() -> None:
            if line not in self.lines or line in self.due:
                print(line, file=sys.stderr, flush=True)
                self.due.pop(line, None)
            self.take(line, 0)
            self.due.pop(line, None)

        self.have(speak)
        return True

    def told(self) -> bool:
        """Whether another rank has said why the run ends."""
        return not self.closed and bool(self.have(lambda: any(set(ranks) != {0} for ranks in self.lines.values())))

    def move(self, port: int) -> None:
        """Goes to another port.

        Raises:
            ValueError: it is taken; this desk stays where it is.
        """
        if self.met or port == self.port:
            return
        listener = claim(self.host, [port])

        def settle() -> None:
            self.replace(listener).close()

        self.have(settle)

    def replace(self, listener: socket.socket) -> socket.socket:
        """Listens elsewhere; returns the socket of before."""
        earlier, self.listener = self.listener, listener
        self.selector.unregister(earlier)
        self.selector.register(listener, selectors.EVENT_READ)
        return earlier

    def meet(self, seconds: float) -> Meeting:
        """Waits for all ranks.

        Raises:
            AbandonedError: one of them has left.
            ValueError: some did not come within `seconds`.
        """
        began, said = time.monotonic(), False
        port = self.port
        while missing := self.have(lambda: [rank for rank in range(1, self.size) if rank not in self.waiting]):
            if self.over:
                raise AbandonedError
            waited = time.monotonic() - began
            names = f"rank{'s' * (len(missing) > 1)} {some(missing)} of {self.size}"
            if waited > seconds:
                self.have(self.end)
                raise ValueError(f"{names} did not come to {self.host}:{port} within {seconds / 60:g} min")
            if waited > WAITING_SECONDS and not said:
                print(f"waiting for {names} at {self.host}:{port}", flush=True)
                said = True
            time.sleep(0.05)
        return Meeting(self.host, port, self.have(self.part).detach())

    def part(self) -> socket.socket:
        """Sends those that wait to the store, whose socket is returned, and moves on."""
        self.met = True
        earlier = self.replace(listening(0))
        for rank, connection in list(self.waiting.items()):
            with contextlib.suppress(OSError):
                send(connection, {"desk": self.port})
            self.forget(rank)
        self.heard.clear()
        return earlier

    def close(self, status: int) -> None:
        """Says what is still to be said; where rank 0 fails, once all have been heard."""
        if self.closed:
            return
        deadline = time.monotonic() + (LAST_SECONDS if self.met else LINGER_SECONDS)
        if status not in (0, 75):
            if not self.met:
                self.have(self.end)
            while self.have(lambda: len(self.heard)) < self.size - 1 and time.monotonic() < deadline:
                time.sleep(0.02)
        self.have(self.finish)

    def finish(self) -> None:
        for line in list(self.due):
            self.print_line(line)
        self.closed = True
        self.listener.close()


def listening(port: int) -> socket.socket:
    """A socket that listens at a port of every address of this machine; 0: at a free one."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=2048)
    return socket.create_server(("", port), backlog=2048)


def claim(host: str, ports: Sequence[int]) -> socket.socket:
    """Listens at the first free port."""
    why = ""
    for port in ports:
        try:
            return listening(port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = str(error.strerror)
        except OverflowError:
            why = "ports end at 65535"
    if len(ports) == 1:
        raise ValueError(f"cluster.port={ports[0]} cannot be used on {host} ({why}): choose another, or null for a free one")
    raise ValueError(f"none of the ports {', '.join(map(str, ports))} of {host} can be used ({why}): set cluster.port")


def some(ranks: Sequence[int]) -> str:
    """Names up to eight."""
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
