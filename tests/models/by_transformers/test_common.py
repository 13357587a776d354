"""transformers' own common tests of models pass on the students' classes.

`make test` brings transformers' source archive, of the version that is installed; its tests stay
there. What they import and the archive lacks (tests of text generation and of exporters, which do
not apply to encoders) is put in as empty classes.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TESTS = ROOT / ".venv" / "share" / "transformers" / version("transformers") / "tests"
NEEDED = "test_modeling_common.py"
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
LEAST = 60  # tests of a class that must have run: fewer means that they were not found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's tests with the cases among them."""
    if not (TESTS / NEEDED).is_file():
        pytest.skip(f"transformers' tests are not in {TESTS}: `make test` fetches them")
    folder = tmp_path_factory.mktemp("common")
    shutil.copytree(TESTS, folder / "tests")
    for name, text in STUBS.items():
        path = folder / "tests" / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(text)
    shutil.copy(HERE / "cases.py", folder / "tests" / "test_cases.py")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[ElementTree.Element]:
    """The results of all cases, of one process: it takes longer to start than many of them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    # Of xdist, which would make it a worker of this one's.
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "--junitxml=results.xml", "tests/test_cases.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (folder / "results.xml").is_file(), done.stdout[-8000:] + done.stderr[-8000:]
    return list(ElementTree.parse(folder / "results.xml").iter("testcase"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["BertTest", "MiniMoeTest", "ElasticTest"])
def test_transformers_own_tests_pass(name: str, results: list[ElementTree.Element]) -> None:
    own = [case for case in results if case.get("classname", "").endswith(f".{name}")]
    for case in own:
        for kind in ("failure", "error"):
            found = case.find(kind)
            assert found is None, f"{case.get('name')}: {found.text if found is not None else ''}"
    assert sum(case.find("skipped") is None for case in own) >= LEAST
