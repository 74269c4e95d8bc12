"""A job that takes no time: does what its `seed` says, and keeps `run.json` as a run does.

Its AP rises with `optimizer.lr`, which must not exceed one.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = Path(words["run_dir"])
lr = float(words.get("optimizer.lr", 0.5))
with (folder / "starts.txt").open("a") as starts:
    starts.write(f"{' '.join(sys.argv[1:])}\n")


def note(**values: object) -> None:
    record = {"host": os.uname().nodename, "seconds": 1.0, "steps": 3} | values
    (folder / "run.json").write_text(json.dumps(record))


def stop(signum: int, frame: object) -> None:
    note(status="stopped")
    sys.exit(128 + signum)


signal.signal(signal.SIGTERM, stop)
record = folder / "run.json"
if record.exists() and json.loads(record.read_text())["status"] == "finished":
    sys.exit(0)
note(status="running")
print("device", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
behaviour = words.get("name", "")
if behaviour == "fails" and lr > 0.5:
    note(status="failed", error="lr is above 0.5")
    sys.exit(1)
if behaviour == "dies" and lr > 0.5:
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "waits":
    (folder / "waits").touch()
    gate = Path(words["data_root"])
    while not gate.exists():
        time.sleep(0.02)
note(status="pruned" if behaviour == "prunes" and lr > 0.5 else "finished", ap=lr, best_ap=lr)
