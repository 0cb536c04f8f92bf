"""CSV cells: for every text there is one cell that no spreadsheet runs, and it reads back as the text."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from engine.core.csv_cells import RUN_BY_SPREADSHEETS, read_cell, text_cell

TEXTS = st.text(st.sampled_from("'=+-@\t\r a\"")) | st.text()


@given(TEXTS)
@example("'=x")
@example("''-")
@example("'")
@example("")
def test_a_cell_reads_back_as_its_text_and_runs_nowhere(text: str) -> None:
    cell = text_cell(text)
    assert read_cell(cell) == text
    assert cell[:1] not in RUN_BY_SPREADSHEETS or not cell


@given(TEXTS, TEXTS)
def test_two_texts_never_share_a_cell(one: str, other: str) -> None:
    assert (text_cell(one) == text_cell(other)) == (one == other)


@given(st.text(st.characters(exclude_characters="'=+-@\t\r")))
def test_an_ordinary_text_is_its_own_cell(text: str) -> None:
    assert text_cell(text) == text == read_cell(text)
