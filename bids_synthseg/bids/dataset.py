"""The output as a data set: whether it may lie where it is asked for, and the files at its root.

The root files depend on the input, the data sets of derivatives named, the version and the label
table alone, so that every shard of a job writes the same bytes and no order matters.
"""

import errno
import json
import logging
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from types import MappingProxyType

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.query import read_description
from bids_synthseg.bids.scans import RAW
from bids_synthseg.bids.tables import format_table, label_table_text
from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.storage import atomic_file, explain, make_folder, write_text

NAME = "bids_synthseg"
_DESCRIPTION = "dataset_description.json"
_MARKS = ("plan.tsv", "status*.tsv", "sub-*.json")
"""Names in logs/ that tell of an output of this App."""
_PROBE = re.compile(r"\.?\.probe|\.dataset_description\.json\.")
BIDS_VERSION = "1.10.0"
# `figures` and `training` without a slash: with one, the validator ignores their content only.
BIDSIGNORE = "*.html\nlogs/\n**/figures\n*_xfm.*\n*_volumes.*\ngroup_*\ntraining\n"
_DESCRIPTIONS = {
    "aseg": "Segmentation, and volumes by it, with FreeSurfer's aseg numbers up to 255",
    "native": "Segmentation with the labels of the model, of which some are finer than aseg",
    "asegT1w": "As aseg, of one T1w scan alone",
    "asegT2w": "As aseg, of one T2w scan alone",
    "nativeT1w": "As native, of one T1w scan alone",
    "nativeT2w": "As native, of one T2w scan alone",
    "brain": "Mask of the brain: the union of its labels, holes filled",
    "posteriors": "Posterior probability of every label of the model, one volume each",
    "preproc": "The image that was segmented, corrected for the bias field",
    "confidence": "Probability of the label that was chosen, in every voxel",
    "disagreement": "Mask of the voxels where T1w and T2w alone choose different labels",
    "qc": "Measures of the quality of the segmentation, per structure",
}
_README = """\
# Brain segmentation by bids_synthseg

Derivatives of the data set named in `dataset_description.json` (BIDS {bids}, version {version} of
bids_synthseg). Images lie on the grid of the scan that their `space-` names.

| file | content |
|---|---|
| `*_space-<T1w,T2w>_desc-aseg_dseg.nii.gz` | segmentation with FreeSurfer's numbers |
| `*_desc-native_dseg.nii.gz` | the model's own labels, where they are finer |
| `*_desc-brain_mask.nii.gz` | brain mask |
| `*_desc-aseg_volumes.tsv` | volume of every structure |
| `*_desc-qc_volumes.tsv` | measures of quality of every structure |
| `*_desc-confidence_probseg.nii.gz` | probability of the chosen label |
| `*_desc-disagreement_mask.nii.gz` | where T1w and T2w alone disagree |
| other `*_probseg.nii.gz` | probabilities, if they were asked for |
| `*_desc-preproc_<T1w,T2w>.nii.gz` | the scan used, bias-corrected, where there were several |
| `desc-aseg_dseg.tsv`, `desc-native_dseg.tsv` | what the numbers mean |
| `logs/` | what each session was made from, and what happened |

For research only; this is not a medical device.
"""

logger = logging.getLogger(__name__)


def prepare_output(bids_dir: Path, output_dir: Path) -> Path:
    """Create the output folder; returns its absolute path.

    Errors as `check_output`, and StorageProblem where it cannot be written to.
    """
    output = check_output(bids_dir, output_dir)
    make_folder(output)
    # Rights and space show only in writing.
    with atomic_file(output / ".probe") as stream:
        stream.write(bytes(1 << 20))
    (output / ".probe").unlink(missing_ok=True)  # another shard may have been faster
    return output


def check_output(bids_dir: Path, output_dir: Path) -> Path:
    """The absolute path of the output folder; nothing is created.

    Raises UsageProblem where it is the input, lies in it elsewhere than in a folder of
    derivatives/, or holds another data set; CannotCreate where it cannot be written to, as far as
    rights tell.
    """
    output = Path(os.path.abspath(output_dir))
    raw = Path(bids_dir).resolve()
    cure = f"choose another folder, for instance {raw / 'derivatives' / NAME}"
    resolved = output.resolve()
    if resolved == raw:
        raise UsageProblem(f"{output}: the output folder is the input; {cure}")
    if resolved.is_relative_to(raw):
        first, *rest = resolved.relative_to(raw).parts
        if first != "derivatives" or not rest:
            raise UsageProblem(f"{output}: the output folder lies inside the input; {cure}")
        if NAME not in rest[0]:
            logger.warning(
                "%s: BIDS wants the name of a folder in derivatives/ to hold '%s'", output, NAME
            )
    _check_owner(output, cure)
    if (version := written_by(output)) not in (None, __version__):
        logger.info(
            "%s: written by version %s, this is %s; sessions that are finished stay as they are "
            "without --redo-changed",
            output,
            version,
            __version__,
        )
    there = next(folder for folder in (output, *output.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise explain(NotADirectoryError(errno.ENOTDIR, "not a folder"), output)
    if not os.access(there, os.W_OK | os.X_OK):
        raise explain(PermissionError(errno.EACCES, "no permission"), output)
    return output


def write_dataset_files(
    bids_dir: Path,
    output_dir: Path,
    table: LabelTable,
    links: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Write what lies at the root of the output; `table` is the model's label table, `links` are
    the data sets of derivatives that the sessions of this run are made from."""
    descriptions = {
        "desc_id": [f"desc-{desc}" for desc in _DESCRIPTIONS],
        "description": list(_DESCRIPTIONS.values()),
    }
    # Those of earlier runs as well: the sidecars of sessions that stay as they are name them.
    links = dataset_links(output_dir) | dict(links)
    description = dataset_description(bids_dir, output_dir, links)
    contents = {
        "dataset_description.json": json.dumps(description, indent=2, ensure_ascii=False) + "\n",
        "README.md": _README.format(bids=BIDS_VERSION, version=__version__),
        ".bidsignore": BIDSIGNORE,
        "descriptions.tsv": format_table(descriptions),
        "desc-aseg_dseg.tsv": label_table_text(table.fold("aseg")[0]),
        "desc-native_dseg.tsv": label_table_text(table),
    }
    for name, text in contents.items():
        write_text(output_dir / name, text)


def dataset_description(
    bids_dir: Path, output_dir: Path, links: Mapping[str, Path] = MappingProxyType({})
) -> dict:
    """The description of the output; that of the input must exist (InputMissing, BadData)."""
    raw = read_description(bids_dir)
    generator = {
        "Name": NAME,
        "Version": __version__,
        "CodeURL": _code_url(),
        "Container": _container(),
    }
    source = {"URL": f"bids:{RAW}:", "DOI": raw.get("DatasetDOI")}
    return {
        "Name": f"Brain segmentation of: {raw.get('Name') or 'unnamed data set'}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": raw.get("License") or "not stated by the source data set",
        "GeneratedBy": [_known(generator)],
        "SourceDatasets": [_known(source), *({"URL": f"bids:{name}:"} for name in links)],
        # Relative, so that input and output can move together.
        "DatasetLinks": {
            name: Path(os.path.relpath(folder.resolve(), output_dir.resolve())).as_posix()
            for name, folder in {RAW: bids_dir, **links}.items()
        },
    }


def dataset_links(output_dir: Path) -> dict[str, Path]:
    """The data sets of derivatives that an output is linked to: name in BIDS URIs -> folder.

    Empty where there is no output yet, or, with a warning, where its description is damaged.
    """
    links = _description(output_dir).get("DatasetLinks") or {}
    if not isinstance(links, dict) or not all(isinstance(path, str) for path in links.values()):
        logger.warning("%s: DatasetLinks is damaged and begun anew", output_dir / _DESCRIPTION)
        return {}
    return {
        name: (output_dir.resolve() / folder).resolve()
        for name, folder in links.items()
        if name != RAW
    }


def written_by(output_dir: Path) -> str | None:
    """The version that last wrote to an output; None where there is no output yet."""
    return _generator(_description(output_dir)).get("Version")


def _description(output_dir: Path) -> dict:
    """The description of the output, {} where it has none yet, or one that is damaged."""
    if not (output_dir / _DESCRIPTION).exists():
        return {}
    try:
        return read_description(output_dir)
    except BadData as error:
        logger.warning("%s; it is written anew", error)
        return {}


def _generator(description: dict) -> dict:
    """Who made a data set, {} where that is not told as BIDS wants it."""
    match description.get("GeneratedBy"):
        case [dict() as made_by, *_]:
            return made_by
    return {}


def _known(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if value}


def _check_owner(output: Path, cure: str) -> None:
    """Raises UsageProblem where the folder holds what this App did not make."""
    problem = ""
    if (output / _DESCRIPTION).exists():
        try:
            name = _generator(read_description(output)).get("Name")
        except BadData as error:
            problem = f"{error}, or {cure}"
        else:
            if name == NAME:
                return
            problem = f"{output}: holds a data set that {NAME} did not make; {cure}"
            if name is not None:
                raise UsageProblem(problem)
    elif foreign := _foreign(output):
        problem = (
            f"{output}: not empty, and holds {foreign}, which {NAME} did not write and could "
            f"overwrite; {cure}"
        )
    # Without a description that can be read, what only this App leaves in logs/ tells whose it is.
    if problem and not any(next((output / "logs").glob(name), None) for name in _MARKS):
        raise UsageProblem(problem)


def _foreign(output: Path) -> str | None:
    """The first name in a folder that is none of ours from before there is a description."""
    own = {"logs", "training", ".bidsignore"}
    names = (path.name for path in output.iterdir()) if output.is_dir() else ()
    return min((name for name in names if name not in own and not _PROBE.match(name)), default=None)


def _code_url() -> str | None:
    """The address that the package was published with."""
    try:
        urls = metadata(NAME).get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Source") or next(iter(named.values()), None)


def _container() -> dict | None:
    """What the environment tells about the container that this runs in."""
    if tag := os.environ.get("BIDS_SYNTHSEG_DOCKER_TAG"):
        return {"Type": "docker", "Tag": tag}
    for kind in ("apptainer", "singularity"):
        if name := os.environ.get(f"{kind.upper()}_NAME"):
            return {"Type": kind, "Tag": name}
    return None
