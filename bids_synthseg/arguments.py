"""What the words after an option mean: contrasts, NAME=PATH pairs, filter files."""

import json
from collections.abc import Sequence
from pathlib import Path

from bids_synthseg.errors import InputMissing, UsageProblem

CONTRASTS = ("T1w", "T2w")


def contrasts(values: Sequence[str]) -> tuple[str, ...]:
    """The contrasts asked for, T1w before T2w; 'both' and nothing mean both."""
    known = {"t1w": ("T1w",), "t2w": ("T2w",), "both": CONTRASTS}
    unknown = [value for value in values if value.lower() not in known]
    if unknown:
        raise UsageProblem(f"--contrast {unknown[0]}: not known; use T1w, T2w or both")
    wanted = {name for value in values for name in known[value.lower()]}
    return tuple(name for name in CONTRASTS if name in wanted or not wanted)


def named_paths(values: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH pairs as a dictionary."""
    paths: dict[str, Path] = {}
    for value in values:
        name, sign, path = value.partition("=")
        if not (name and sign and path) or name in paths:
            raise UsageProblem(f"--derivatives {value}: write NAME=PATH, each name once")
        paths[name] = Path(path)
    return paths


def read_filters(path: Path | None) -> dict[str, dict] | None:
    """The filter file: {"t1w": {entity: value, ...}, "t2w": {...}}; keys of others are ignored."""
    if path is None:
        return None
    if not path.is_file():
        raise InputMissing(f"{path}: no such filter file; check --bids-filter-file")
    try:
        filters = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageProblem(f"{path}: the filter file is not JSON ({error}); mend it") from error
    if not isinstance(filters, dict) or not all(isinstance(v, dict) for v in filters.values()):
        raise UsageProblem(f'{path}: write the filters as {{"t1w": {{...}}, "t2w": {{...}}}}')
    return filters
