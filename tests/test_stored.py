"""JSON that is left for later: strict as it is written, checked as it is read."""

import json
import os

import pytest

from ringexp.stored import an_object, positive, read_checked, strict_json, write_json


def test_numbers_that_are_not_finite_become_null_and_are_named():
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": -float("inf")}, "e": 0.5}
    assert json.loads(strict_json(values), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.0, None],
        "c": {"d": None},
        "e": 0.5,
        "not_finite": {"a": "nan", "b.1": "inf", "c.d": "-inf"},
    }


def test_what_was_not_finite_stays_named_as_it_is_written_again():
    again = json.loads(strict_json(json.loads(strict_json({"a": float("nan")})) | {"b": float("inf")}))
    assert again["not_finite"] == {"a": "nan", "b": "inf"}


def test_finite_values_are_written_as_they_are(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None, True, "NaN"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None, True, "NaN"]}


DAMAGE = {
    "empty": b"",
    "cut": b'{"ms": 1',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "another key": b'{"s": 1}',
    "a text": b'{"ms": "1"}',
    "zero": b'{"ms": 0}',
    "negative": b'{"ms": -1}',
    "true": b'{"ms": true}',
    "NaN": b'{"ms": NaN}',
    "infinite": b'{"ms": 1e999}',
    "huge": b'{"ms": 1' + b"0" * 400 + b"}",
    "no utf-8": b'{"ms": 1, "a": "\xff"}',
    "deep": b"[" * 100_000,
}


def check(value) -> float:
    return positive(an_object(value, "it")["ms"], "ms")


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_set_aside_with_one_warning(tmp_path, content):
    path, told = tmp_path / "a.json", []
    path.write_bytes(content)
    assert read_checked(path, check, told.append) is None
    (line,) = told
    assert str(path) in line
    assert "\n" not in line
    assert len(line) < 1000
    assert (tmp_path / "a.json.damaged").read_bytes() == content
    assert read_checked(path, check, told.append) is None
    assert len(told) == 1
    write_json(path, {"ms": 2})
    assert read_checked(path, check, told.append) == 2.0


def test_a_folder_in_place_of_a_file_is_set_aside(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json.damaged").touch()
    told: list[str] = []
    assert read_checked(tmp_path / "a.json", check, told.append) is None
    assert (tmp_path / "a.json.damaged.2").is_dir()
    assert len(told) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_set_aside(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"ms": 1}')
    path.chmod(0)
    assert read_checked(path, check, lambda line: None) is None
    assert not path.exists()


def test_a_file_that_is_not_there_is_no_damage(tmp_path):
    assert read_checked(tmp_path / "a.json", check, pytest.fail) is None
    (tmp_path / "file").touch()
    assert read_checked(tmp_path / "file" / "a.json", check, pytest.fail) is None
