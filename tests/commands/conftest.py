"""What the tests of commands share."""

from pathlib import Path

import pytest

from tests.commands.support import Workshop, finish, make_corpus, make_teacher


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    teacher = make_teacher(folder / "teacher")
    train = make_corpus(folder / "train", teacher)
    heldout = make_corpus(folder / "heldout", teacher, seed=2, documents=30)
    return Workshop(folder, teacher, train, heldout)


@pytest.fixture(scope="session")
def unbroken(workshop: Workshop) -> Path:
    """The output folder of a run of 30 steps on two ranks that nothing happened to."""
    output_dir = workshop.folder / "unbroken"
    finish(workshop.recipe(output_dir))
    return output_dir
