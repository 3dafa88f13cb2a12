"""Level group: two tables and one page about all sessions of an output folder.

Reads what level participant wrote, and the ages in the tables of the raw data set; no image.
"""

from collections.abc import Sequence
from pathlib import Path

from bids_synthseg.bids.ages import Age, read_ages
from bids_synthseg.bids.dataset import prepare_output
from bids_synthseg.bids.group_page import KINDS, page
from bids_synthseg.bids.quality import MEASURES, VERDICTS
from bids_synthseg.bids.query import read_description
from bids_synthseg.bids.results import STATUSES, Result, read_results
from bids_synthseg.bids.sessions import Key
from bids_synthseg.bids.tables import write_table
from bids_synthseg.bids.tidying import at_work, settle_sessions
from bids_synthseg.errors import InputMissing
from bids_synthseg.storage import write_text

_WHO = {
    "participant_id": {"Description": "Subject"},
    "session_id": {"Description": "Session; n/a where the subject has none"},
}
_AGES = {
    "age_months": {
        "Description": "Age since birth, from scans.tsv, sessions.tsv or participants.tsv",
        "Units": "month",
    },
    "age_weeks_pma": {
        "Description": "Age since the last menstrual period, from column age_weeks_pma",
        "Units": "week",
    },
}
_BRAIN = (
    "Volume of all structures together: that of the brain mask, but for holes that the mask fills"
)
# Ages are those of the tables now, not those that the session was judged with.
_MEASURES = {name: about for name, about in MEASURES.items() if name not in _AGES}
_QC = {
    **_WHO,
    **_AGES,
    "status": {"Description": "What became of the session", "Levels": STATUSES},
    "verdict": {
        "Description": "What the quality measures say of the result; n/a where an older version, "
        "which did not judge, made it",
        "Levels": {verdict: KINDS[verdict] for verdict in VERDICTS},
    },
    "reasons": {"Description": "Why the verdict is not pass"},
    "brain_mm3": {"Description": f"{_BRAIN}; in space T1w, else T2w", "Units": "mm^3"},
    "warnings": {"Description": "Number of warnings of the run that finished the session"},
    "seconds": {
        "Description": "Duration of the session; n/a where the last run found it done already",
        "Units": "s",
    },
    "message": {"Description": "Why it is not done, or else the warnings"},
    "report": {"Description": "The page of the session, relative to this table"},
    **_MEASURES,
}


def write_group(bids_dir: Path, output_dir: Path) -> list[Result]:
    """Write group_volumes.tsv, group_qc.tsv and group.html; returns what they tell of.

    Raises InputMissing where there is no raw data set or nothing of level participant to read,
    UsageProblem where the output is not that of this App, CannotCreate and StorageProblem where it
    cannot be written to.
    """
    title = read_description(bids_dir).get("Name") or bids_dir.absolute().name
    settle_sessions(output_dir)
    results = read_results(output_dir)
    if not results:
        raise InputMissing(
            f"{output_dir}: holds no results of level participant; run that first, "
            "or check the folder"
        )
    output = prepare_output(bids_dir, output_dir)
    ages = read_ages(bids_dir, [result.key for result in results])
    columns, about = volumes_table(results, ages)
    with at_work(output):
        write_table(output / "group_volumes.tsv", columns, about)
        write_table(output / "group_qc.tsv", qc_table(results, ages), _QC)
        write_text(output / "group.html", page(str(title), results, ages))
    return results


def volumes_table(
    results: Sequence[Result], ages: dict[Key, Age]
) -> tuple[dict[str, list], dict[str, dict]]:
    """Columns and their descriptions: one row per session and space, two columns per structure.

    A structure that a session's model did not know is n/a; one that it did not find is 0.
    """
    rows = [(result, space) for result in results for space in result.volumes or {}]
    indices = {
        name: volume.index
        for result, space in rows
        for name, volume in (result.volumes or {})[space].items()
    }
    columns: dict[str, list] = {
        **_who([result for result, _ in rows], ages),
        "space": [space for _, space in rows],
        "brain_mm3": [result.brain_mm3(space) for result, space in rows],
    }
    about = {
        **_WHO,
        **_AGES,
        "space": {"Description": "The contrast on whose grid the volumes were counted"},
        "brain_mm3": {"Description": _BRAIN, "Units": "mm^3"},
    }
    names = sorted(indices, key=lambda name: (indices[name], name))
    volumes = [(result.volumes or {})[space] for result, space in rows]
    for name in names:
        own = [one.get(name) for one in volumes]
        columns[name] = [one and one.hard_mm3 for one in own]
        about[name] = {
            "Description": f"Volume of all voxels with label {indices[name]}",
            "Units": "mm^3",
        }
    for name in names:
        own = [one.get(name) for one in volumes]
        columns[f"{name}_soft"] = [one and one.soft_mm3 for one in own]
        about[f"{name}_soft"] = {
            "Description": f"Sum of the posterior probability of label {indices[name]} over all "
            "voxels, times the volume of a voxel",
            "Units": "mm^3",
        }
    return columns, about


def qc_table(results: Sequence[Result], ages: dict[Key, Age]) -> dict[str, list]:
    """One row per session, whatever became of it; after the verdict come all its measures."""
    judged = [result.quality for result in results]
    return {
        **_who(results, ages),
        "status": [result.status for result in results],
        "verdict": [quality and quality.verdict for quality in judged],
        "reasons": [_sentence(quality.reasons) if quality else None for quality in judged],
        "brain_mm3": [result.brain_mm3(result.space) for result in results],
        "warnings": [len(result.warnings) for result in results],
        "seconds": [result.seconds for result in results],
        "message": [result.message or _sentence(result.warnings) for result in results],
        "report": [result.report for result in results],
        **{
            name: [quality.measures.get(name) if quality else None for quality in judged]
            for name in _MEASURES
        },
    }


def _sentence(parts: Sequence[str]) -> str:
    """On one line, whatever a part holds."""
    return " ".join("; ".join(parts).split())


def _who(results: Sequence[Result], ages: dict[Key, Age]) -> dict[str, list]:
    return {
        "participant_id": [f"sub-{result.subject}" for result in results],
        "session_id": [f"ses-{result.session}" if result.session else None for result in results],
        "age_months": [ages[result.key].months for result in results],
        "age_weeks_pma": [ages[result.key].weeks_pma for result in results],
    }
