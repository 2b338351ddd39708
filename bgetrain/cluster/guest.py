"""A rank other than 0, as one that comes to rank 0's desk."""

import contextlib
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

from bgetrain.cluster.wire import AbandonedError, Meeting, heard_from, send

CONNECT_SECONDS = 2.0  # for a host to answer
ANSWER_SECONDS = 3.0  # for a desk to answer; another program may be silent for ever
KNOWN_SECONDS = 60.0  # after which a host that was never reached, or ports where no desk answers, are taken to stay so
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
        connection = self.call(port, what, line)
        answer = self.greeting(connection)
        if answer:
            return connection, answer
        connection.close()
        return None

    def call(self, port: int, what: str, line: str = "") -> socket.socket:
        """Connects and says what is wanted.

        Raises:
            OSError: there is nobody.
        """
        connection = socket.create_connection((self.host, port), CONNECT_SECONDS)
        with contextlib.suppress(OSError):  # one that hangs up, as reading from it will show
            send(connection, {"name": self.name, "rank": self.rank, "what": what, "line": line[:LONGEST_LINE]})
        return connection

    def greeting(self, connection: socket.socket) -> dict[str, Any]:
        """What a desk of this run answers; empty where another program answers, or is silent."""
        with contextlib.suppress(OSError):
            answer = heard_from(connection, ANSWER_SECONDS)
            if answer.get("name") == self.name:
                return answer
        return {}

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
        # One that is silent may be rank 0, standing still while it imports: the call is held as long as others are tried.
        calls: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as held:
            while True:
                why = ""
                for port in [port for port in self.ports if port not in calls]:
                    try:
                        calls[port] = held.enter_context(self.call(port, "meet"))
                    except ConnectionRefusedError:
                        reached = mute = time.monotonic()
                    except OSError as error:
                        mute, why = time.monotonic(), error.strerror or str(error)
                answering = select.select(calls.values(), [], [], pause)[0]
                reached = time.monotonic() if calls else reached
                for port, connection in [each for each in calls.items() if each[1] in answering]:
                    if self.greeting(connection):
                        return self.wait(connection, port, began + seconds)
                    calls.pop(port).close()
                self.despair(time.monotonic(), began, reached, mute, seconds, why, bool(calls))
                if answering or not calls:
                    time.sleep(pause)
                pause = min(LONGEST_PAUSE, 1.5 * pause)

    def despair(self, now: float, began: float, reached: float, mute: float, seconds: float, why: str, is_silent: bool) -> None:
        """Gives up where it is time to.

        Args:
            now: as the clock of all these, in seconds.
            began: when rank 0 was first looked for.
            reached: when its host was last there.
            mute: when one of the ports was last free.
            seconds: after which all is in vain.
            why: the host was not there at the last look.
            is_silent: somebody holds a port there and does not answer.

        Raises:
            ValueError: it is.
        """
        where = f"{self.host}:{self.ports[0]}" + (f" (nor {', '.join(map(str, self.ports[1:]))})" if self.ports[1:] else "")
        here = socket.gethostname()
        known = min(seconds, KNOWN_SECONDS)
        if now - reached > known:
            raise ValueError(f"rank 0 cannot be reached from {here} at {where}: {why[:1].lower()}{why[1:]}")
        if now - mute > known and is_silent:
            raise ValueError(
                f"nobody has answered {here} at {where} for {known:g} s: rank 0 stands still there, or other programs hold these "
                "ports; if so, set cluster.port to a free one"
            )
        if now - mute > known:
            raise ValueError(f"other programs hold {where}, none is rank 0 of this run: set cluster.port to a free one")
        if now - began > seconds:
            raise ValueError(f"rank 0 was not found from {here} at {where} within {seconds / 60:g} min")

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
