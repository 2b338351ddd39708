"""A rank other than 0, as one that comes to rank 0's desk."""

import contextlib
import socket
import time
from collections.abc import Sequence
from typing import Any

from bgetrain.cluster.wire import AbandonedError, Meeting, heard_from, send

CONNECT_SECONDS = 2.0  # for a host to answer
ANSWER_SECONDS = 3.0  # for a desk to greet; another program may be silent for ever
KNOWN_SECONDS = 60.0  # after which a host that was never reached, or ports that others hold, are taken to stay so
NAME_SECONDS = 5.0  # the same of a name that cannot be resolved
LONGEST_PAUSE = 1.0  # seconds between two looks for rank 0, which may still import
SAY_SECONDS = 3.0  # for the desk to be there when there is an error to say
LONGEST_LINE = 30_000  # characters of an error


class Guest:
    """A rank other than 0, as one that comes to the desk.

    Args:
        name: of the run.
        rank: this one.
        host: of rank 0.
        ports: where its desk may be.
    """

    def __init__(self, name: str, rank: int, host: str, ports: Sequence[int]) -> None:
        self.name, self.rank, self.host, self.ports = name, rank, host, list(ports)
        self.met = False

    def move(self, port: int) -> None:
        """Looks there first: where the port is taken, rank 0 says so at its earlier one."""
        if not self.met:
            self.ports = list(dict.fromkeys([port, *self.ports]))

    def ask(self, port: int, what: str, line: str = "") -> tuple[socket.socket, dict[str, Any]] | None:
        """Asks at a port; None where another program answers, or is silent.

        Raises:
            OSError: there is nobody.
        """
        connection = socket.create_connection((self.host, port), CONNECT_SECONDS)
        with contextlib.suppress(OSError):  # one that hangs up is no desk
            send(connection, {"name": self.name, "rank": self.rank, "what": what, "line": line[:LONGEST_LINE]})
            answer = heard_from(connection, ANSWER_SECONDS)
            if answer.get("name") == self.name:
                return connection, answer
        connection.close()
        return None

    def leave_word(self, what: str, line: str = "") -> dict[str, Any] | None:
        """Asks wherever the desk may be; None: it is not found."""
        for port in self.ports:
            with contextlib.suppress(OSError):
                found = self.ask(port, what, line)
                if found:
                    found[0].close()
                    return found[1]
        return None

    def say(self, line: str) -> bool:
        """Has rank 0 say a line; False where it cannot."""
        deadline = time.monotonic() + (0.0 if self.met else SAY_SECONDS)  # it may not be there yet
        while (answer := self.leave_word("say", line)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return answer is not None

    def told(self) -> bool:
        """Whether another rank has said why the run ends."""
        answer = self.leave_word("told")
        return bool(answer and answer["told"])

    def meet(self, seconds: float) -> Meeting:
        """Finds rank 0 and waits for all others.

        Raises:
            AbandonedError: one of them has left.
            ValueError: rank 0 is not found, and will not be; or within `seconds`.
        """
        began, pause = time.monotonic(), 0.05
        self.resolve()
        reached, mute = began, began  # when the host was last there; when a port was last free
        while True:
            answers: list[str] = []
            for port in self.ports:
                try:
                    found = self.ask(port, "meet")
                except ConnectionRefusedError:
                    reached = mute = time.monotonic()
                except OSError as error:
                    mute, why = time.monotonic(), error.strerror or str(error)
                    answers.append(f"{why[0].lower()}{why[1:]}")
                else:
                    reached = time.monotonic()
                    if found:
                        return self.wait(found[0], port, began + seconds)
            now = time.monotonic()
            where = f"{self.host}:{self.ports[0]}" + (f" (nor {', '.join(map(str, self.ports[1:]))})" if self.ports[1:] else "")
            here = socket.gethostname()
            if now - reached > min(seconds, KNOWN_SECONDS):
                raise ValueError(f"rank 0 cannot be reached from {here} at {where}: {answers[-1]}")
            if now - mute > min(seconds, KNOWN_SECONDS):
                raise ValueError(f"other programs hold {where}, none is rank 0 of this run: set cluster.port to a free one")
            if now - began > seconds:
                raise ValueError(f"rank 0 was not found from {here} at {where} within {seconds / 60:g} min")
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)

    def resolve(self) -> None:
        deadline = time.monotonic() + NAME_SECONDS
        while True:
            try:
                socket.getaddrinfo(self.host, self.ports[0])
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    why = f"the name of rank 0's host cannot be resolved on {socket.gethostname()} ({error.strerror})"
                    raise ValueError(f"{self.host}:{self.ports[0]}: {why}; MASTER_ADDR=ADDRESS names another") from error
            time.sleep(0.5)

    def wait(self, connection: socket.socket, port: int, deadline: float) -> Meeting:
        """Waits at the desk until all are here."""
        with connection:
            try:
                answer = heard_from(connection, max(1.0, deadline - time.monotonic()) + ANSWER_SECONDS)
            except OSError:
                answer = {}
        if answer.get("over"):
            raise AbandonedError
        if "desk" not in answer:
            raise ValueError(f"rank 0 ({self.host}:{port}) has left before all ranks had met")
        self.ports, self.met = [int(answer["desk"])], True
        return Meeting(self.host, port, None)

    def close(self, status: int) -> None:
        """There is nothing to be closed."""
