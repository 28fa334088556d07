"""Tables of Dagster's metadata: other people's text stays text, unknown stays empty."""

from __future__ import annotations

from datetime import UTC, datetime

from tokentra_dagster.markdown import LONGEST_CELL, bullets, table


def test_figures_are_set_to_the_right_and_unknown_is_empty():
    found = table(["name", "rows", "seen"], [("a", 1234567, datetime(2026, 6, 1, 5, tzinfo=UTC)), ("b", None, None)])
    assert found == "| name | rows | seen |\n| --- | --: | --- |\n| a | 1,234,567 | 2026-06-01 05:00 |\n| b |  |  |"


def test_text_of_others_makes_no_link_no_tag_and_no_further_cell():
    (line,) = table(["error"], [("a|b [x](http://y) <img src=z>\n*bold* `code`",)]).splitlines()[2:]
    assert line == r"| a\|b \[x\](http://y) \<img src=z\> \*bold\* \`code\` |"
    assert bullets(["one\ntwo", "<b>"]) == "- one two\n- \\<b\\>"
    assert len(table(["error"], [("x" * 10_000,)])) < LONGEST_CELL + 50


def test_nothing_is_said_in_words():
    assert table(["a"], [], empty="Nothing new.") == bullets([], empty="Nothing new.") == "Nothing new."
