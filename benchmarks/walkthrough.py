"""Runs the README's "Your own text" commands as they stand there, and times each.

    CORPUS=text_folder XLMR=tokenizer_folder python benchmarks/walkthrough.py --folder OUT

Every shell block that follows a ``<!-- walk-through: ... -->`` mark is run line by line in OUT.
Prints the commands, the seconds each took and the end of what it printed.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"<!-- walk-through: (.*?) -->\n```sh\n(.*?)```", re.DOTALL)
README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where to run them")
    parser.add_argument("--lines", type=int, default=12, help="of output to show for a command")
    parser.add_argument("--only", default="", help="the blocks whose title holds this")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs", flush=True)
    blocks = BLOCK.findall(README.read_text("utf-8"))
    for title, block in ((t, b) for t, b in blocks if args.only in t):
        print(f"\n== {title}", flush=True)
        for command in block.strip().splitlines():
            print(f"\n$ {command}", flush=True)
            started = time.perf_counter()
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=args.folder,
                env={**os.environ, "PATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            lines = done.stdout.splitlines()
            for line in lines[-args.lines :]:
                print(f"  {line}")
            print(f"  [{time.perf_counter() - started:.1f} s, exit {done.returncode}]", flush=True)
            if done.returncode:
                sys.exit(done.returncode)


if __name__ == "__main__":
    main()
