"""Names keep the limits of where they go and still tell things apart."""

import pytest

from ringexp.names import MAX_FOLDER_BYTES, folder_part, shortened


def test_a_short_name_stays_as_it_is():
    assert shortened("a" * 64, 64) == "a" * 64
    assert folder_part("größe 1") == "größe 1"


def test_long_names_with_one_beginning_stay_different():
    one, other = (shortened("a" * 100 + end, 64) for end in "bc")
    assert len(one) == len(other) == 64
    assert one != other


@pytest.mark.parametrize("letter", ["a", "ü", "字", "😀"])
def test_a_part_of_a_folder_name_is_short_in_bytes(letter):
    short = folder_part("run_" + letter * 500)
    assert len(short.encode()) <= MAX_FOLDER_BYTES
    assert short.startswith("run_" + letter)
