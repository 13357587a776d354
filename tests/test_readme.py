"""The README's commands parse, its tree is the tree; paths and links of all pages exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minimoe_dist.config.command_line import read_options
from minimoe_dist.config.commands import DistillOptions

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def _commands() -> list[list[str]]:
    lines = "\n".join(_blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [words[1] for words in _commands() if words[0] == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_distill_commands_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [words for words in _commands() if "minimoe_dist" in words]
    assert commands
    for words in commands:
        (config,) = read_options(
            "distill", DistillOptions, words[words.index("distill") + 1 :]
        ).stages
        assert config.students[0].layer == 4
        assert config.parallel.precision == "bf16"


def test_tool_commands_name_arguments_that_the_tools_have() -> None:
    tools = [words for words in _commands() if words[:2] == ["minimoe-dist", "preprocess"]]
    assert tools
    for words in tools:
        command = [sys.executable, "-m", "minimoe_dist", "preprocess", words[2], "--help"]
        page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for flag in (word for word in words if word.startswith("--")):
            assert f"{flag} " in page, flag


def test_the_tree_names_what_is_there() -> None:
    tree = README.partition("## The tree")[2].split("```")[1].strip()
    for line in tree.splitlines():
        name = line.split()[0]
        path = ROOT / "minimoe_dist" / name if line.startswith("  ") else ROOT / name
        assert path.exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(((?!http)[^)#]+)", page.read_text("utf-8"))
    assert [one for one in targets if not (page.parent / one).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_of_code_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/])((?:\w+/)+[\w*]+\.py)\b", page.read_text("utf-8")))
    folders = (ROOT, ROOT / "minimoe_dist")
    assert {one for one in named if not any(any(at.glob(one)) for at in folders)} == set()
