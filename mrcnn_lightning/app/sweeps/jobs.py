"""The jobs of a sweep as processes: started, told when the sweep is told to end, waited for."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple

from mrcnn_lightning.app.errors import ERROR_FILE
from mrcnn_lightning.app.record import Record, read_record
from mrcnn_lightning.app.sweeps.locks import take_lock

log = logging.getLogger(__name__)

OUTPUT = "output.txt"
_LOCK = ".job"
_LOOK_EVERY = 0.5  # seconds
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Outcome(NamedTuple):
    """How a job ended.

    Attributes:
        status: finished, pruned, stopped or failed.
        ap: what it returned, if it did.
        error: why it failed, in a sentence.
    """

    status: str
    ap: float | None = None
    error: str | None = None


class Jobs:
    """The jobs that run now.

    Attributes:
        signum: the signal that the sweep got; no job starts after one.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        # The handler of a signal may interrupt its own thread wherever that is.
        self._lock = threading.RLock()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Answer signals: the jobs get the first one, save and end; a second one kills them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.getsignal(each) for each in _SIGNALS}
        heard = [each for each, handler in before.items() if handler != signal.SIG_IGN]
        for each in heard:
            signal.signal(each, self._receive)
        try:
            yield
        finally:
            for each in heard:
                signal.signal(each, before[each])

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        environment: dict[str, str],
        on_screen: bool,
    ) -> Outcome:
        """Run a job to its end, after one that an earlier start of the sweep left in its folder.

        Args:
            command: of the job.
            folder: of its run.
            environment: variables beside those of this process.
            on_screen: whether the job writes to the screen, or to a file in its folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock, has_said = None, False
        while lock is None:
            if self.signum is not None:
                return Outcome("stopped")
            lock = take_lock(folder / _LOCK)
            if lock is None and not has_said:
                log.info("the job in %s still runs since an earlier start: waiting", folder)
                has_said = True
            if lock is None:
                time.sleep(_LOOK_EVERY)
        before = read_record(folder)
        with lock, (folder / OUTPUT).open("ab") if not on_screen else _screen() as output:
            process = self._start(command, environment, output, lock.fileno())
            if process is None:
                return Outcome("stopped")
            try:
                process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)
        record = read_record(folder)
        said = {} if record is None or (process.returncode and record == before) else record
        return _outcome(folder, said, process.returncode, was_told=self.signum is not None)

    def _start(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        output: BinaryIO | None,
        lock: int,
    ) -> "subprocess.Popen[bytes] | None":
        with self._lock:
            if self.signum is not None:
                return None
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,  # the terminal's Ctrl-C reaches the sweep alone
                pass_fds=[lock],  # held as long as the job lives, also without this process
            )
            self._running.add(process)
            if self.signum is not None:  # it came within these lines
                process.send_signal(self.signum)
        return process

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        with self._lock:
            is_second = self.signum is not None
            self.signum = self.signum or signum
            running = list(self._running)
            for process in running:
                with suppress(ProcessLookupError):
                    if is_second:
                        os.killpg(process.pid, signal.SIGKILL)
                    else:
                        process.send_signal(signum)
        # No print: the signal may have come within one.
        os.write(2, f"\nstopping {len(running)} jobs; a second time ends them at once\n".encode())


jobs = Jobs()


@contextmanager
def _screen() -> Iterator[None]:
    """Let a job write where this process does."""
    sys.stdout.flush()
    sys.stderr.flush()
    yield None


def _outcome(folder: Path, record: dict[str, Any], status: int, *, was_told: bool) -> Outcome:
    """How a job ended, by what it said of itself and by its exit status."""
    if status == 0:
        return Outcome(record.get("status", "finished"), record.get("ap"))
    if record.get("status") == "stopped" or was_told:
        return Outcome("stopped")
    error = record.get("error") if record.get("status") == "failed" else None
    error = error or _first_failure(folder) or _ending(status)
    Record(folder, goes_on=True).note(status="failed", error=error)  # one that died could not
    return Outcome("failed", error=error)


def _first_failure(folder: Path) -> str | None:
    """What a run said that failed before it had a record, or before it had a folder."""
    for file, part in ((ERROR_FILE, slice(1)), (OUTPUT, slice(-1, None))):
        with suppress(OSError):
            for line in (folder / file).read_text("utf-8", "replace").splitlines()[part]:
                if line.startswith("error: "):
                    return line.removeprefix("error: ")
    return None


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed by SIGKILL, often for lack of memory"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}; what it said is above, or in {OUTPUT} in its folder"
