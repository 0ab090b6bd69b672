"""`Task`: pairs of equal length, padded on the left, and refused with the row or line that is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actinium.core.errors import InputError, UnknownNameError
from actinium.core.task import Task
from actinium.world.corpus import vocabulary
from actinium.world.tokenizer import build

TOKENIZER = build(vocabulary(), 128)
CLEAN = ["Ann lives in", "The city of Bob is", "As 3 + 4 ="]
CORRUPT = ["Eva lives in", "The city of Max is", "As 3 + 5 ="]
ANSWERS, WRONG = ["Orla", " Vesk", "7"], ["Vesk", " Orla", "8"]


@pytest.fixture
def task():
    return Task.from_prompts(TOKENIZER, CLEAN[:2], CORRUPT[:2], ANSWERS[:2], WRONG[:2], name="home")


def test_ids_are_those_of_the_tokenizer_padded_on_the_left(task):
    assert task.clean_ids.dtype == torch.int64 and task.clean_ids.shape == (2, 6)
    assert task.mask.tolist() == [[False, False, True, True, True, True], [True] * 6]
    assert task.clean_ids[0][task.mask[0]].tolist() == TOKENIZER(CLEAN[0])["input_ids"]
    assert task.corrupt_ids[1].tolist() == TOKENIZER(CORRUPT[1])["input_ids"]
    assert task.clean_ids[0, 0] == TOKENIZER.pad_token_id
    assert (
        task.clean_ids[:, -1]
        == TOKENIZER([" in", " is"], add_special_tokens=False, return_tensors="pt")["input_ids"][:, 0]
    ).all()


def test_a_task_from_ids_holds_what_one_from_prompts_does(task):
    ids = (task.clean_ids, task.corrupt_ids, task.answer_ids.tolist(), task.wrong_ids)
    other = Task.from_ids(*ids, mask=task.mask, name="home", metric="prob")
    for name in ("clean_ids", "corrupt_ids", "answer_ids", "wrong_ids", "mask"):
        assert torch.equal(getattr(other, name), getattr(task, name))
    assert other.answers == [f" {i}" for i in task.answer_ids.tolist()] and other.metric == "prob"
    assert [len(row) for row in other.clean_tokens] == task.mask.sum(1).tolist()


def test_ids_of_other_shapes_are_refused(task):
    with pytest.raises(InputError, match="shape"):
        Task.from_ids(task.clean_ids, task.corrupt_ids[:, 1:], task.answer_ids, task.wrong_ids)
    with pytest.raises(InputError, match="2 rows"):
        Task.from_ids(task.clean_ids, task.corrupt_ids, task.answer_ids[:1], task.wrong_ids)
    with pytest.raises(UnknownNameError, match="metric"):
        Task.from_ids(task.clean_ids, task.corrupt_ids, task.answer_ids, task.wrong_ids, metric="logit_dif")


def test_answers_get_the_space_that_continues_the_prompt(task):
    assert task.answers == [" Orla", " Vesk"]
    assert TOKENIZER.convert_ids_to_tokens(task.answer_ids) == ["▁Orla", "▁Vesk"]
    assert TOKENIZER.convert_ids_to_tokens(task.wrong_ids) == ["▁Vesk", "▁Orla"]


def test_subject_marks_the_tokens_that_differ(task):
    assert task.subject.nonzero().tolist() == [[0, 3], [1, 4]]
    assert task.tokens(0) == ["<bos>", "Ann", "lives", "in"]
    assert task.tokens(1, corrupt=True)[4] == "Max"


@settings(max_examples=60)
@given(st.slices(3) | st.lists(st.integers(-3, 2), min_size=1, max_size=5))
def test_chosen_rows_are_those_of_the_lists(rows):
    words = ["Ann lives in", "For Bob, the river is", "The city of Jane is"]
    others = ["Eva lives in", "For Max, the river is", "The city of Tom is"]
    whole = Task.from_prompts(TOKENIZER, words, others, ["Orla"] * 3, ["Vesk"] * 3)
    expected = words[rows] if isinstance(rows, slice) else [words[i] for i in rows]
    if not expected:
        with pytest.raises(InputError, match="no row"):
            whole[rows]
        return
    part = whole[rows]
    again = Task.from_prompts(TOKENIZER, expected, part.corrupt, part.answers, part.wrong)
    assert part.clean == expected and len(part) == len(expected)
    for name in ("clean_ids", "corrupt_ids", "mask", "answer_ids", "wrong_ids", "subject"):
        assert torch.equal(getattr(part, name), getattr(again, name)), name


def test_one_row_is_a_task_of_one_row(task):
    assert task[-1].clean == [CLEAN[1]]
    assert [row.clean[0] for row in task] == CLEAN[:2]
    with pytest.raises(IndexError):
        task[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupt": ["Eva lives in", "The old city of Max is"]}, r"row 1: .*clean has 6 tokens, corrupt 7"),
        ({"answers": ["Orla Orla", "Vesk"]}, "row 0: .*not one token"),
        ({"answers": ["Atlantis", "Vesk"]}, "row 0: .*vocabulary"),
        ({"answers": ["", "Vesk"]}, "row 0: an answer is empty"),
        ({"clean": ["Ann lives in", "  "]}, "row 1: the clean prompt is empty"),
        ({"wrong": ["Orla", "Orla"]}, "row 0: .*same token"),
        ({"wrong": ["Vesk"]}, "same length, got 2, 2, 2, 1"),
        ({"clean": [], "corrupt": [], "answers": [], "wrong": []}, "at least one row"),
        ({"clean": "Ann lives in"}, "lists of texts"),
    ],
)
def test_a_row_that_does_not_fit_is_named(change, message):
    columns = {
        "clean": CLEAN[:2],
        "corrupt": CORRUPT[:2],
        "answers": ANSWERS[:2],
        "wrong": WRONG[:2],
    } | change
    with pytest.raises(InputError, match=message):
        Task.from_prompts(TOKENIZER, **columns)


def test_no_tokenizer_and_unknown_metric_are_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        Task.from_prompts(None, CLEAN[:1], CORRUPT[:1], ANSWERS[:1], WRONG[:1])
    with pytest.raises(UnknownNameError, match="logprob"):
        Task.from_prompts(TOKENIZER, CLEAN[:1], CORRUPT[:1], ANSWERS[:1], WRONG[:1], metric="logprobs")


def test_saved_and_read_back_is_the_same(task, tmp_path):
    back = Task.from_file(TOKENIZER, task.save(tmp_path / "home.jsonl"))
    assert back.name == "home" and back.answers == task.answers
    assert torch.equal(back.clean_ids, task.clean_ids) and torch.equal(back.wrong_ids, task.wrong_ids)


def test_joined_answers_survive_a_file(foreign, tmp_path):
    clean, corrupt = (
        ["The war lasted from the year 1732 to the year 17"],
        ["The war lasted from the year 1701 to the year 17"],
    )
    joined = Task.from_prompts(foreign, clean, corrupt, ["45"], ["20"], joined=True)
    apart = Task.from_prompts(foreign, clean, corrupt, ["45"], ["20"])
    assert joined.answers == ["45"] and apart.answers == [" 45"]
    assert joined.answer_ids.tolist() != apart.answer_ids.tolist()
    assert (
        Task.from_file(foreign, joined.save(tmp_path / "years.jsonl")).answer_ids.tolist() == joined.answer_ids.tolist()
    )


def test_csv_is_read_with_quotes_and_commas(tmp_path):
    path = tmp_path / "home.csv"
    path.write_text('clean,corrupt,answer,wrong\n"For Ann, the city is","For Eva, the city is",Orla,Vesk\n')
    assert Task.from_file(TOKENIZER, path).clean == ["For Ann, the city is"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{}\n", "line 1: 'clean' must be a text"),
        ("a.jsonl", '\n{"clean": 1\n', "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", "\n", "holds no rows"),
        ("a.jsonl", "\x00\xff", "UTF-8"),
        ("a.csv", "clean,corrupt\na,b\n", "header lacks answer, wrong"),
        (
            "a.csv",
            "clean,corrupt,answer,wrong\nAnn lives in,Eva lives,Orla,Vesk\n",
            "line 2: .*differ in length",
        ),
        (
            "a.csv",
            "clean,corrupt,answer,wrong\nAnn lives in,Eva lives in,Orla\n",
            "line 2: 'wrong' must be a text",
        ),
        (
            "a.csv",
            "clean,corrupt,answer,wrong,joined\nAnn lives in,Eva lives in,Orla,Vesk,maybe\n",
            "line 2: 'joined' must be true or false",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        Task.from_file(TOKENIZER, path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        Task.from_file(TOKENIZER, tmp_path / "absent.jsonl")


def test_saved_file_is_one_json_object_per_row(task, tmp_path):
    rows = [json.loads(line) for line in task.save(tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "clean": "Ann lives in",
        "corrupt": "Eva lives in",
        "answer": " Orla",
        "wrong": " Vesk",
    }
