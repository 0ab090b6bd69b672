"""What finished work has found is kept line by line, and nothing but the line that was cut off is done again."""

from __future__ import annotations

import json

import pytest

from actinium.core.errors import InputError, LoadError
from actinium.core.journal import Journal

HEAD = {"seed": 0, "sizes": (1, 2)}


def test_rows_come_back_in_their_order(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    first = Journal(file, "search", HEAD)
    for i in range(3):
        first.add({"trial": i, "values": [i / 3]})
    again = Journal(file, "search", HEAD)
    assert again.rows == first.rows == [{"trial": i, "values": [i / 3]} for i in range(3)]
    again.add({"trial": 3})
    assert Journal(file, "search", HEAD).rows[-1] == {"trial": 3}
    assert json.loads(file.read_text().splitlines()[0]) == {"seed": 0, "sizes": [1, 2]}


def test_without_a_file_rows_are_kept_in_memory():
    journal = Journal(None, "search", HEAD)
    journal.add({"trial": 0})
    assert journal.rows == [{"trial": 0}]


def test_a_line_that_was_cut_off_is_taken_away(tmp_path):
    file = tmp_path / "rows.jsonl"
    Journal(file, "search", HEAD).add({"trial": 0})
    with file.open("a") as out:
        out.write('{"trial": 1, "outc')
    again = Journal(file, "search", HEAD)
    assert again.rows == [{"trial": 0}]
    again.add({"trial": 1})
    assert [json.loads(line) for line in file.read_text().splitlines()[1:]] == [{"trial": 0}, {"trial": 1}]
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", ["no json\n", "[1, 2]\n", "a line without an end", '{"seed": 0}\nno row\n'])
def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(LoadError, match="no file of a search"):
        Journal(file, "search", HEAD)
    assert file.read_text() == text


def test_a_file_of_other_work_is_refused_and_says_why(tmp_path):
    file = tmp_path / "rows.jsonl"
    Journal(file, "search", HEAD)
    with pytest.raises(LoadError, match=r"another search \(different seed\)"):
        Journal(file, "search", HEAD | {"seed": 1})


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Journal(file / "rows.jsonl", "search", HEAD)
