"""What a run did, for the files that go with its results: methods text, references, configuration.

`logs/CITATION.md` is a paragraph to copy into a paper, `logs/CITATION.bib` what it cites, and
`logs/config.toml` every option of the run. Each holds for the last run into the folder; what a
single session was made with stands in its own record.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from bids_synthseg.storage import write_text
from bids_synthseg.toml import toml_text


@dataclass(frozen=True)
class Methods:
    """What the text tells of a run.

    contrasts: those that some session had; aligned: whether some session had scans to align;
    all_scans, mirror: as on the command line; preproc: whether some image was corrected for bias;
    own_model: whether the weights were the user's; weights_sha256: over all weight files.
    """

    version: str
    weights_sha256: str
    contrasts: tuple[str, ...]
    aligned: bool
    all_scans: bool
    mirror: bool
    preproc: bool
    own_model: bool


def citations(methods: Methods) -> tuple[str, ...]:
    """Keys in data/references.bib that the text cites, in the order it does."""
    return tuple(re.findall(r"\[@(\w+)\]", methods_text(methods)))


def methods_text(methods: Methods) -> str:
    """One paragraph of Markdown in pandoc's notation for citations."""
    contrasts = " and ".join(methods.contrasts)
    which = "Every scan" if methods.all_scans else "One scan of each contrast"
    weights = "weights of the user's own" if methods.own_model else "the weights shipped with it"
    mirrored = (
        "averaged with that of the mirrored image on a grid moved by one voxel, the mean sharpened "
        "for calibration [@guo2017]"
        if methods.mirror
        else "without averaging over the mirrored image"
    )
    sentences = [
        f"{contrasts} brain scans, organised in BIDS [@gorgolewski2016], were segmented with "
        f"bids_synthseg {methods.version}, with {weights} (combined SHA-256 of their files "
        f"{methods.weights_sha256}).",
        f"{which} of a session was used, without skull stripping or registration to a template. "
        "Its bias field within the brain was estimated by N4 [@tustison2010] and taken off before "
        "it was segmented.",
        "A convolutional network, trained on images synthesised from label maps in random contrast "
        "and resolution [@billot2023], with losses for label maps that tell only some structures "
        f"apart [@fidon2021], gave the posterior probability of every structure, {mirrored}.",
    ]
    if methods.aligned:
        sentences += [
            "The scans of a session were aligned rigidly to the first, by their segmentations and "
            "the mutual information of the scans within the brain (SimpleITK, [@lowekamp2013]).",
            "In each voxel the scan with the highest maximum posterior decided.",
        ]
    sentences += [
        "Connected components of a label below 15 mm³ were given to the touching label with the "
        "highest posterior; the brain mask is the filled union of all labels.",
        "Label maps lie on the grids of the scans.",
    ]
    if methods.preproc:
        sentences += [
            "Where a session had several scans of one contrast, or where it was asked for, the one "
            "that was segmented was corrected for the bias field within its brain mask and written "
            "as preprocessed image."
        ]
    return "\n".join(sentences)


def citation_markdown(methods: Methods) -> str:
    """Content of CITATION.md."""
    return (
        "# Methods\n\n"
        "Text to copy; please cite the works it stands on (CITATION.bib).\n\n"
        f"{methods_text(methods)}\n\n"
        "Research use only; bids_synthseg is not a medical device.\n"
    )


def citation_bibtex(methods: Methods) -> str:
    """Content of CITATION.bib."""
    text = files("bids_synthseg").joinpath("data/references.bib").read_text(encoding="utf-8")
    entries = {entry.partition("{")[2].partition(",")[0]: entry for entry in text.split("\n\n")}
    return "\n\n".join(entries[key].strip() for key in citations(methods)) + "\n"


def run_config(
    methods: Methods, tables: Mapping[str, Mapping[str, object]], command: Sequence[str]
) -> dict[str, dict]:
    """Content of config.toml: the run itself, then tables of options (None is left out, paths are
    text)."""
    return {
        "run": {
            "command": list(command),
            "version": methods.version,
            "weights_sha256": methods.weights_sha256,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        **{
            name: {key: _plain(value) for key, value in table.items()}
            for name, table in tables.items()
        },
    }


def write_run_files(
    output_dir: Path,
    methods: Methods,
    tables: Mapping[str, Mapping[str, object]],
    command: Sequence[str],
    part: int | None = None,
) -> None:
    """Write the three files into `logs/`; CannotCreate or StorageProblem where that fails.

    part: number of the share of a job, whose options have a file of their own.
    """
    logs = output_dir / "logs"
    config = "config.toml" if part is None else f"config_part-{part}.toml"
    write_text(logs / "CITATION.md", citation_markdown(methods))
    write_text(logs / "CITATION.bib", citation_bibtex(methods))
    write_text(logs / config, toml_text(run_config(methods, tables, command)))


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):  # as on the command line
        return [f"{name}={one}" for name, one in value.items()]
    return value
