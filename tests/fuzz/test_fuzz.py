"""Damaged files of others end in success or in one line, within seconds and a few gigabytes.

    python -m pytest tests/fuzz --fuzz_seconds=600 --fuzz_seed=1 --fuzz_report=fuzz.json

shares the seconds among the formats. Each is read in a process of its own, whose memory is limited.
"""

import json
import os
import random
import resource
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.errors import UserError
from tests.fuzz.formats import FORMATS
from tests.fuzz.mutation import mutated

SECONDS_OF_A_FILE, MEMORY = 10, 2 << 30
_COUNTS: dict[str, dict[str, Any]] = {}


def run(name: str, folder: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Reads damaged files for a while; returns counts, and the first fault with its file."""
    path, read = FORMATS[name](folder)
    sound, draw = path.read_bytes(), random.Random(f"{name} {seed}")
    read()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    counts: dict[str, Any] = {"files": 0, "read": 0, "refused": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(sound, [sound], draw)
        path.write_bytes(data)
        (folder / "case").write_bytes(data)  # stays where this process does not
        counts["files"] += 1
        signal.alarm(SECONDS_OF_A_FILE)
        try:
            read()
            counts["read"] += 1
        except UserError as error:
            counts["refused"] += 1
            if "\n" in str(error):
                counts["fault"] = f"several lines: {error!r}"
        except OSError as error:  # which the command line words
            counts["refused"] += 1
            if error.errno is None:
                counts["fault"] = repr(error)
        except BaseException:
            counts["fault"] = traceback.format_exc()
        signal.alarm(0)
        if "fault" in counts:
            break
    return counts


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = request.config.getoption("fuzz_seconds") / len(FORMATS)
    seed, result = request.config.getoption("fuzz_seed"), tmp_path / "result.json"
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, _stop)
            result.write_text(json.dumps(run(name, tmp_path, seed, seconds)))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert result.is_file(), f"the process ended with {status} at {tmp_path / 'case'}"
    counts = json.loads(result.read_text())
    fault = counts.get("fault")
    _COUNTS[name] = {**counts, "faults": int(fault is not None)}
    report = request.config.getoption("fuzz_report")
    if report:
        Path(report).write_text(json.dumps({"seed": seed, "formats": _COUNTS}, indent=1) + "\n")
    print(f"fuzz {name}: {json.dumps(_COUNTS[name])}")
    assert fault is None, f"{tmp_path / 'case'}: {fault}"
    assert counts["files"] > 0


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(f"more than {SECONDS_OF_A_FILE} seconds for one file")
