"""A small BIDS data set to try the App on, made without a network connection.

`sub-adult` is real image data: the MNI152 T1w average that ships inside nilearn, which is already
brain-extracted. `sub-infant` is the phantom of a newborn, T1w and T2w, whose labels are known and
lie under derivatives/reference.
"""

from pathlib import Path

import numpy as np

from bids_synthseg import __version__
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.bids.tables import format_table, label_table_text
from bids_synthseg.errors import AppError, CannotCreate, UsageProblem
from bids_synthseg.nifti import Image, new_image, write_image
from bids_synthseg.phantom import CONTRASTS, SHAPE, phantom_image, phantom_labels
from bids_synthseg.reading import read_object
from bids_synthseg.storage import write_json, write_text

NAME = "bids_synthseg demo"
BIDS_VERSION = "1.10.0"
_README = """\
# Demo data of bids_synthseg

* `sub-adult`: the MNI152 2009a nonlinear symmetric T1w average (Fonov et al. 2009,
  doi:10.1016/S1053-8119(09)70884-5) as it ships inside nilearn: 1 mm, brain-extracted.
* `sub-infant`: nobody's brain. A phantom of a newborn head made by bids_synthseg (seed {seed}),
  with T1w and T2w images painted from its labels; the labels are in `derivatives/reference`.

Written by `bids_synthseg_tools demo`, version {version}.
"""


def write_demo(
    folder: Path, *, seed: int = 0, shape: tuple[int, int, int] = SHAPE, voxel_mm: float = 1.0
) -> Path:
    """Write the data set; returns its folder. An earlier demo there is replaced file by file.

    shape, voxel_mm: grid of the phantom. Raises CannotCreate where the folder holds something
    else, UsageProblem where nilearn is not installed.
    """
    _check_folder(folder)
    adult = mni152()
    write_json(folder / "dataset_description.json", _description("raw"))
    write_text(folder / "README.md", _README.format(seed=seed, version=__version__))
    participants = {
        "participant_id": ["sub-adult", "sub-infant"],
        "species": ["homo sapiens", "homo sapiens"],
        "origin": ["MNI152 average of 152 adults", "phantom of a newborn"],
    }
    write_text(folder / "participants.tsv", format_table(participants))
    write_json(folder / "participants.json", {"origin": {"Description": "What the images show"}})
    _write(folder / "sub-adult" / "anat" / "sub-adult_T1w.nii.gz", adult)

    rng = np.random.default_rng(seed)
    labels = phantom_labels(shape, voxel_mm, rng)
    for contrast in CONTRASTS:
        image = new_image(phantom_image(labels, contrast, rng), Path(NAME))
        _write(folder / "sub-infant" / "anat" / f"sub-infant_{contrast}.nii.gz", image)
    reference = folder / "derivatives" / "reference"
    write_json(reference / "dataset_description.json", _description("derivative"))
    write_text(reference / "dseg.tsv", label_table_text(LabelTable.default()))
    path = reference / "sub-infant" / "anat" / "sub-infant_dseg.nii.gz"
    _write(path, new_image(labels, Path(NAME)))
    return folder


def mni152() -> Image:
    """The adult T1w average that nilearn ships, 1 mm, grey values 0 to 1000."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise UsageProblem(
            "the demo needs nilearn; install it with: pip install 'bids_synthseg[demo]'"
        ) from error
    template = load_mni152_template(resolution=1)
    data = np.asarray(template.dataobj, dtype=np.float32)
    data *= 1000.0 / data.max()
    return new_image(Volume(data, Grid(data.shape, template.affine)), Path(NAME))


def _write(path: Path, image: Image) -> None:
    write_image(path, np.rint(image.volume.data), image, np.int16, NAME)


def _description(kind: str) -> dict:
    description: dict[str, object] = {
        "Name": NAME if kind == "raw" else f"{NAME}: reference labels",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": kind,
    }
    if kind == "derivative":
        description["GeneratedBy"] = [{"Name": "bids_synthseg", "Version": __version__}]
    return description


def _check_folder(folder: Path) -> None:
    """Raises CannotCreate for a folder that holds anything but an earlier demo."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = read_object(folder / "dataset_description.json").get("Name") == NAME
    except AppError:
        ours = False
    if not ours:
        raise CannotCreate(f"{folder}: is not empty and holds no demo; choose a new folder")
