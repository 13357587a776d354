"""``minimoe-dist preprocess``: raw text to indexed corpora, tool by tool."""

from collections.abc import Sequence

from ..config import ConfigError
from ..config.problems import nearest
from ..corpus.tools import TOOLS, run_tool


def run(words: Sequence[str]) -> int:
    """Runs the tool that the first word names, on the others.

    Returns:
        The exit status; 2 where there is no word.

    Raises:
        UserError: there is no such tool, or an argument of it is wrong.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in TOOLS:
        suggestion = nearest(name, TOOLS)
        hint = f"did you mean {suggestion}?" if suggestion else f"there are {', '.join(TOOLS)}"
        raise ConfigError(f"preprocess: {name} is no tool; {hint}")
    try:
        return run_tool(TOOLS[name], rest, f"minimoe-dist preprocess {name}")
    except SystemExit as end:  # behind a help page
        return int(end.code or 0)


def _usage() -> str:
    width = max(map(len, TOOLS)) + 2
    lines = "".join(f"  {name:<{width}}{tool.summary}\n" for name, tool in TOOLS.items())
    return (
        f"usage: minimoe-dist preprocess TOOL [options]\n\ntools:\n{lines}\n"
        "minimoe-dist preprocess TOOL --help tells a tool's options.\n"
    )
