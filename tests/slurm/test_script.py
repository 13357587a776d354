"""Job scripts: the shipped files' lines, rendered for one job; free options; time limits."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from minimoe_dist.slurm.script import (
    directives,
    gpus_per_node,
    parse_free_options,
    render,
    time_limit_seconds,
)
from tests.slurm_cluster import skip_without_slurm, slurm_cluster

SCRIPTS = Path(__file__).parents[2] / "slurm"
FILES = sorted(path for path in SCRIPTS.iterdir() if path.is_file())
TRAINING = sorted(path for path in SCRIPTS.glob("*.sbatch") if "launch " in path.read_text())
SHIPPED = """\
#!/bin/bash
# What it does.
#SBATCH --nodes=2
#SBATCH --requeue
##SBATCH --partition=NAME
#SBATCH --time=1:00:00  # as on our cluster
source job.sh
"""


def test_directives_are_read_without_their_comments() -> None:
    assert directives(SHIPPED) == {"nodes": "2", "requeue": "", "time": "1:00:00"}


def test_options_replace_those_of_the_file_and_none_takes_one_away() -> None:
    script = render(SHIPPED, {"nodes": "4", "requeue": None, "account": "a"}, {}, [])
    assert directives(script) == {"nodes": "4", "time": "1:00:00", "account": "a"}


def test_variables_and_arguments_come_quoted_before_the_body() -> None:
    script = render(SHIPPED, {}, {"HOME_OF": "a b"}, ["x y", "k=v"])
    tail = script.partition("export")[2]
    assert tail == " HOME_OF='a b'\nset -- 'x y' k=v\nsource job.sh\n"


HOSTILE = ["$(touch {trace})", "`touch {trace}`", "; touch {trace}", "' ; touch {trace} '"]


@pytest.mark.parametrize("words", HOSTILE)
def test_what_a_shell_would_run_is_text_in_a_script(words: str, tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    hostile = words.format(trace=trace)
    options = {"partition": hostile, "output": f"{tmp_path}/{hostile}/slurm-%j.out"}
    body = '#!/bin/bash\nprintf "%s\\n" "$FOLDER" "$@"\n'
    script = render(body, options, {"FOLDER": hostile}, [f"{hostile}/run.yaml", hostile])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert done.stdout.splitlines() == [hostile, f"{hostile}/run.yaml", hostile]
    assert not trace.exists()


@pytest.mark.parametrize(
    "value", ["/a b/slurm-%j.out", "/a#b/x", "it's", 'a "b"', "x --wrap=y", "$A"]
)
def test_a_value_is_one_word_for_sbatch_whatever_is_in_it(value: str) -> None:
    script = render(SHIPPED, {"output": value}, {}, [])
    assert directives(script) == {**directives(SHIPPED), "output": value}


def test_sbatch_reads_folders_of_any_name(tmp_path: Path) -> None:
    skip_without_slurm()
    folder = tmp_path / 'it\'s a #folder "of" $HOME; x'
    folder.mkdir()
    script = render("#!/bin/bash\necho done\n", {"output": f"{folder}/%j.out"}, {}, [])
    (folder / "job.sh").write_text(script)
    with slurm_cluster() as cluster:
        number = cluster.submit(str(folder / "job.sh"))
        cluster.wait_for_job(number, "COMPLETED")
    assert (folder / f"{number}.out").read_text() == "done\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\v", "\x85", "\u2028", "\0"])
def test_an_option_that_would_end_its_line_is_refused(end: str) -> None:
    # What follows it would be a command of the script.
    with pytest.raises(ValueError, match=r"--partition: .* has characters that end a line"):
        render(SHIPPED, {"partition": f"gpu{end}touch it_ran"}, {}, [])


def test_free_options_may_have_dashes_or_not() -> None:
    words = ["constraint=a100", "--exclusive", "--mem=0"]
    assert parse_free_options(words) == {"constraint": "a100", "exclusive": "", "mem": "0"}


def test_a_free_option_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--sbatch: '-N 2' is no long option"):
        parse_free_options(["-N 2"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:30", 7230),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("2-00:00:01", 172801),
        ("UNLIMITED", None),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert time_limit_seconds(text) == seconds


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, None),
        ({"constraint": "a100"}, None),
        ({"gres": "lustre:1"}, None),
        ({"gpus-per-node": "4"}, 4),
        ({"gpus-per-node": "a100:4"}, 4),
        ({"gpus-per-node": "a100:2,v100:3"}, 5),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:4"}, 4),
        ({"gres": "gpu:a100:4"}, 4),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gres/gpu:a100:4(S:0-1)"}, 4),
        ({"gres": "lustre:1,gpu:a100:2,gpu:v100:1"}, 3),
        ({"gpus-per-task": "a100:1", "ntasks-per-node": "4"}, 4),
        ({"gpus-per-task": "2"}, 2),
    ],
)
def test_gpus_are_counted_as_slurm_is_asked_for_them(
    options: dict[str, str], count: int | None
) -> None:
    assert gpus_per_node(options) == count


def test_a_wrong_time_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="--time: '1h' is no time limit"):
        time_limit_seconds("1h")


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.name)
def test_training_scripts_are_requeued_signalled_and_keep_one_log(path: Path) -> None:
    found = directives(path.read_text())
    assert (found["signal"], found["open-mode"]) == ("USR1@300", "append")
    assert "requeue" in found and "%j" in found["output"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shell_reads_the_script(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_the_image_takes_files_that_are_there_and_installs_the_pinned_packages() -> None:
    text = (SCRIPTS / "containers" / "minimoe-dist.def").read_text()
    sections = dict(re.findall(r"^%(\w+)\n((?:    .*\n)+)", text, re.MULTILINE))
    for line in sections["files"].splitlines():
        source, target = line.split()
        assert (SCRIPTS.parent / source).exists() and target == f"/opt/minimoe-dist/{source}"
    assert "-c constraints.txt" in sections["post"]
    for name in ("post", "test", "runscript"):
        done = subprocess.run(["sh", "-n", "-c", sections[name]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    command = ["shellcheck", "-x", "-P", str(SCRIPTS), *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
