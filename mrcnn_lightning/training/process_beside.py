"""A process beside this one that takes work off it, and is never needed."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

import torch

log = logging.getLogger(__name__)


class ProcessBeside:
    """Calls functions one after the other; what fails there is called again here.

    It steps back for others that want its core, and ends with this process, however that ends.
    """

    def __init__(self) -> None:
        # A fork would have the threads' locks and the device's context of this process.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._work: SimpleQueue[tuple[bytes, Future[bytes]] | None] = SimpleQueue()
        threading.Thread(target=self._hand_over, daemon=True).start()
        self._has_warned = False

    def submit(self, function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
        """Have a function called.

        Args:
            function: of a module, or a class's.
            args: as they are now, on the host.

        Returns:
            What waits for the function and gives its value.
        """
        # Pickled here: torch would pass on tensors in shared memory, which may be small.
        call, answer = pickle.dumps((function, args)), Future[bytes]()
        self._work.put((call, answer))
        return partial(self._value, call, answer)

    def close(self) -> None:
        """End the process."""
        self._work.put(None)
        self._process.kill()
        self._process.join()

    def _hand_over(self) -> None:
        for call, answer in iter(self._work.get, None):
            try:
                self._connection.send_bytes(call)
                answer.set_result(self._connection.recv_bytes())
            except Exception as error:  # nobody may wait for ever
                answer.set_exception(error)

    def _value(self, call: bytes, answer: Future[bytes]) -> Any:
        try:
            problem, value = pickle.loads(answer.result())
        except (EOFError, OSError):  # its end of the pipe is closed
            self._process.join()
            problem, value = f"it has ended with status {self._process.exitcode}", None
        except Exception as error:
            problem, value = f"{type(error).__name__}: {error}", None
        if problem is None:
            return value
        if not self._has_warned:
            log.warning(
                "task.background_scoring: the process beside training has failed, and what it "
                "was to do is done in training's time: %s",
                problem,
            )
            self._has_warned = True
        function, args = pickle.loads(call)
        return function(*args)


def _serve(connection: Connection) -> None:
    """What the process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("SIGINT", "SIGUSR1"):  # which come to all processes of a run, and let it save
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)
    torch.set_num_threads(1)
    while True:
        call, problem, value = connection.recv_bytes(), None, None
        try:
            function, args = pickle.loads(call)
            value = function(*args)
        except Exception as error:  # the function is called again where that can be seen
            problem = f"{type(error).__name__}: {error}"
        connection.send_bytes(pickle.dumps((problem, value)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
