"""The brain of a session on the grids of its scans: labelled, measured and written.

Contrasts on one grid share one segmentation. What is measured does not need a reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_synthseg import nifti
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids.derivatives import SessionWriter, Space
from bids_synthseg.bids.quality import STRUCTURE_MEASURES
from bids_synthseg.bids.scans import Scan
from bids_synthseg.segmentation.align import Alignment
from bids_synthseg.segmentation.bias import correct_bias
from bids_synthseg.segmentation.field import MergedField, MovedField, PosteriorField
from bids_synthseg.segmentation.labelling import LabelledVolume, label_volume
from bids_synthseg.segmentation.predict import Segmented
from bids_synthseg.segmentation.quality import lowest, space_measures


@dataclass(frozen=True, eq=False)
class Part:
    """One scan of a session; `alignment` is to the session's first scan, `repeats` an earlier scan
    that has the same voxels."""

    scan: Scan
    image: nifti.Image
    result: Segmented
    alignment: Alignment
    repeats: Scan | None = None

    @property
    def place(self) -> tuple:
        """Equal for two parts of a session that see the same brain on the same grid."""
        alignment = self.alignment
        return self.image.volume.grid, alignment.transform.tobytes(), alignment.accepted

    def seen_from(self, viewer: "Part") -> np.ndarray:
        """(4, 4) transform from points of the viewer's world to points of this scan's."""
        if np.array_equal(self.alignment.transform, viewer.alignment.transform):
            return np.eye(4)
        return self.alignment.transform @ np.linalg.inv(viewer.alignment.transform)

    def merged_with(self, other: "Part") -> bool:
        """Whether both scans speak for the same brain."""
        return self is other or (self.alignment.accepted and other.alignment.accepted)


def merged_field(parts: Sequence[Part], viewer: Part) -> MergedField:
    """What the scans say together, in the world of `viewer`: one field for every contrast."""
    views: dict[str, list[PosteriorField]] = {}
    for part in parts:
        views.setdefault(part.scan.suffix, []).append(_view(part, viewer))
    # T1w before T2w, which wins ties.
    ordered = [views[contrast] for contrast in sorted(views)]
    return MergedField([one[0] if len(one) == 1 else MergedField(one) for one in ordered])


def _view(part: Part, viewer: Part) -> PosteriorField:
    transform = part.seen_from(viewer)
    field = part.result.answer
    return field if np.array_equal(transform, np.eye(4)) else MovedField(field, transform)


def write_spaces(
    writer: SessionWriter,
    alike: Sequence[Part],
    parts: Sequence[Part],
    save_posteriors: str,
    preproc: Sequence[str],
) -> dict[str, float]:
    """Label the brain on the one grid of the parts `alike` and write it for each of them, with the
    image itself for the contrasts in `preproc`; returns what was measured."""
    viewer = alike[0]
    together = [part for part in parts if part.merged_with(viewer)]
    # One scan under two names has one voice.
    together = [part for part in together if part.repeats is None] or [viewer]
    field = merged_field(together, viewer)
    labelled = label_volume(field, viewer.image.volume.grid, save_posteriors != "none")
    mirror_dice = lowest([part.result.mirror_dice for part in together], len(labelled.aseg_table))
    for part in alike:
        sources = tuple(source.scan.path for source in together)
        reference = None
        if part.scan.suffix in preproc:
            reference = _write_preproc(writer, part, labelled.mask)
        space = Space(part.scan.suffix, part.image, sources, reference)
        _write_space(writer, space, labelled, field.table, save_posteriors)
        columns = structure_columns(labelled, mirror_dice)
        writer.write_table(space, "qc", columns, STRUCTURE_MEASURES)
    return space_measures(labelled, [part.image.volume for part in alike], mirror_dice)


def _write_preproc(writer: SessionWriter, part: Part, mask: np.ndarray) -> Path:
    """The image of a part, on its own grid, without its bias field; returns the file."""
    how = (
        f"The scan that was segmented ({part.scan.path.name}), not averaged with others, not "
        "resampled; corrected for the bias field by N4 within the brain mask"
    )
    space = Space(part.scan.suffix, part.image, (part.scan.path,))
    return writer.write_preproc(space, correct_bias(part.image.volume, mask), how)


def _write_space(
    writer: SessionWriter,
    space: Space,
    labelled: LabelledVolume,
    table: LabelTable,
    save_posteriors: str,
) -> None:
    """All images of one brain on one grid, and its volumes."""
    writer.write_aseg(space, labelled.aseg)
    writer.write_native(space, labelled.native)
    writer.write_mask(space, labelled.mask)
    writer.write_volumes(space, labelled.aseg_table, labelled.hard_mm3, labelled.soft_mm3)
    writer.write_confidence(space, labelled.confidence)
    if labelled.disagreement is not None:
        writer.write_disagreement(space, labelled.disagreement)
    if labelled.posteriors is not None and save_posteriors == "tissue":
        writer.write_tissues(space, labelled.posteriors, table)
    if labelled.posteriors is not None and save_posteriors == "all":
        writer.write_posteriors(space, labelled.posteriors, table)


def structure_columns(labelled: LabelledVolume, mirror_dice: np.ndarray) -> Mapping[str, Sequence]:
    """Columns of STRUCTURE_MEASURES, a row per label but background."""
    rows, evidence = labelled.aseg_table.rows[1:], labelled.evidence
    return {
        "index": [row.index for row in rows],
        "name": [row.name for row in rows],
        "predicted_dice": list(evidence.predicted_dice[1:]),
        "entropy": list(evidence.entropy[1:]),
        "agreement_dice": list(evidence.agreement_dice[1:]),
        "mirror_dice": list(mirror_dice[1:]),
        "islands_mm3": list(labelled.islands_mm3[1:]),
    }
