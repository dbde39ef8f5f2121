"""What the launcher starts in these tests: records its start, and ends as the plan says.

usage: worker.py FOLDER PLAN [ARGUMENT...]

PLAN maps "attempt/process" (``*`` for all processes) to an exit code, or to ``kill`` for a SIGKILL
or ``preempt`` for a SIGKILL together with the machine. Where it says ``wait`` or nothing, the
process runs until it is stopped; it then saves and exits with 75 (SIGTERM) or 130 (SIGINT).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
process = next(
    os.environ[name]
    for name in ("JAX_PROCESS_ID", "SLURM_PROCID", "JOB_COMPLETION_INDEX", "TPU_WORKER")
    if name in os.environ
)
record = folder / f"{process}.jsonl"
attempt = sum('"start"' in line for line in record.open()) if record.exists() else 0


def note(event: str, **content: object) -> None:
    with record.open("a") as stream:
        stream.write(json.dumps({"event": event, **content}) + "\n")


def stop(number: int, frame: object) -> None:
    note("saved")
    print(f"process {process} saved", flush=True)
    os._exit(75 if number == signal.SIGTERM else 130)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print(f"process {process} attempt {attempt}", flush=True)
note("start", pid=os.getpid(), environment=dict(os.environ), arguments=sys.argv[3:])
end = plan.get(f"{attempt}/{process}", plan.get(f"{attempt}/*", "wait"))
if end == "wait":
    time.sleep(60)
time.sleep(0.3)  # the others have started too
if end == "preempt":
    (Path(os.environ["CLOUD"]) / "state").write_text("PREEMPTED")
if end in ("kill", "preempt"):
    os.kill(os.getpid(), signal.SIGKILL)
print(f"process {process} ends", flush=True)
sys.exit(end)
