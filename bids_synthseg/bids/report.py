"""The report of one session: one HTML file that needs no network and no other file to be read.

It is made from derivatives, the session's record and the scans that these name alone, so that it
can be made again at any time. jinja2 fills data/templates/report.html and escapes all that comes
from a data set.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from markupsafe import Markup

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.derivatives import SessionPaths, session_record
from bids_synthseg.bids.pages import template
from bids_synthseg.bids.quality import MEASURES, STRUCTURE_MEASURES, Quality
from bids_synthseg.bids.query import CONTRASTS, read_description
from bids_synthseg.bids.references import methods_paragraphs, read_references, split_citations
from bids_synthseg.bids.report_figures import DISAGREEMENT, DOUBT_MAX, WHOLE, doubt_colours
from bids_synthseg.bids.report_growth import HEIGHT, WIDTH, draw_growth
from bids_synthseg.bids.report_spaces import (
    SHOWN_MEASURES,
    SpaceReport,
    Structure,
    read_space,
    structures,
)
from bids_synthseg.bids.report_viewer import (
    niivue_license,
    niivue_script,
    niivue_views,
    nilearn_page,
)
from bids_synthseg.bids.sessions import Key
from bids_synthseg.errors import BadData, InputMissing, UsageProblem
from bids_synthseg.reading import check_file, is_there, read_toml, unreadable
from bids_synthseg.storage import write_text

VIEWERS = ("niivue", "nilearn", "none")
"""What may show the session in three dimensions; "none" leaves the still pictures."""

_RUN_STARTS = re.compile(r"^.* DEBUG bids_synthseg\.execution: bids_synthseg ", re.MULTILINE)
_ERROR = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) \S+: (.*)$", re.MULTILINE)
_LONGEST_LOG = 100_000
_WHOLE_COLOUR = "#ffd84d"


@dataclass(frozen=True)
class Log:
    """What the last run of a session said; `errors`: its lines of that level."""

    text: str
    errors: tuple[str, ...]


def write_report(
    bids_dir: Path,
    output_dir: Path,
    key: Key,
    *,
    viewer: str = "niivue",
    table_of_links: Mapping[str, Path] = MappingProxyType({}),
) -> Path:
    """Write the report of a session; returns its path.

    viewer: one of VIEWERS; table_of_links: the data sets, beside input and output, that BIDS URIs
    of the session name. Of a session that is not finished the report gives the reason.

    Raises InputMissing where nothing is known of the session or a scan is gone, BadData where a
    file cannot be used, UsageProblem for another viewer or one that is not installed, CannotCreate
    and StorageProblem where the page cannot be written.
    """
    if viewer not in VIEWERS:
        raise UsageProblem(f"--viewer {viewer}: choose one of {', '.join(VIEWERS)}")
    paths = SessionPaths(output_dir, *key)
    # A session that failed early has a log alone.
    if not paths.record.is_file() and not paths.log.is_file():
        raise InputMissing(f"{paths.record}: no such record; run level participant first")
    record = session_record(paths).read()
    spaces: list[SpaceReport] = []
    if record.get("Signature"):
        for contrast in CONTRASTS:
            if paths.file("dseg", space=contrast, desc="aseg").is_file():
                spaces.append(read_space(paths, contrast, bids_dir, table_of_links, spaces))
    write_text(paths.report, _page(paths, record, spaces, viewer))
    return paths.report


def _page(paths: SessionPaths, record: dict, spaces: list[SpaceReport], viewer: str) -> str:
    return template("report.html").render(
        label=paths.label,
        version=__version__,
        data_set=_data_set(paths.output_dir),
        finished=bool(record.get("Signature")),
        scans=_uris(record.get("Scans")),
        left_out=_uri_reasons(record.get("LeftOut")),
        warnings=[*_texts(record.get("Warnings")), *_texts(record.get("Notes"))],
        spaces=spaces,
        style=_part("report.css"),
        behaviour=_part("report.js"),
        **_numbers(Quality.of(record.get("Quality")), spaces),
        **_pictures(spaces, viewer),
        **_provenance(paths, spaces),
    )


def _numbers(quality: Quality | None, spaces: list[SpaceReport]) -> dict:
    """What the page tells of quality and volumes."""
    measures = quality.measures if quality else {}
    brain_ml = measures.get("brain_ml")
    if brain_ml is None and spaces:
        brain_ml = spaces[0].brain_ml
    age = measures.get("age_weeks_pma")
    rows = structures(spaces)
    return {
        "quality": quality,
        "measures": measures,
        "about_measures": MEASURES,
        "brain_ml": brain_ml,
        "age": age,
        "growth": draw_growth(age, brain_ml),
        "growth_size": (WIDTH, HEIGHT),
        "structures": rows,
        "measured": _measured(rows),
    }


def _pictures(spaces: list[SpaceReport], viewer: str) -> dict:
    """What the page needs to draw labels, and the viewer."""
    table = LabelTable.default()
    views = [space.view for space in spaces]
    niivue = viewer == "niivue" and bool(views)
    nilearn = viewer == "nilearn" and bool(views)
    return {
        "viewer": viewer if views else "none",
        "views": niivue_views(views) if niivue else [],
        "script": niivue_script() if niivue else "",
        "script_license": niivue_license() if niivue else "",
        "frames": [nilearn_page(view, table) for view in views] if nilearn else [],
        "colours": {row.index: row.color for row in table.rows} | {WHOLE: _WHOLE_COLOUR},
        "names": {row.index: row.name for row in table.rows} | {WHOLE: "all labels"},
        "label_list": [
            {"index": row.index, "name": row.name, "color": row.color}
            for row in table.fold("aseg")[0].rows[1:]
        ],
        "doubt_colours": doubt_colours(),
        "doubt_max": DOUBT_MAX,
        "disagreement_colour": DISAGREEMENT,
    }


def _provenance(paths: SessionPaths, spaces: list[SpaceReport]) -> dict:
    """How the session was made, and what the log says."""
    logs = paths.output_dir / "logs"
    references = read_references(_text(logs / "CITATION.bib"))
    methods = methods_paragraphs(_text(logs / "CITATION.md"))
    return {
        "methods": [split_citations(paragraph, references) for paragraph in methods],
        "references": references.values(),
        "run": _run(logs / "config.toml"),
        "config": _text(logs / "config.toml"),
        "checksums": spaces[0].checksums if spaces else {},
        "log": _log(paths.log),
    }


def _measured(rows: list[Structure]) -> dict[str, tuple[str, str, str]]:
    """Heading, format and meaning of the measures that some structure has."""
    return {
        key: (*how, STRUCTURE_MEASURES[key]["Description"])
        for key, how in SHOWN_MEASURES.items()
        if any(row.measures[key] is not None for row in rows)
    }


def _part(name: str) -> Markup:
    """A style sheet or script of our own: the page holds it as it is."""
    folder = files("bids_synthseg") / "data" / "templates"
    return Markup((folder / name).read_text(encoding="utf-8"))


def _data_set(output_dir: Path) -> str:
    try:
        return str(read_description(output_dir).get("Name") or "")
    except (BadData, InputMissing):  # a report can do without
        return ""


def _run(config: Path) -> dict[str, str]:
    """Command, version, Python and platform of the last run, as text."""
    run = read_toml(config).get("run") if is_there(config) else None
    run = run if isinstance(run, dict) else {}
    command = run.get("command")
    command = command if isinstance(command, list) else []
    told = {name: str(run[name]) for name in ("version", "python", "platform") if name in run}
    return {"command": shlex.join(map(str, command)), **told}


def _log(path: Path) -> Log:
    text = _text(path)
    starts = [match.start() for match in _RUN_STARTS.finditer(text)]
    last = text[starts[-1] :] if starts else text
    return Log(last[-_LONGEST_LOG:], tuple(_ERROR.findall(last)))


def _text(path: Path) -> str:
    """Content of a text file, as far as it is text; "" where there is none."""
    if not is_there(path):
        return ""
    check_file(path)
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise unreadable(error, path) from error


def _texts(listed: object) -> list[str]:
    return [str(item) for item in listed] if isinstance(listed, list) else []


def _uris(listed: object) -> list[str]:
    return [_short(str(uri)) for uri in listed] if isinstance(listed, list) else []


def _uri_reasons(listed: object) -> dict[str, str]:
    items = listed.items() if isinstance(listed, dict) else ()
    return {_short(str(uri)): str(reason) for uri, reason in items}


def _short(uri: str) -> str:
    """A BIDS URI for people: the raw data set goes without saying."""
    return uri.removeprefix("bids:raw:").removeprefix("bids::")
