"""The study of scores: its tasks, its schedule and what it makes of numbers."""

import csv
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scores import __main__ as study_of_scores
from benchmarks.scores import corpora, distilling, gathering, page, texts, tuning
from benchmarks.scores.jobs import Job, run_all
from benchmarks.scores.sizes import (
    LARGE,
    SIZES,
    SMALL,
    Size,
    gmac_of,
    runs_again,
    runs_best,
    runs_gap,
    runs_gap_again,
    runs_narrow,
    runs_of,
    runs_states,
)
from benchmarks.scores.texts import Page
from minimoe_dist.config import load_run_config
from minimoe_dist.data.tasks import Table, open_table, open_task

ROOT = Path(__file__).parents[1]
WORDS = (
    "the driver of a device is bound to its bus by a name that must match and then it can be used"
)


def pages(count: int = 64) -> list[Page]:
    """Pages of two topics; each passage names its page and its number."""
    return [
        Page(
            ("net", "disk")[number % 2],
            [
                f"Page p{number} has {place} rows, {WORDS}. On p{number} the rest of it is not."
                for place in range(8)
            ],
        )
        for number in range(count)
    ]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    assert texts.write_tasks(pages(), tmp_path, 60) == ["topic", "pages", "accept"]
    return tmp_path


def test_tasks_are_read_as_finetune_reads_them(tasks: Path) -> None:
    topics = Table(str(tasks / "topic"), ("text",), "topic")
    assert open_table(topics, "dev").task.labels == ("disk", "net")
    pairs = Table(str(tasks / "pages"), ("one", "other"), "same")
    assert len(open_table(pairs, "train")) == 60
    assert len(open_task("cola", tasks / "accept", "train")) == 60
    for name, facts in (
        (name, gathering.task_facts(tasks / name, name))
        for name in texts.TASKS
        if (tasks / name).is_dir()
    ):
        assert facts["metric"] == texts.TASKS[name].metric and facts["dev"] <= 20
    assert gathering.task_facts(tasks / "pages", "pages")["chance"] == 0.5


def test_no_page_is_in_both_parts(tasks: Path) -> None:
    def pages_in(text: str) -> set[str]:
        return {word.strip(",.") for word in text.split() if word[0] == "p" and word[1:2].isdigit()}

    for name in ("topic", "pages", "accept"):
        train, dev = (
            pages_in((tasks / name / f"{part}.tsv").read_text()) for part in ("train", "dev")
        )
        assert train and dev and not train & dev, name


def test_pairs_and_sentences_are_what_their_labels_say(tasks: Path) -> None:
    rows = rows_of(tasks / "pages" / "train.tsv")
    assert Counter(row["same"] for row in rows) == {"yes": 30, "no": 30}
    for row in rows:
        one, other = row["one"].split()[1], row["other"].split()[1]
        assert (one == other) is (row["same"] == "yes") and row["one"] != row["other"]
    written = {
        " ".join(text.split())
        for one in pages()
        for paragraph in one.paragraphs
        for text in paragraph.replace(". ", ".\n").splitlines()
    }
    for line in (tasks / "accept" / "train.tsv").read_text().splitlines():
        _, label, _, text = line.split("\t")
        assert (text in written) is (label == "1")


def test_another_seed_makes_other_tasks_and_the_same_one_the_same(tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((1, 1, 2)):
        texts.write_tasks(pages(), tmp_path / str(number), 60, seed)
        made.append((tmp_path / str(number) / "pages" / "train.tsv").read_text())
    assert made[0] == made[1] != made[2]


def test_more_texts_are_none_of_the_tasks_own(tasks: Path, tmp_path: Path) -> None:
    for name, rows in (("sst2", 40), ("ner", 12)):
        source = tmp_path / f"{name}_source"
        source.mkdir()
        if name == "sst2":
            lines = ["sentence\tlabel", *(f"text number {row}\t{row % 2}" for row in range(rows))]
            (source / "train.tsv").write_text("\n".join(lines) + "\n")
            (source / "dev.tsv").write_text("\n".join(lines[:9]) + "\n")
        else:
            sentence = "Word{0} NN O\nruns VB O\n"
            blocks = ["-DOCSTART- X O\n", *(sentence.format(row) for row in range(rows))]
            (source / "train.txt").write_text("\n".join(blocks))
            (source / "valid.txt").write_text("\n".join(blocks[:5]))
        texts.cut_given(name, source, tasks, 4)
    given = {name: tmp_path / f"{name}_source" for name in ("sst2", "ner")}
    read = [Page(page.topic, [text.replace(" p", " q") for text in page.paragraphs[:1]])
            for page in pages(12)] + [Page("other", [f"Page {WORDS} {WORDS}"])]  # fmt: skip
    labelled = tmp_path / "labelled"
    texts.write_more(pages(), read, given, tasks, labelled, 400, 776)
    found = {
        name: (tasks / name / texts.UNLABELLED).read_text().splitlines()
        for name in ("topic", "pages", "sst2", "ner")
    }
    assert len(found["sst2"]) == 40 - 8 and len(set(found["topic"])) == len(found["topic"])
    # Passages that were distilled on come last, and of the task's topics alone.
    behind = [text.split()[1][0] == "q" for text in found["topic"]]
    assert sum(behind) == 12 and all(behind[-12:])
    assert found["sst2"][0] == "text number 8" and found["ner"][0] == "Word4 runs"
    assert len(found["ner"]) == 8 and len(set(found["ner"])) == 8
    for name, columns in (("topic", ("text",)), ("pages", ("one", "other"))):
        rows = {part: rows_of(tasks / name / f"{part}.tsv") for part in ("train", "dev")}
        used = {"\t".join(row[column] for column in columns) for row in rows["train"]}
        assert not used & set(found[name])
        pages_of = {
            part: {word for row in rows[part] for word in row[columns[0]].split() if word[0] == "p"}
            for part in rows
        }
        numbers_of = {word for text in found[name] for word in text.split() if word[0] == "p"}
        assert not {w for w in numbers_of if w[1:].isdigit()} & pages_of["dev"]
    assert all(pair.count("\t") == 1 for pair in found["pages"])
    _labels_are_those_of_the_texts(tasks, labelled, found)


def _labels_are_those_of_the_texts(
    tasks: Path, labelled: Path, found: dict[str, list[str]]
) -> None:
    """Of more samples with labels: they are those without, behind the task's own."""
    for name, more in found.items():
        file = "txt" if name == "ner" else "tsv"
        own, all_of_it, scored, other = (
            (folder / name / f"{part}.{file}").read_text()
            for part in ("train", "dev")
            for folder in (tasks, labelled)
        )
        assert scored == other and all_of_it.startswith(own)
        behind = all_of_it.removeprefix(own)
        if name == "ner":
            blocks = [block.splitlines() for block in behind.strip("\n").split("\n\n")]
            assert [" ".join(line.split()[0] for line in block) for block in blocks] == more
            continue
        rows = [line.rpartition("\t") for line in behind.splitlines()]
        assert [text for text, _, _ in rows] == more
        for text, _, label in rows:
            words = text.split()
            if name == "sst2":
                assert int(label) == int(words[-1]) % 2
            elif name == "topic":
                assert label == ("net", "disk")[int(words[1][1:]) % 2]
            else:
                one, other = text.split("\t")
                assert (one.split()[1] == other.split()[1]) is (label == "yes")


@pytest.mark.parametrize("name", SIZES)
def test_the_best_recipe_is_the_packages_own_and_is_as_long(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    best = runs_best(size)
    recipes = [load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5))) for run in best]
    of_package = load_run_config(str(ROOT / "configs" / "recipes" / "minimoe_3l_384h_1_4e.yaml"))
    for recipe in recipes:
        (student,) = recipe.students
        (default,) = of_package.students
        for option in ("start", "start_tokens", "dropout", "router_noise"):
            assert getattr(student, option) == getattr(default, option), option
        for option in ("expert_rate_factor", "router_rate_factor"):
            assert getattr(recipe.training, option) == getattr(of_package.training, option), option
        assert recipe.objective.state_weight == of_package.objective.state_weight
    of_gap = {
        run.name: load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5)))
        for run in runs_gap(size)
    }
    assert [each.students[0] for each in recipes] == of_gap["small_gap"].students[:-1]
    assert of_gap["small_gap_moving"].students[0] in [each.students[0] for each in recipes]
    assert all(each.data == of_gap["small_gap"].data for each in recipes)
    corpora = {one.path for each in recipes for one in each.data.record_path_or_regex}
    assert corpora == {str(tmp_path / "corpus" / "small")}
    models = gathering.best_models(size)
    assert {run.steps for run in models} == {size.long_steps or size.steps}
    random = [run for run in models if run not in best]
    assert {name for run in random for name in run.students} >= {
        name for run in best for name in run.students
    }
    assert all("start" not in each for run in random for each in run.students.values())


@pytest.mark.parametrize("name", SIZES)
def test_experts_with_last_states_go_on_from_the_plain_student(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    recipes = [
        load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5)))
        for run in runs_states(size)
    ]
    assert all(config.learns_last_states for config in recipes)
    first, more, experts = recipes
    assert (first.seed, more.seed, experts.seed) == (5, 6, 6)
    assert more.training.max_steps == experts.training.max_steps < first.training.max_steps
    export = first.export_folder(first.students[0].name)
    for config in (more, experts):
        assert [one.initial_weights for one in config.students] == [export]
        assert [one.dropout for one in config.students] == [0.0]
    assert (experts.students[0].start, experts.training.expert_rate_factor) == ("copies", 0.5)


@pytest.mark.parametrize("name", SIZES)
def test_what_goes_on_waits_for_what_it_goes_on_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves: list[list[str]] = []

    def note(jobs: list[Job], *_: Any) -> list[str]:
        waves.append(sorted(job.done.parent.name for job in jobs))
        return []

    monkeypatch.setattr(distilling, "run_all", note)
    distilling.distil(tmp_path, SIZES[name], 5, runs_states(SIZES[name]))
    assert waves == [["states"], ["states_experts", "states_more"]]


@pytest.mark.parametrize("name", SIZES)
def test_narrow_students_go_on_on_equal_pairs_as_they_are_and_as_experts(
    name: str, tmp_path: Path
) -> None:
    size = SIZES[name]
    runs = runs_narrow(size)
    assert len(runs) == 4 * len(size.narrow)
    for first, more, experts, clusters in zip(*[iter(runs)] * 4, strict=True):
        recipes = [
            load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5, tmp_path / "more")))
            for run in (first, more, experts, clusters)
        ]
        start, plain, copies, clustered = recipes
        assert clustered.students[0].start == "clusters"
        assert [one.training.router_rate_factor for one in recipes] == [1.0, 1.0, 1.0, 0.0]
        assert {one.students[0].dropout for one in recipes} == {0.0}
        assert all(one.learns_last_states for one in recipes)
        assert {one.data.record_path_or_regex[0].path for one in recipes} == {
            str(tmp_path / "more" / "corpus" / "small")
        }
        # A cache is of one seed's pairs; without one each stage reads others.
        assert (plain.seed == start.seed) is (name == "cpu")
        assert plain.seed == copies.seed == clustered.seed
        assert len({one.training.max_steps for one in recipes[1:]}) == 1
        export = start.export_folder(start.students[0].name)
        assert {one.students[0].initial_weights for one in recipes[1:]} == {export}
        assert (plain.students[0].moe, copies.students[0].moe) == ("1,1", "1,4")


def test_narrow_students_read_more_text_where_that_is_not_in_the_study_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, list[str]]] = []

    def note(folder: Path, documents: Any, tokenizers: Any) -> None:
        made.append((folder, [*documents]))
        for part in ("", "_heldout"):
            (folder / "corpus").mkdir(parents=True, exist_ok=True)
            (folder / "corpus" / f"small{part}.idx").touch()

    monkeypatch.setattr(corpora, "_build", note)
    monkeypatch.setattr(corpora, "_tokenizer", lambda teacher: teacher)
    monkeypatch.setattr(corpora.texts, "split", lambda pages: (["page"], [], []))
    monkeypatch.setattr(corpora.debian, "documents", lambda folder: iter(["book"]))
    folders = {name: corpora.make_more(tmp_path, size, "pages") for name, size in SIZES.items()}
    more = tmp_path / "more"
    assert folders == {"look": tmp_path, "cpu": more, "gpu": tmp_path, "gpus": tmp_path}
    assert corpora.make_more(tmp_path, SIZES["cpu"], "pages") == more
    assert made == [(more, ["page", "book"])]


@pytest.mark.parametrize("name", SIZES)
def test_both_teachers_and_their_assistants_teach_the_same_students_for_as_long(
    name: str, tmp_path: Path
) -> None:
    size = SIZES[name]
    recipes = [
        load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5)))
        for run in runs_gap(size)
        if run.name.endswith(("_gap", "_assisted"))
    ]
    assert len(recipes) == 4 and {one.training.max_steps for one in recipes} == {size.gap_steps}
    for direct, assisted in (recipes[:2], recipes[2:]):
        assistant = direct.students[-1]
        assert [*direct.students[:-1]] == [*assisted.students]
        assert (assistant.layer, assistant.hidden) == (6, max(size.widths))
        teacher = direct.export_folder(assistant.name)
        assert assisted.teacher.model_name_or_path == teacher
        assert {each.start for each in direct.students} == {"teacher"}
        assert direct.data == assisted.data
    teachers = [one.teacher.model_name_or_path for one in recipes[::2]]
    assert teachers == [SMALL, LARGE]
    kinds = [Path(one.data.record_path_or_regex[0].path).name for one in recipes]
    assert kinds == ["small", "small", "large", "large"]


@pytest.mark.parametrize("name", SIZES)
def test_experts_of_the_gap_stand_beside_what_has_all_their_neurons(
    name: str, tmp_path: Path
) -> None:
    size = SIZES[name]
    recipes = {
        run.name: load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5)))
        for run in runs_gap(size)
    }
    first, moving, wide = (recipes[f"small_gap{kind}"] for kind in ("", "_moving", "_wide"))
    two = recipes["small_gap_two_moving"]
    (experts,) = moving.students
    assert two.students == [experts.model_copy(update={"moe": "1,2"})]
    assert two.training == moving.training
    assert experts in first.students
    assert (first.training.router_rate_factor, moving.training.router_rate_factor) == (0.0, 1.0)
    (control,) = wide.students
    assert (control.moe, control.hidden) == ("1,1", experts.hidden)
    assert control.neurons == 4 * experts.neurons_of_an_expert
    assert wide.training == moving.training and wide.teacher == first.teacher


@pytest.mark.parametrize("name", SIZES)
def test_the_gap_is_looked_at_again_with_wider_students(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    small, moving, large = (
        load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5)))
        for run in runs_gap_again(size)
    )
    assert moving.teacher == small.teacher and moving.training == large.training
    assert {one.hidden for one in moving.students} == {min(size.gap_widths)}
    assert {one.moe for one in moving.students} == {"1,1", "1,4"}
    assert (small.teacher.model_name_or_path, large.teacher.model_name_or_path) == (SMALL, LARGE)
    assert {one.hidden for one in small.students} == {max(size.gap_widths)}
    assert {one.hidden for one in large.students} == set(size.gap_widths)
    assert small.training.max_steps == large.training.max_steps == size.gap_steps


@pytest.mark.parametrize("name", SIZES)
def test_every_distillation_is_a_recipe_that_can_be_read(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    runs = runs_of(size)
    assert {run.teacher for run in runs} >= {"small", "large"}
    assert size.large_steps in {run.steps for run in runs if run.teacher == "small"}
    for place, run in enumerate(runs):
        config = load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5)))
        assert config.training.max_steps == run.steps > 0 and config.seed == 5
        assert {student.name for student in config.students} == set(run.students)
        kind = "large" if run.teacher.startswith("large") else "small"
        corpora = [one.path for one in config.data.record_path_or_regex]
        assert corpora == [str(tmp_path / "corpus" / kind)]
        teacher, _, student = run.teacher.partition("/")
        if student:
            assert student in next(one for one in runs[:place] if one.name == teacher).students
    plain, minimoe = (runs[0].students[f"{kind}_{size.widths[0]}"] for kind in ("plain", "minimoe"))
    assert gmac_of(plain) == gmac_of(minimoe)
    assert size.widths[0] != 192 or gmac_of(plain) == pytest.approx(0.17, abs=0.005)


def test_long_distillations_share_a_cache_and_are_a_part_of_their_own(tmp_path: Path) -> None:
    size = SIZES["cpu"]
    runs = [run for run in runs_of(size) if run.is_cached]
    recipes = [load_run_config(str(distilling.recipe_of(run, size, tmp_path, 5))) for run in runs]
    assert {recipe.training.max_steps for recipe in recipes} == {5 * size.steps}
    assert len({recipe.teacher.cache_dir for recipe in recipes}) == 1
    assert {recipe.teacher.cache for recipe in recipes} == {"int8"}
    short, long = (set(tuning.models_of(tmp_path, size, is_long)) for is_long in (False, True))
    assert not short & long and "teacher" in short and "teacher_large" in long
    assert {name.partition("/")[0] for name in long} == {run.name for run in runs} | {
        "teacher_large"
    }
    assert not any(run.is_cached for run in runs_of(SIZES["gpu"]))


def numbers(**scores: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "tasks": {
            "a": {"metric": "accuracy", "chance": 0.5},
            "b": {"metric": "Matthews", "chance": 0.0},
        },
        "students": [
            {"model": "small/plain_192", "teacher": "small", "steps": 9, "words": "MiniLM 3L;192H",
             "gmac": 0.17, "heldout_loss": 0.25},
        ],
        "scores": {"teacher": {"a": [0.9, 0.9], "b": [0.4, 0.4]}, **scores},
    }  # fmt: skip


def test_shares_are_of_what_is_above_chance() -> None:
    own = {"a": [0.7, 0.9], "b": [0.2, 0.4]}
    found = numbers(**{"small/plain_192": own, "untaught": {"a": [0.5]}})
    assert gathering.shares(found, "small/plain_192") == pytest.approx([0.5, 1.0])
    whole = gathering.shares(found, "small/plain_192", above_chance=False)
    assert whole == pytest.approx([(0.7 / 0.9 + 0.5) / 2, 1.0])
    assert gathering.shares(found, "untaught") == []  # a task is not run
    for scores in ([0.0, 0.0], [0.01, 0.03]):  # what the teacher has not learnt has no share
        found["scores"]["teacher"]["b"] = scores
        assert gathering.learnt_tasks(found) == ["a"]
        assert gathering.shares(found, "small/plain_192") == pytest.approx([0.5, 1.0])
        assert "| a, accuracy | b (no share), Matthews |" in page.table(found)
    found["scores"]["teacher"] = {"a": [0.5, 0.5], "b": [0.0, 0.0]}
    assert gathering.shares(found, "small/plain_192") == []
    found["scores"]["teacher"] = {"a": [0.9, 0.9], "b": [0.4, 0.4]}
    shown = page.table(found)
    assert "| plain 3L;192H, 9 steps by 6L | 0.2500 | 80.0 ± 14.1 | 30.0 ± 14.1 |" in shown
    assert "75.0 ± 35.4 %" in shown and "not run" in shown


def test_another_seed_stands_beside_the_first() -> None:
    own = {"a": [0.7, 0.9], "b": [0.2, 0.4]}
    found = numbers(**{"small/plain_192": own})
    assert page.table_again(found) == ""
    other = {"a": [0.7, 0.7], "b": [0.2, 0.2]}
    students = [{**found["students"][0], "heldout_loss": 0.5}]
    found |= {"setup": {"seed": 1}}
    found["again"] = {"seed": 2, "students": students, "scores": {"small/plain_192": other}}
    assert page.table_again(found).splitlines()[-1] == (
        "| plain 3L;192H, 9 steps by 6L | 0.2500 | 75.0 ± 35.4 % | 0.5000 | 50.0 ± 0.0 % |"
    )


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_teachers_are_compared_again_at_equal_steps(size: Size) -> None:
    runs = runs_again(size)
    assert {run.teacher for run in runs} == {"small", "large"}
    assert len({run.steps for run in runs}) == 1


def test_the_page_draws_what_there_is(tmp_path: Path) -> None:
    own = {"a": [0.7, 0.9], "b": [0.2, 0.4]}
    page.draw(numbers(**{"small/plain_192": own}), tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 10_000


def test_the_best_recipe_has_a_picture_of_its_own(tmp_path: Path) -> None:
    own = {"a": [0.7, 0.9], "b": [0.2, 0.4]}
    found = numbers(**{"best/plain_192": own, "best/plain_192 taught": own})
    found["setup"] = {"unlabelled": 30}
    found["students"][0] |= {"model": "best/plain_192", "start": "teacher"}
    found["students"][0] |= {"teacher": "large_gap/assistant"}
    assert "9 steps by an assistant of 12L from" in page.words_of(found, "best/plain_192")
    found["students"][0] |= {"teacher": "small"}
    page.draw_best(found, tmp_path / "best.png")
    assert (tmp_path / "best.png").stat().st_size > 10_000
    assert page.words_of(found, "best/plain_192 taught") == (
        "plain 3L;192H, 9 steps by 6L from its weights on, fine-tuned with the teacher and texts "
        "without labels"
    )


def test_what_students_lack_is_drawn_of_all_that_the_small_teacher_has_taught(
    tmp_path: Path,
) -> None:
    def student(model: str, teacher: str = "small") -> dict[str, Any]:
        return {"model": model, "teacher": teacher, "steps": 9, "words": "MiniMoE 3L;96H 1,4E",
                "gmac": 0.1, "heldout_loss": 0.5}  # fmt: skip

    one, moving = student("small_gap/minimoe_96"), student("small_gap_moving/minimoe_96")
    others = [student("large_gap/plain_96", "large"), student("x/plain_96", "small_gap/assistant")]
    path, found = tmp_path / "room.png", {"gap": {"students": [one, *others]}}
    page.draw_room(found, path)
    assert not path.exists()
    page.draw_room({**found, "gap_again": {"students": [{**moving, "steps": 10}]}}, path)
    assert not path.exists()
    page.draw_room({**found, "gap_again": {"students": [moving]}}, path)
    assert path.stat().st_size > 10_000
    assert page.words_of({"students": [moving], "setup": {}}, moving["model"]) == (
        "MiniMoE 3L;96H 1,4E, routers moving, 9 steps by 6L"
    )


def test_narrow_students_have_a_picture_once_both_kinds_have_gone_on(tmp_path: Path) -> None:
    run, scores = "narrow_96", {"a": [0.8, 0.7], "b": [0.6, 0.6]}
    names = [f"{run}/plain_96", f"{run}_more/plain_96", f"{run}_experts/minimoe_96"]
    found: dict[str, Any] = {
        "setup": {},
        "tasks": {task: {"metric": "accuracy", "chance": 0.5} for task in scores},
        "students": [
            {"model": name, "teacher": "small", "steps": 10, "words": name, "heldout_loss": 0.5,
             "start": start}
            for name, start in zip(
                names, ("teacher", "student, last states", "copies, last states"), strict=True)
        ],
        "scores": {"teacher": {"a": [0.9, 0.9], "b": [0.7, 0.72]}, **dict.fromkeys(names, scores)},
        "curves": {name: [[0, 0.9], [5, 0.7], [10, 0.6]] for name in names[:2]},
    }  # fmt: skip
    page.draw_narrow(found, tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
    found["curves"][names[2]] = [[0, 0.95], [5, 0.65], [10, 0.55]]
    page.draw_narrow(found, tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000
    assert f"| {names[2]}, 10 steps by 6L as copies of these" in page.table(found)
    found["curves"][f"{run}_clusters/minimoe_96"] = [[0, 0.95], [5, 0.6], [10, 0.5]]
    page.draw_narrow(found, tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes() != (tmp_path / "both.png").read_bytes()


def test_another_seed_of_the_best_recipe_is_a_column_of_its_own(tmp_path: Path) -> None:
    own = {"a": [0.7, 0.9], "b": [0.2, 0.4]}
    found = numbers(**{"best/plain_192": own, "best/plain_192 taught": own})
    found["students"][0] |= {"model": "best/plain_192", "start": "teacher"}
    found["setup"] = {"seed": 5}
    assert page.table_again(found) == ""
    better = {"a": [0.8, 1.0], "b": [0.4, 0.4]}
    found["again"] = {
        "seed": 6,
        "students": [{**found["students"][0], "heldout_loss": 0.25}],
        "scores": {"best/plain_192 taught": better},
    }
    head, _, row = page.table_again(found, above_chance=False).splitlines()
    assert "seed 5: held-out loss | of the teacher's score | seed 6: held-out loss" in head
    words, *cells = row.strip("| ").split(" | ")
    assert words.endswith("fine-tuned with the teacher")
    other = {**found, "scores": {**found["scores"], "best/plain_192 taught": better}}
    kept, kept_again = (
        statistics.mean(gathering.shares(one, "best/plain_192 taught", above_chance=False))
        for one in (found, other)
    )
    assert kept < kept_again
    assert cells[1].startswith(f"{100 * kept:.1f} ±") and cells[2] == "0.2500"
    assert cells[3].startswith(f"{100 * kept_again:.1f} ±")


def test_the_page_of_results_has_the_numbers_that_were_measured() -> None:
    found = json.loads((ROOT / "docs" / "results" / "scores.json").read_text("utf-8"))
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert page.table(found) in text and page.table_again(found) in text
    assert len(found["scores"]["small/minimoe_192"]) == len(found["tasks"]) == 5
    assert gathering.learnt_tasks(found) == ["sst2", "ner", "topic", "pages"]
    best = found["best"]
    of_776 = ("best", "relations", "labelled", "first_form", "last_states")
    for part in (*of_776, "best_777", "labelled_777"):
        assert page.table(found[part]) in text, part
    # The page has other words for these students, and rows of both parts in one table.
    of_rates = {f"rate {part['rate']}": part for part in found["rates"]}
    shown = ("gap", "gap_again", "starts", "starts_again")
    for part, its in ({name: found[name] for name in shown} | of_rates).items():
        _, _, chances, _, *rows = page.table(its).splitlines()
        assert chances in text and len(rows) == len(page.models(its)) > 1, part
        for row in rows:
            _, _, cells = row.split("|", 2)
            assert cells in text, row
    experts = "small_gap_moving/minimoe_192"
    for words, models in (
        ("plain", ("small_gap/plain_192", "small_gap_moving/plain_192")),
        ("MiniMoE 1,4E", (experts, experts)),
    ):
        seeds = [*zip((found["starts"], found["starts_again"]), models, strict=True)]
        for rate, other in (("", ""), (", names at 1e-3", "names_at_1e-3")):
            scored = [
                {**part["scores"][model], **({"ner": part[other][model]} if other else {})}
                for part, model in seeds
            ]
            of_task = [
                [score for own in scored for score in own[task]]
                for task in ("sst2", "ner", "topic")
            ]
            kept = [
                share
                for (part, model), own in zip(seeds, scored, strict=True)
                for share in gathering.shares(
                    {**part, "scores": {**part["scores"], model: own}}, model, above_chance=False
                )
            ]
            cells = " | ".join(
                f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
                for values in (*of_task, kept)
            )
            assert f"| {words}, both seeds{rate} | | | {cells} % | |" in text
    assert gathering.learnt_tasks(best) == ["sst2", "ner", "topic"]
    relations = found["relations"]
    assert gathering.learnt_tasks(relations) == ["sst2", "ner", "topic", "pages"]
    for part in (best, relations):
        assert len(gathering.shares(part, "best_minimoe_192/minimoe_192 taught")) == 3


def test_a_study_of_some_tasks_is_of_those_alone(
    tmp_path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, results = tmp_path / "study", tmp_path / "results"
    study.mkdir()
    (study / "tasks.json").write_text(json.dumps(["topic", "pages", "accept"]))
    (study / "tasks").symlink_to(tasks)

    def run(*options: str) -> dict[str, Any]:
        words = ["benchmarks.scores", "page", "--folder", str(study), "--results", str(results)]
        monkeypatch.setattr(sys, "argv", [*words, *options])
        assert study_of_scores.main() == 0
        return json.loads((results / "scores.json").read_text())

    assert list(run()["tasks"]) == ["topic", "pages", "accept"]
    assert list(run("--tasks", "pages", "topic")["tasks"]) == ["topic", "pages"]
    other = ("--folder", str(tmp_path / "other"))
    for options, words in (
        (("--tasks", "topic", "ner"), f"--tasks ner: {study} has topic pages accept"),
        (("--tasks", "sst2", *other), "--tasks sst2: it is made of its own files; give --sst2 F"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*options)
        assert stopped.value.code == 2 and words in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["benchmarks.scores", "--tasks", "topic", *other])
    with pytest.raises(SystemExit) as stopped:
        study_of_scores.main()
    assert "the page is of all tasks; give --results FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_teacher_of_all_labels_teaches_before_students_are_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves: list[list[str]] = []

    def note(jobs: list[Job], *_: object) -> list[str]:
        waves.append([job.words for job in jobs])
        return []

    for run in runs_best(SIZES["cpu"]):
        for student in run.students:
            export = tmp_path / run.name / "export" / student
            export.mkdir(parents=True)
            (export / "config.json").touch()
    monkeypatch.setattr(tuning, "run_all", note)
    assert tuning.tune_labelled(tmp_path, SIZES["cpu"], ["sst2", "topic"]) == []
    teachers, students = waves
    assert teachers == ["tune teacher on sst2", "tune teacher on topic"]
    names = ("best_plain_192/plain_192", "best_minimoe_192/minimoe_192")
    assert students == [
        f"tune {name} on {task}{how}"
        for how in (" with the teacher", "")
        for task in ("sst2", "topic")
        for name in names
    ]


def test_jobs_that_are_done_are_not_run_again_and_failures_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done, missing = tmp_path / "done", tmp_path / "missing"
    done.touch()
    jobs = [
        Job("one", ("no-such-command",), done),
        Job("other", ("no-such-command",), missing),
    ]
    failed = run_all(jobs, 2, 1, tmp_path / "log.txt")
    assert failed == [f"other: status 2, see {tmp_path / 'log.txt'}"]
    assert "100%  other" in capfd.readouterr().out
    assert "no-such-command" in (tmp_path / "log.txt").read_text()
