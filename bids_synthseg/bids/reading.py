"""Reading the small JSON files of BIDS: what describes a table, and the record of a session."""

import json
from pathlib import Path

from bids_synthseg.errors import BadData


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
