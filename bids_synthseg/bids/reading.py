"""Reading the small text files of BIDS: tables (.tsv) and the JSON that describes them."""

import csv
import json
from pathlib import Path

from bids_synthseg.errors import BadData

NOT_AVAILABLE = ("", "n/a")
"""What BIDS writes, and what people write, for a value that is missing."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table; [] where there is no such file.

    Raises BadData where it cannot be read, or a row has more or fewer cells than the header.
    """
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path}: cannot be read ({error}); write it as text in UTF-8") from error
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise BadData(f"{path}: row {number} has not as many cells as the header; mend it")
    return rows


def read_object(path: Path) -> dict:
    """A JSON object; {} where there is no such file. Raises BadData where it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadData(f"{path}: cannot be read as JSON ({error}); mend it") from error
    if not isinstance(content, dict):
        raise BadData(f"{path}: not a JSON object; mend it")
    return content
