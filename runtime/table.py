"""Tables in plain text, for the command lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GAP = "  "


def format_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table in columns as wide as their widest cell.

    Args:
        headers: one a column
        rows: cells, written as `str` does; None is left blank. A column is set to the right if every one of its cells
            is a number, or text that begins with a digit

    Returns:
        lines of text, without a trailing newline
    """
    table = [["" if cell is None else _plain(cell) for cell in row] for row in rows]
    for row in table:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells for {len(headers)} headers")
    to_right = [all(_numeric(row[i]) for row in table) for i in range(len(headers))]
    widths = [max(len(row[i]) for row in [list(headers), *table]) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        laid = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, to_right, strict=True))
        return GAP.join(laid).rstrip()

    rule = GAP.join("-" * w for w in widths)
    return "\n".join([line(headers), rule, *(line(row) for row in table)])


class TableLines:
    """A table whose rows are printed as they come, before their widths are known.

    Args:
        columns: for each its header, the width that is kept for it, which a longer cell exceeds, and whether it is set
            to the right
    """

    def __init__(self, columns: Sequence[tuple[str, int, bool]]) -> None:
        self._columns = columns

    def head(self) -> str:
        """The headers and the rule, two lines without a trailing newline."""
        rule = GAP.join("-" * max(width, len(header)) for header, width, _ in self._columns)
        return f"{self.row([header for header, _, _ in self._columns])}\n{rule}"

    def row(self, cells: Sequence[object]) -> str:
        """A line without a trailing newline.

        Args:
            cells: one a column, written as :func:`format_table` does
        """
        laid = []
        for cell, (header, width, right) in zip(cells, self._columns, strict=True):
            text, room = "" if cell is None else _plain(cell), max(width, len(header))
            laid.append(text.rjust(room) if right else text.ljust(room))
        return GAP.join(laid).rstrip()


def _plain(cell: object) -> str:
    # File names may hold anything; a table is one line a row, and a terminal obeys control characters.
    return "".join(c if c.isprintable() else "?" for c in str(cell))


def _numeric(cell: str) -> bool:
    return not cell or cell.lstrip("+-~≤≥<>")[:1].isdigit()
