"""Text from files that is printed acts on no terminal and is no markup."""

import io

import pytest
from rich.console import Console

from ringexp.printable import plain, plain_lines, shown

HOSTILE = [
    "\x1b[31mred",  # an escape sequence
    "\x9b31m",  # the same in C1
    "title\x1b]0;owned\x07",
    "over\rwritten",
    "back\b\bspace",
    "\u202eright to left",
    "\u2066isolated\u2069",
    "line\u2028separator",
    "half of a pair \ud800",
    "nul\0",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_acts_on_a_terminal_is_replaced(text):
    for made in (plain(text), plain_lines(text), shown(text)):
        assert made.isprintable()
        made.encode()


def test_text_stays_as_it_is():
    text = "Größe 100/50 %, ñandú 🙂 [a] $x$"
    assert plain(text) == text


def test_lines_are_kept_where_they_are_wanted():
    assert plain("a\tb\r\nc") == "a b c"
    assert plain_lines("a\tb\nc") == "a\tb\nc"


@pytest.mark.parametrize("text", ["[red]x[/red]", "[/]", "[link=http://x]y", "[bold", "a\\[b]", "[[x]]"])
def test_markup_is_shown_and_not_followed(text):
    out = io.StringIO()
    Console(file=out, emoji=False, color_system=None, width=100).print(f"[dim]{shown(text)}[/dim]")
    assert out.getvalue() == f"{text}\n"
