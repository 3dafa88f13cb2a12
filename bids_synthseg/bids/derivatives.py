"""Files of one session in the output: their names, and how each is written with its sidecar.

They are written aside and appear together when the session is finished (`staging`). Names are
those of BIDS derivatives that NiBabies reads: exactly one `space-<contrast>_desc-aseg_dseg` and
`desc-brain_mask` per session and contrast, and no other `dseg` without a `desc`.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.provenance import SessionRecord, bids_uri
from bids_synthseg.bids.scans import Scan, ScanGroup
from bids_synthseg.bids.sessions import session_label
from bids_synthseg.bids.staging import Staging
from bids_synthseg.bids.tables import (
    VOLUME_COLUMNS,
    tissue_channels,
    volume_columns,
    write_table,
)
from bids_synthseg.nifti import Image, write_image
from bids_synthseg.storage import TEMPORARY_BYTES, remove_leftovers, write_json, write_text

# The order in which BIDS wants entities after subject and session.
_SCAN_ENTITIES = ("acq", "ce", "rec", "run", "echo", "part")
_ENTITY_ORDER = (*_SCAN_ENTITIES, "from", "to", "mode", "space", "res", "label", "desc")
_UINT8_STEP = 1 / 255


@dataclass(frozen=True)
class SessionPaths:
    """Where the outputs of one session go; `subject` and `session` without "sub-", "ses-"."""

    output_dir: Path
    subject: str
    session: str | None = None

    @property
    def label(self) -> str:
        """The start of every name: "sub-01_ses-1mo"."""
        return session_label((self.subject, self.session))

    @property
    def anat(self) -> Path:
        """The folder of images and tables."""
        folder = self.output_dir / f"sub-{self.subject}"
        return (folder / f"ses-{self.session}" if self.session else folder) / "anat"

    @property
    def record(self) -> Path:
        """What the session was made from; it is there where the session is finished."""
        return self.output_dir / "logs" / f"{self.label}.json"

    @property
    def log(self) -> Path:
        """The log of the session."""
        return self.output_dir / "logs" / f"{self.label}.log"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.output_dir / f"{self.label}.html"

    @property
    def figures(self) -> Path:
        """The folder of the subject's pictures."""
        return self.output_dir / f"sub-{self.subject}" / "figures"

    def file(self, suffix: str, extension: str = ".nii.gz", **entities: str) -> Path:
        """A file in `anat`, entities in the order of BIDS; KeyError for one that is not known."""
        if unknown := set(entities) - set(_ENTITY_ORDER):
            raise KeyError(f"unknown entities {sorted(unknown)}")
        pairs = [f"{key}-{entities[key]}" for key in _ENTITY_ORDER if key in entities]
        return self.anat / ("_".join([self.label, *pairs, suffix]) + extension)


def name_problem(group: ScanGroup, output_dir: Path, per_image: bool = False) -> str | None:
    """Why the file system cannot take the names of this session's outputs, with the one to blame.

    per_image: whether the segmentation of every single scan is written as well.
    """
    there = next(folder for folder in (output_dir, *output_dir.parents) if folder.exists())
    longest = os.pathconf(there, "PC_NAME_MAX") - TEMPORARY_BYTES
    paths = SessionPaths(output_dir, *group.key)
    names = {group.label: paths.file("mask", space="T1w", desc="disagreement").name}
    for scan in group.scans if per_image else ():
        own = {key: scan.entities[key] for key in _SCAN_ENTITIES if key in scan.entities}
        desc = f"native{scan.suffix}"
        names[scan.path.name] = paths.file("dseg", **own, space="orig", desc=desc).name
    for culprit, name in names.items():
        if (beyond := len(os.fsencode(name)) - longest) > 0:
            return (
                f"{culprit}: its labels make names of outputs {beyond} characters longer than the "
                "file system takes; shorten them"
            )
    return None


def session_record(paths: SessionPaths) -> SessionRecord:
    """The record of a session."""
    return SessionRecord(paths.record, paths.output_dir)


def is_finished(paths: SessionPaths, signature: str) -> bool:
    """True where a run with this signature ended and all its outputs are as it left them."""
    return session_record(paths).is_finished(signature)


def settle(paths: SessionPaths) -> None:
    """Bring a session whose run was killed into one state: the new one where that was complete,
    else the one before; remove what is left over. No other run may be at it."""
    Staging(session_record(paths), paths.report).settle()
    own = {paths.report.name, paths.record.name}
    for folder in (paths.output_dir, paths.record.parent):
        remove_leftovers(folder, own.__contains__)
    remove_leftovers(paths.anat, lambda name: name.startswith(f"{paths.label}_"))


@dataclass(frozen=True)
class Space:
    """The grid that outputs lie on, and what they were computed from.

    contrast: "T1w" or "T2w", the value of `space-`; like: the image of that grid; sources: the
    files used; reference: the file that shows the space (default: that of `like`).
    """

    contrast: str
    like: Image
    sources: tuple[Path, ...]
    reference: Path | None = None


class SessionWriter:
    """Writes the derivatives of one session, which take the place of earlier ones when all are
    there.

    `start` first, `finish` last, `discard` after that or after an error; every `write_` method
    returns the path where its image or table is written, which is not yet its place.
    config_sha256, weights_sha256: what the session was computed with, for the sidecars; links: name
    in BIDS URIs of other data sets that sources lie in.
    """

    def __init__(
        self,
        paths: SessionPaths,
        bids_dir: Path,
        *,
        config_sha256: str,
        weights_sha256: str,
        links: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.paths = paths
        self.bids_dir = bids_dir
        self.links = links
        self.record = session_record(paths)
        self._staging = Staging(self.record, paths.report)
        self._staged = replace(paths, output_dir=self._staging.folder)
        self._kept: dict[str, str] = {}
        self._hashes = {"ConfigSHA256": config_sha256, "WeightsSHA256": weights_sha256}

    def start(self, keep: Collection[Path] = ()) -> None:
        """Bring the session into one state; of its earlier outputs, `keep` are to stay."""
        settle(self.paths)
        earlier = self.record.read()
        places = self.record.outputs(earlier)
        self._kept = {n: earlier["Outputs"][n] for n, path in places.items() if path in keep}

    def finish(self, signature: str, details: dict | None = None) -> None:
        """Put all that was written in place; `details` (plain JSON) go into the record."""
        self._staging.commit({"Signature": signature, **(details or {})}, self._kept)

    def discard(self) -> None:
        """Remove what was written and never finished."""
        self._staging.discard()

    def write_aseg(self, space: Space, labels: np.ndarray, *, manual: bool = False) -> Path:
        """(X, Y, Z) FreeSurfer ids; ValueError for one above 255, on which NiBabies fails."""
        about = {
            "Description": "Segmentation with FreeSurfer's label numbers (desc-aseg_dseg.tsv)",
            "Manual": manual,
        }
        path = self._staged.file("dseg", space=space.contrast, desc="aseg")
        return self._write_image(path, labels, space, np.uint8, about, "label")

    def write_native(self, space: Space, labels: np.ndarray) -> Path:
        """(X, Y, Z) ids of the model's own label table."""
        about = {
            "Description": "Segmentation with the labels of the model (desc-native_dseg.tsv)",
            "Manual": False,
        }
        path = self._staged.file("dseg", space=space.contrast, desc="native")
        return self._write_image(path, labels, space, np.int16, about, "label")

    def write_per_image(
        self, scan: Scan, like: Image, aseg: np.ndarray, native: np.ndarray
    ) -> list[Path]:
        """(X, Y, Z) FreeSurfer and model ids of one scan alone, on its own grid.

        The contrast is in `desc`, as T1w and T2w of one run would otherwise share a name.
        """
        about = {"Description": "Segmentation of this scan alone", "Manual": False}
        own = {key: scan.entities[key] for key in _SCAN_ENTITIES if key in scan.entities}
        space = Space(scan.suffix, like, (scan.path,))
        written = []
        for kind, labels, dtype in (("aseg", aseg, np.uint8), ("native", native, np.int16)):
            path = self._staged.file("dseg", **own, space="orig", desc=f"{kind}{scan.suffix}")
            written.append(self._write_image(path, labels, space, dtype, about, "label"))
        return written

    def write_mask(self, space: Space, mask: np.ndarray) -> Path:
        """(X, Y, Z) bool brain mask."""
        about = {"Type": "Brain", "Description": "Brain mask: the labels of the brain, filled"}
        path = self._staged.file("mask", space=space.contrast, desc="brain")
        return self._write_image(path, mask.astype(bool), space, np.uint8, about)

    def write_confidence(self, space: Space, confidence: np.ndarray) -> Path:
        """(X, Y, Z) probability of the label that was chosen, in steps of 1/255."""
        about = {"Description": "Probability of the label that was chosen, before cleaning"}
        path = self._staged.file("probseg", space=space.contrast, desc="confidence")
        return self._write_probabilities(path, confidence, space, about, compact=True)

    def write_disagreement(self, space: Space, disagreement: np.ndarray) -> Path:
        """(X, Y, Z) bool mask of the voxels where single contrasts choose different labels."""
        about = {
            "Type": "ROI",  # of the four types that BIDS knows
            "Description": "Voxels where T1w alone and T2w alone choose different labels",
        }
        path = self._staged.file("mask", space=space.contrast, desc="disagreement")
        return self._write_image(path, disagreement.astype(bool), space, np.uint8, about)

    def write_volumes(
        self,
        space: Space,
        table: LabelTable,
        hard_mm3: Sequence[float],
        soft_mm3: Sequence[float],
    ) -> Path:
        """Volumes (C,) of the table's labels; background is left out."""
        columns = volume_columns(table, hard_mm3, soft_mm3)
        return self.write_table(space, "aseg", columns, VOLUME_COLUMNS)

    def write_table(
        self,
        space: Space,
        desc: str,
        columns: Mapping[str, Sequence],
        about: Mapping[str, dict],
    ) -> Path:
        """Any table per structure; `about` has Description (and Units) of every column."""
        path = self._staged.file("volumes", ".tsv", space=space.contrast, desc=desc)
        write_table(path, columns, about)
        return path

    def write_posteriors(
        self, space: Space, data: np.ndarray, table: LabelTable, *, compact: bool = True
    ) -> Path:
        """(C, X, Y, Z) posteriors of all labels; compact: uint8 in steps of 1/255, else float32."""
        if len(table) != len(data):
            raise ValueError(f"{len(data)} channels, but {len(table)} labels")
        about = {
            "Description": "Posterior probability of every label of the model, one per volume",
            "LabelMap": [row.abbreviation for row in table.rows],
        }
        path = self._staged.file("probseg", space=space.contrast, desc="posteriors")
        return self._write_probabilities(path, np.moveaxis(data, 0, -1), space, about, compact)

    def write_tissues(
        self, space: Space, data: np.ndarray, table: LabelTable, *, compact: bool = False
    ) -> list[Path]:
        """GM, WM and CSF from (C, X, Y, Z) posteriors: always all three, as NiBabies takes only
        the complete set."""
        paths = []
        for tissue, channels in tissue_channels(table).items():
            about = {"Description": f"Probability of {tissue}: the sum over its labels"}
            total = np.zeros(data.shape[1:], np.float32)
            for channel in channels:
                total += data[channel]
            # Sums of rounded probabilities may exceed 1 in the last bit.
            np.clip(total, 0, 1, out=total)
            path = self._staged.file("probseg", space=space.contrast, label=tissue)
            paths.append(self._write_probabilities(path, total, space, about, compact))
        return paths

    def write_preproc(self, space: Space, data: np.ndarray, how: str) -> Path:
        """The image that was segmented, where it is none of the raw ones or one of several.

        how: in words, how the sources were merged and whether the bias field was corrected.
        """
        about = {"Description": how, "SkullStripped": False}
        path = self._staged.file(space.contrast, desc="preproc")
        return self._write_image(path, data, space, np.float32, about)

    def write_transform(self, source: str, target: str, text: str) -> Path:
        """An ITK transform file that takes images of one contrast to the space of the other."""
        path = self._staged.file("xfm", ".txt", **{"from": source, "to": target, "mode": "image"})
        write_text(path, text)
        return path

    def _write_probabilities(
        self, path: Path, data: np.ndarray, space: Space, about: dict, compact: bool
    ) -> Path:
        dtype, slope = (np.uint8, _UINT8_STEP) if compact else (np.float32, 1.0)
        return self._write_image(path, data, space, dtype, about, "estimate", slope)

    def _write_image(
        self,
        path: Path,
        data: np.ndarray,
        space: Space,
        dtype: type,
        about: dict,
        intent: str = "none",
        slope: float = 1.0,
    ) -> Path:
        sidecar = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        about = {
            **about,
            "Sources": [self.uri(source) for source in space.sources],
            "SpatialReference": self.uri(space.reference or space.like.path),
            **self._hashes,
        }
        write_image(path, data, space.like, dtype, "bids_synthseg", intent, slope)
        write_json(sidecar, about)
        return path

    def uri(self, path: Path) -> str:
        """How a file of the input, the output or a linked data set is named in JSON; one that is
        not in its place yet, by its place."""
        if path.is_relative_to(self._staged.output_dir):
            path = self.paths.output_dir / path.relative_to(self._staged.output_dir)
        return bids_uri(path, self.bids_dir, self.paths.output_dir, self.links)
