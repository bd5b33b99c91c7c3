"""A folder laid out as hub data sets are is one split of one config; what `datasets` itself reads is the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from misdirect.data import builtin, folders
from misdirect.data.corpora import read_texts
from misdirect.data.questions import read_questions
from misdirect.data.sources import folder_of, read_rows, split_column
from misdirect.data.splits import EXAMPLES, QUESTIONS, TEXT, pick, word_of

CASES = Path(__file__).parents[2] / "shared" / "cases"
SHARD = "-00000-of-00001.parquet"


def asked(split: str, subject: str, count: int = 3) -> list[dict[str, Any]]:
    """Questions that say where they come from."""
    return [
        {"question": f"{subject} {split} {i}?", "choices": ["yes", "no"], "answer": i % 2, "subject": subject}
        for i in range(count)
    ]


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As cais/mmlu is laid out: every subject, and all of them once more."""
    home = tmp_path / "clone"
    for split in ("dev", "test", "validation"):
        for subject in ("anatomy", "virology"):
            put(home / subject / f"{split}{SHARD}", asked(split, subject))
        put(home / "all" / f"{split}{SHARD}", asked(split, "anatomy") + asked(split, "virology"))
    put(home / "auxiliary_train" / f"train{SHARD}", asked("train", ""))
    (home / "dataset_infos.json").write_text('{"all": {"splits": {}}}')
    (home / "README.md").write_text("---\nlicense: mit\n---\nA data set.\n")
    (home / ".cache" / "huggingface").mkdir(parents=True)
    put(home / ".cache" / "huggingface" / "test.jsonl", asked("cache", "anatomy"))
    return home


def questions(source: Path | str) -> list[str]:
    return [item.question for item in read_questions(str(source))]


def names(split: str, *subjects: str) -> list[str]:
    return [row["question"] for subject in subjects for row in asked(split, subject)]


def test_a_clone_is_one_split_once_and_says_so(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert questions(clone) == names("test", "anatomy", "virology")
    said = capsys.readouterr().err
    assert (
        f"{clone}: split test of config all is read; not dev, validation, train ({clone}:CONFIG:SPLIT names another)"
        in said
    )
    assert questions(f"{clone}:virology") == questions(clone / "virology") == names("test", "virology")
    assert questions(f"{clone}:anatomy:dev") == names("dev", "anatomy")
    assert (
        questions(f"{clone}:validation")
        == questions(f"{clone}::validation")
        == names("validation", "anatomy", "virology")
    )
    examples = [item.question for item in read_questions(str(clone), EXAMPLES)]
    assert examples == names("dev", "anatomy", "virology")
    with pytest.raises(
        ValueError, match=r"has no config 'al'; expected one of all, anatomy, auxiliary_train, virology$"
    ):
        read_questions(f"{clone}:al:test")
    with pytest.raises(ValueError, match=r"has no split 'tset'; expected one of dev, test, validation$"):
        read_questions(f"{clone}:all:tset")
    with pytest.raises(ValueError, match=r"has the splits dev, test, validation; expected one of them: .*:all:dev$"):
        read_texts(f"{clone}:all#question")


def test_a_clone_without_all_is_its_subjects(clone: Path) -> None:
    shutil.rmtree(clone / "all")
    assert questions(clone) == names("test", "anatomy", "virology")


def test_the_handed_clone() -> None:
    if not (CASES / "mmlu-clone").is_dir():
        pytest.skip("the handed cases are not here")
    assert len(read_questions(str(CASES / "mmlu-clone"))) == 6


def test_the_built_in_names_out_of_a_clone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = clone.parent / "shelf"
    shelf.mkdir()
    clone.rename(shelf / "mmlu")
    monkeypatch.setenv(builtin.FOLDER, str(shelf))
    assert questions("mmlu") == names("test", "anatomy", "virology")
    assert questions("mmlu-dev") == names("dev", "anatomy", "virology")
    assert questions("mmlu-virology") == names("test", "virology")
    shutil.rmtree(shelf / "mmlu" / "virology")
    assert questions("mmlu-virology") == names("test", "virology")  # out of `all`
    for config in ("wmdp-bio", "wmdp-chem"):
        put(shelf / "wmdp" / config / f"test{SHARD}", asked("test", config))
    assert questions("wmdp-chem") == names("test", "wmdp-chem")
    for config in ("wikitext-2-raw-v1", "wikitext-103-raw-v1"):
        for split in ("train", "test"):
            put(shelf / "wikitext" / config / f"{split}{SHARD}", [{"text": f"{config} {split}"}])
    assert read_texts("wikitext") == ["wikitext-2-raw-v1 train"]
    assert read_texts("wikitext-test") == ["wikitext-2-raw-v1 test"]


def test_mmlu_as_first_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dev/, test/, val/ and auxiliary_train/, no header, the subject in the file's name."""
    for split in ("dev", "test", "val"):
        for subject in ("anatomy", "college_biology"):
            path = tmp_path / "mmlu" / "data" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'"Which of these, {split}?",femur,heart,lung,skin,B\nAnd which not?,1,2,3,4,D\n')
    aside = tmp_path / "mmlu" / "data" / "auxiliary_train"
    aside.mkdir()
    (aside / "mc_test.csv").write_text("A story?,a man,a dog,a cat,a house,C\n")
    found = read_questions(str(tmp_path / "mmlu"))
    assert [(q.question, q.choices[q.answer], q.subject) for q in found] == [
        ("Which of these, test?", "heart", "anatomy"),
        ("And which not?", "4", "anatomy"),
        ("Which of these, test?", "heart", "college_biology"),
        ("And which not?", "4", "college_biology"),
    ]
    monkeypatch.setenv(builtin.FOLDER, str(tmp_path))
    assert [q.subject for q in read_questions("mmlu")] == ["anatomy"] * 2 + ["college biology"] * 2
    assert next(q.question for q in read_questions("mmlu-dev")) == "Which of these, dev?"
    assert {q.subject for q in read_questions("mmlu-college-biology")} == {"college biology"}


LAYOUTS: dict[str, tuple[dict[str, str], str | None]] = {
    # files -> what `datasets` calls their split; the README's configs
    "shards in data": ({f"data/{s}{SHARD}": s for s in ("train", "test", "validation")}, None),
    "a file a split": ({f"{s}.jsonl": s for s in ("train", "test")}, None),
    "a folder a split": ({f"{s}/{n}.jsonl": s for s in ("train", "test") for n in ("a", "b")}, None),
    "other words": ({"training.jsonl": "train", "valid.jsonl": "validation", "eval.jsonl": "test"}, None),
    "a name before": ({"exam_train.jsonl": "train", "exam_test.jsonl": "test"}, None),
    "declared": (
        {"raw/one.jsonl": "train", "raw/two.jsonl": "test"},
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: raw/one.jsonl\n"
        "  - split: test\n    path: [raw/tw*.jsonl]\n",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_datasets_reads_it(name: str, tmp_path: Path) -> None:
    import datasets

    files, card = LAYOUTS[name]
    home = tmp_path / "home"
    for path, split in files.items():
        put(home / path, [{"text": f"{split} {path}"}])
    if card:
        (home / "README.md").write_text(f"---\n{card}---\nWords.\n")
    there = datasets.load_dataset(str(home), cache_dir=str(tmp_path / "cache"))
    for order, split in ((QUESTIONS, "test"), (TEXT, "train")):
        assert read_rows(str(home), order) == list(there[split])


def test_several_declared_configs_are_chosen_by_name(tmp_path: Path) -> None:
    for name in ("easy", "hard"):
        for split in ("train", "test"):
            put(tmp_path / f"{name}-{split}.jsonl", [{"text": f"{name} {split}"}])
    put(tmp_path / "notes.jsonl", [{"text": "a note"}])
    configs = [
        {"config_name": name, "data_files": {split: f"{name}-{split}.jsonl" for split in ("train", "test")}}
        for name in ("easy", "hard")
    ]
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(ValueError, match=r"has the configs easy, hard; expected one of them: .*:easy:train$"):
        read_texts(str(tmp_path))
    assert read_texts(f"{tmp_path}:hard") == ["hard train"]
    assert read_texts(f"{tmp_path}:hard:test#text") == ["hard test"]
    configs[1]["default"] = True
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    assert read_texts(str(tmp_path)) == ["hard train"]


@pytest.mark.parametrize(
    "card",
    ["---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs:\n- data_files: ../../x.jsonl\n---\n",
     "---\nconfigs:\n- data_files: /etc/*\n- 7\n- data_files: {test: [3, '']}\n---\n", "no head"],
)  # fmt: skip
def test_a_card_that_declares_nothing_readable_is_no_card(card: str, tmp_path: Path) -> None:
    put(tmp_path / "home" / "a.jsonl", [{"text": "a"}])
    put(tmp_path / "home" / "b.jsonl", [{"text": "b"}])
    put(tmp_path / "x.jsonl", [{"text": "outside"}])
    (tmp_path / "home" / "README.md").write_text(card)
    assert read_texts(str(tmp_path / "home")) == ["a", "b"]


def test_a_plain_folder_is_all_its_files(tmp_path: Path) -> None:
    for name in ("optics.jsonl", "test.jsonl", "deep/heat.jsonl"):
        put(tmp_path / "one" / name, [{"text": name}])
    assert sorted(read_texts(str(tmp_path / "one"))) == ["deep/heat.jsonl", "optics.jsonl", "test.jsonl"]
    for name in ("how-to-train-dogs", "test", "dev-tools", "heat"):  # articles, not splits
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / f"{name}.md").write_text(name)
    assert len(read_texts(str(tmp_path / "two"))) == 4
    with pytest.raises(ValueError, match="has no configs or splits to choose from; expected its name alone"):
        read_texts(f"{tmp_path / 'two'}:all:test")


def test_files_of_no_split_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test", "extra"):
        put(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert read_texts(str(tmp_path)) == ["train"]
    said = capsys.readouterr().err
    assert "split train is read; not test; 1 file(s) of no split are left out" in said


def test_rows_that_stand_in_two_folders_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, rows in {"a": ["one", "two"], "b": ["two", "three"]}.items():
        put(tmp_path / part / "test.jsonl", [{"text": row} for row in rows])
        put(tmp_path / part / "train.jsonl", [{"text": "seen"}])
    assert [row["text"] for row in read_rows(str(tmp_path), QUESTIONS)] == ["one", "two", "three"]
    assert "1 rows that another config holds too are left out" in capsys.readouterr().err


def test_no_wanted_split_among_several_is_a_question(tmp_path: Path) -> None:
    for split in ("train", "forget"):
        put(tmp_path / f"{split}{SHARD}", asked(split, "x"))
    with pytest.raises(ValueError, match=r"has the splits forget, train; expected one of them: .*::forget$"):
        read_questions(str(tmp_path))
    assert questions(f"{tmp_path}:forget") == names("forget", "x")


def test_a_snapshot_in_the_hubs_cache(clone: Path) -> None:
    home = clone.parent / "datasets--cais--mmlu"
    (home / "refs").mkdir(parents=True)
    (home / "snapshots").mkdir()
    shutil.copytree(clone, home / "snapshots" / "new")
    shutil.copytree(clone, home / "snapshots" / "old")
    (home / "refs" / "main").write_text("new\n")
    assert questions(home) == names("test", "anatomy", "virology")
    (home / "refs" / "main").write_text("gone")
    with pytest.raises(ValueError, match=r"holds 2 revisions; expected one of them: .*/snapshots/REVISION$"):
        read_questions(str(home))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv", ".txt", ".md", ".arrow"])
def test_a_pointer_in_the_place_of_a_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"test{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match="is a pointer to the data and not the data; expected `git lfs pull`"):
        read_texts(str(path))
    path.write_text("/annex/objects/SHA256E-s1--4d7a\n")
    with pytest.raises(ValueError, match="expected `git annex get`"):
        read_texts(str(path))


def test_what_save_to_disk_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    rows = {split: [{"text": f"{split} {i}"} for i in range(5)] for split in ("train", "test")}
    made = datasets.DatasetDict({split: datasets.Dataset.from_list(found) for split, found in rows.items()})
    made.save_to_disk(str(tmp_path / "both"))
    made["train"].select([4, 0]).save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert read_texts(str(tmp_path / "both")) == [row["text"] for row in rows["train"]]
    assert "split train is read; not test" in capsys.readouterr().err
    assert read_rows(str(tmp_path / "both"), QUESTIONS) == rows["test"]
    assert read_texts(f"{tmp_path / 'both'}:test#text") == [row["text"] for row in rows["test"]]
    assert read_texts(str(tmp_path / "one")) == ["train 4", "train 0"]
    assert read_texts(str(tmp_path / "both" / "test")) == [row["text"] for row in rows["test"]]
    with pytest.raises(ValueError, match="has no split 'dev'; expected one of train, test"):
        read_texts(f"{tmp_path / 'both'}:dev")
    arrow = next((tmp_path / "both" / "train").glob("*.arrow"))
    assert read_rows(str(arrow)) == rows["train"]
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"is not readable as saved by `datasets`|cannot be read"):
        read_texts(str(tmp_path / "both"))
    exam = datasets.Dataset.from_list(asked("test", "anatomy"))
    exam.save_to_disk(str(tmp_path / "exam"))
    assert questions(tmp_path / "exam") == names("test", "anatomy")


def test_the_cache_of_datasets(tmp_path: Path) -> None:
    for name in ("mmlu-test", "mmlu-dev", "mmlu-auxiliary_train", "cache-1f2e3d"):
        rows = pa.Table.from_pylist(asked(name, "anatomy"))
        with pa.ipc.new_stream(tmp_path / f"{name}.arrow", rows.schema) as writer:
            writer.write_table(rows)
    (tmp_path / "dataset_info.json").write_text("{}")
    assert questions(tmp_path) == names("mmlu-test", "anatomy")


def test_words_and_orders() -> None:
    words = {
        "test": "test", "Train": "train", "bio_test": "test", "dev-v2.0": "dev", "test2": "test", "contest": None,
        "biology": None, "auxiliary_train": "auxiliary_train",
        "mmlu-auxiliary_train": "auxiliary_train", "trainer": None, "a-test-of-b": None,
    }  # fmt: skip
    assert {name: word_of(name) for name in words} == words
    assert pick(["train", "val"], QUESTIONS) == "val"
    assert pick(["train", "dev", "validation"], QUESTIONS) == "validation"
    assert pick(["a", "b"], QUESTIONS) is None
    assert pick(["a"], QUESTIONS) == "a"
    assert pick(["test", "auxiliary_train"], TEXT) is None


def test_places_inside_a_folder_are_parsed_and_files_with_colons_win(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a:b").write_text("x")
    assert folder_of(f"{tmp_path}/a:one:two") == (tmp_path / "a", "one", "two")
    assert folder_of(f"{tmp_path}/a:one") == (tmp_path / "a", "one", "")
    assert folder_of(f"{tmp_path}/a:b") is None
    assert folder_of(f"{tmp_path}/none:b") is None
    assert split_column(f"{tmp_path}/a:one:two#text") == (f"{tmp_path}/a:one:two", "text")
    assert folders.folder_files(tmp_path) == []


def test_a_task_of_the_harness_takes_its_own_config_and_subject(clone: Path) -> None:
    from misdirect.evaluation.harness_documents import local_splits

    said = {"dataset_name": "virology", "test_split": "test", "fewshot_split": "dev"}
    wanted = {split: asked(split, "virology") for split in ("test", "dev")}
    assert local_splits(str(clone), said) == wanted
    shutil.rmtree(clone / "virology")  # out of `all`
    assert local_splits(str(clone), said) == wanted
