"""Reading tab-separated tables as BIDS, people and spreadsheets write them.

No fault are a byte order mark, line ends of any system, cells in double quotes (which BIDS wants
around a tab), blank lines, columns without a name, which are left out, capitals in the name of a
column, and blanks in place of all tabs. A fault is whatever leaves open which column a cell belongs
to.
"""

import re
from pathlib import Path

from bids_synthseg.errors import BadData
from bids_synthseg.reading import is_there, read_text

NOT_AVAILABLE = ("", "n/a")
"""What BIDS writes, and what people write, for a value that is missing."""

# Quotes count only around a whole cell, and only within a line: a single one is a character.
_CELL = re.compile(r'(?:^|\t)("(?:[^"]|"")*"(?=\t|$)|[^\t]*)')


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a table, each by column; [] where there is no such file.

    Columns are known by their names in small letters, unless two differ in that alone. columns:
    those that must be there. Raises BadData, with the line where there is one, for a file
    that cannot be read, a column that is missing or stands twice, and a row that has more or fewer
    cells than the header.
    """
    if not is_there(path):
        return []
    text = read_text(path)
    # Not splitlines(), which also splits within cells, at characters such as U+2028.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    split = str.split if _has_blanks_for_tabs([line for _, line in lines]) else _cells
    header = _names(split(lines[0][1])) if lines else []
    for column in columns:
        if column not in header:
            raise BadData(
                f"{path}: has no column {column!r}; write {', '.join(columns)}, separated by tabs"
            )
    if twice := {column for column in header if column and header.count(column) > 1}:
        raise BadData(f"{path}: column {min(twice)!r} stands twice; keep one of them")
    rows = []
    for number, line in lines[1:]:
        cells = split(line)
        if len(cells) != len(header):
            raise BadData(
                f"{path}: line {number} has {len(cells)} cell(s), the header {len(header)}; "
                "write one for each column, n/a where there is none"
            )
        rows.append({name: cell for name, cell in zip(header, cells, strict=True) if name})
    return rows


def _has_blanks_for_tabs(lines: list[str]) -> bool:
    """Whether no line has a tab and blanks cut each into as many words, more than one."""
    if not lines or any("\t" in line for line in lines):
        return False
    return {len(line.split()) for line in lines} == {len(lines[0].split())} != {1}


def _names(header: list[str]) -> list[str]:
    """The names of the columns in small letters, where that leaves them apart."""
    names = [name.strip() for name in header]
    small = [name.lower() for name in names]
    return [low if small.count(low) == 1 else name for name, low in zip(names, small, strict=True)]


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split("\t")
    return [
        cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
        for cell in _CELL.findall(line)
    ]
