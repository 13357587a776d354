"""Every check and measurement that needs a GPU, in one command and eight minutes.

    python benchmarks/gpu_report.py [--output_dir runs/benchmarks/gpu] [--minutes 8]

First the steps (gpu_step.py), whose numbers cannot be had elsewhere, then the tests marked `gpu`.
Leaves `steps.json`, `steps.txt`, `tests.xml` and `tests.txt` in the folder, whatever goes wrong.
"""

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARE_OF_STEPS = 0.6
LONGEST_CASE = 1.0  # minutes; none is started later than that before the end


def run(command: list[str], said: Path, minutes: float) -> int:
    """Runs a command, shows and keeps what it says; its status, -9 if it took too long."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watch = threading.Timer(60 * minutes, process.kill)
    watch.start()
    assert process.stdout is not None
    with said.open("w") as out:
        for line in process.stdout:
            print(line, end="", file=out, flush=True)
            print(line, end="", flush=True)
    status = process.wait()
    watch.cancel()
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="runs/benchmarks/gpu")
    parser.add_argument("--minutes", type=float, default=8)
    options = parser.parse_args()
    asks = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", asks]).returncode != 0:
        sys.exit(
            "torch sees no NVIDIA GPU here; gpu_step.py --device cpu --size tiny tries the rest"
        )
    folder = Path(options.output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    steps = SHARE_OF_STEPS * options.minutes
    measured = run(
        [sys.executable, "benchmarks/gpu_step.py", "--minutes", str(steps - LONGEST_CASE),
         "--json", str(folder / "steps.json")],
        folder / "steps.txt", steps,
    )  # fmt: skip
    left = options.minutes - (time.monotonic() - started) / 60
    tested = run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--durations=15", "-p", "no:xdist",
         f"--junitxml={folder / 'tests.xml'}", "tests"],
        folder / "tests.txt", left,
    )  # fmt: skip
    print(f"steps: status {measured}; tests: status {tested}; all in {folder}")
    sys.exit(measured or tested)


if __name__ == "__main__":
    main()
