"""How good a session's segmentation is, judged without a reference: measures, verdict, reasons.

The rule looks at one measure after another (LIMITS). Beyond its first limit a measure asks for a
look at the report ("check"), beyond the second the result is most likely of no use ("fail"). The
worst measure gives the verdict, and every one beyond a limit a reason. What the run warned of makes
a "check" as well, and so does an age that the network was not trained on. Notes (no unit in the
header, negative intensities, no age) are told and change nothing.

The limits were set by hand with an eye on validation scans that were spoiled on purpose; how well
they tell a Dice under 0.7 from a better one is shown by `benchmarks/quality.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VERDICTS = ("pass", "check", "fail")
"""From good to bad."""

MEASURES: dict[str, dict[str, str]] = {
    "predicted_dice": {
        "Description": "Dice to expect by the posteriors, median over structures: 2 * (sum of a "
        "label's probability over its voxels) / (its voxels + sum of its probability everywhere)"
    },
    "mirror_dice": {
        "Description": "Dice of the labels with and without mirroring of the scan, median over "
        "structures; the lowest of the scans; n/a with --no-tta"
    },
    "agreement_dice": {
        "Description": "Dice of the labels by T1w alone and by T2w alone, median over structures; "
        "n/a with one contrast, or where they were not merged"
    },
    "alignment_dice": {
        "Description": "Overlap of the posteriors of two aligned scans, mean over structures; the "
        "lowest of the scans; n/a with one scan"
    },
    "entropy": {
        "Description": "Mean entropy of the posteriors within the brain, as a share of that of a "
        "label drawn at random"
    },
    "edge_fraction": {
        "Description": "Largest cut through the brain by a side of the field of view, as a share "
        "of the brain's surface; empty slices at the border of an image do not belong to its field "
        "of view"
    },
    "empty_tissue_ml": {
        "Description": "Tissue that the network expects where the scan is empty around the brain "
        "(one value alone, as of what was cut away): it is left out of the labels; the highest of "
        "the scans",
        "Units": "mL",
    },
    "empty_slices": {
        "Description": "Number of slices that hold nothing between the first and the last of the "
        "brain"
    },
    "asymmetry": {
        "Description": "Difference of the volumes of left and right structures, as a share of "
        "their sum"
    },
    "unsure_structures": {
        "Description": "Number of structures whose own predicted Dice is below 0.5: they are in "
        "the table of the report"
    },
    "missing_structures": {"Description": "Number of structures without any voxel, fluid left out"},
    "islands_ml": {
        "Description": "Volume of stray pieces of tissue that were given to a neighbour or "
        "removed; fluid between folds comes in pieces",
        "Units": "mL",
    },
    "brain_ml": {"Description": "Volume of the brain mask", "Units": "mL"},
    "age_weeks_pma": {
        "Description": "Age since the last menstrual period, by the tables of the data set",
        "Units": "week",
    },
    "volume_z": {
        "Description": "How many standard deviations (of the logarithm) the volume of the brain "
        "lies above that of its age; n/a without age, and for ages that the curve does not cover"
    },
    "slice_mm": {"Description": "Largest side of a voxel of any scan", "Units": "mm"},
    "bias_range": {
        "Description": "How many times brighter the bias field made the same tissue in one place "
        "of the brain than in another (99th to 1st percentile), before it was taken off; the "
        "highest of the scans; n/a where it could not be estimated"
    },
}
"""What is measured of every session, in the order of tables: name -> Description and Units."""

_OF_STRUCTURE = "of this structure; n/a where it is absent"
STRUCTURE_MEASURES: dict[str, dict[str, str]] = {
    "index": {"Description": "Label in the segmentation"},
    "name": {"Description": "FreeSurfer name of the structure"},
    "predicted_dice": {"Description": f"Dice to expect by the posteriors, {_OF_STRUCTURE}"},
    "entropy": {
        "Description": "Mean entropy of the posteriors in the structure, as a share of that of a "
        "label drawn at random"
    },
    "agreement_dice": {
        "Description": "Dice of the labels by T1w alone and by T2w alone; n/a with one contrast"
    },
    "mirror_dice": {
        "Description": "Dice of the labels with and without mirroring of the scan, the lowest of "
        "the scans; n/a with --no-tta"
    },
    "islands_mm3": {
        "Description": "Volume of stray pieces that cleaning took from the structure",
        "Units": "mm^3",
    },
}
"""Columns of the table `desc-qc_volumes.tsv`."""


@dataclass(frozen=True)
class Limit:
    """From where on a measure is bad: `bad_is` "below" or "above" `check` and `fail` (None: never
    so bad); `reason` is the sentence for the user, with the value in it."""

    measure: str
    bad_is: str
    check: float
    fail: float | None
    reason: str

    def verdict(self, value: float) -> str:
        """One of VERDICTS; what lies at a limit is not beyond it."""
        sign = 1 if self.bad_is == "above" else -1
        if self.fail is not None and sign * value > sign * self.fail:
            return "fail"
        return "check" if sign * value > sign * self.check else "pass"


EMPTY_TISSUE_ML = 5.0
"""Whole brains that were cut out of their scans have 0.0 (newborns) and 0.07 to 2.3 ml (adults)."""

LIMITS = (
    Limit("predicted_dice", "below", 0.74, 0.66, "The network is unsure: it expects a Dice of "
          "{:.2f} only."),
    Limit("mirror_dice", "below", 0.80, 0.70, "The scan and its mirror image are segmented "
          "differently (Dice {:.2f})."),
    Limit("agreement_dice", "below", 0.70, 0.50, "T1w and T2w alone give different labels (Dice "
          "{:.2f})."),
    Limit("alignment_dice", "below", 0.70, None, "The scans of the session overlap badly (Dice "
          "{:.2f})."),
    Limit("entropy", "above", 0.25, 0.32, "The posteriors are uncertain throughout the brain "
          "(entropy {:.2f})."),
    # Brains that were cut out of their scans reach 0.023, those that lost a quarter have 0.05.
    Limit("edge_fraction", "above", 0.03, 0.12, "The border of the field of view cuts the brain "
          "({:.0%} of its surface)."),
    Limit("empty_tissue_ml", "above", EMPTY_TISSUE_ML, None, "Part of the brain is missing: where "
          "the image is empty, tissue of {:.0f} ml was expected."),
    Limit("empty_slices", "above", 0, None, "Slices within the brain are empty: {:.0f}."),
    Limit("asymmetry", "above", 0.08, 0.25, "Left and right differ by {:.0%} of their volume."),
    # A young fetus has no hippocampus or amygdala to see, and its tissues are good all the same.
    Limit("unsure_structures", "above", 0, None, "Structures not to rely on: {:.0f}, see the "
          "table."),
    Limit("missing_structures", "above", 0, 6, "Structures are missing: {:.0f}."),
    Limit("islands_ml", "above", 5.0, None, "Stray pieces of {:.1f} ml were removed."),
    # The smallest and the largest brain among the label maps of the training set.
    Limit("brain_ml", "below", 50.0, None, "A brain of {:.0f} ml is smaller than any in training."),
    Limit("brain_ml", "above", 1900.0, None, "A brain of {:.0f} ml is larger than any in "
          "training."),
    # Newborns born early reach -3.3 at term, and their segmentations are good.
    Limit("volume_z", "below", -4.0, -7.0, "The brain is small for its age ({:.1f} standard "
          "deviations)."),
    Limit("volume_z", "above", 4.0, 7.0, "The brain is large for its age ({:+.1f} standard "
          "deviations)."),
    # The thickest slices that were painted in training.
    Limit("slice_mm", "above", 3.0, None, "Slices of {:.1f} mm are thicker than any in training."),
    # The strongest field that was painted in training, and what the estimate adds to it.
    Limit("bias_range", "above", 6.0, None, "A bias field of {:.1f} to 1 is stronger than any in "
          "training."),
)  # fmt: skip
"""The rule."""

UNSEEN_WEEKS = ((0.0, 21.0), (75.0, 979.0))
"""Ages (since the last menstrual period) that training did not see: before 21 weeks, and from eight
months to 18 years."""


@dataclass(frozen=True)
class Quality:
    """What a session's result is worth.

    verdict: one of VERDICTS; reasons: a sentence each, none for "pass"; measures: names out of
    MEASURES, None where a measure has no answer. Raises ValueError for anything else.
    """

    verdict: str
    reasons: tuple[str, ...]
    measures: dict[str, float | None]

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, not {self.verdict!r}")
        if unknown := set(self.measures) - set(MEASURES):
            raise ValueError(f"unknown measures {sorted(unknown)}")

    def record(self) -> dict:
        """As plain JSON, for the record of the session."""
        return {
            "Verdict": self.verdict,
            "Reasons": list(self.reasons),
            "Measures": dict(self.measures),
        }

    @staticmethod
    def of(record: object) -> "Quality | None":
        """Back from `record()`; None for anything that is not one, as in older outputs.

        Measures that this version does not know are dropped.
        """
        if not isinstance(record, dict):
            return None
        verdict, reasons = record.get("Verdict"), record.get("Reasons")
        measures = record.get("Measures")
        if verdict not in VERDICTS or not isinstance(reasons, list):
            return None
        if not isinstance(measures, dict):
            return None
        known = {name: _number(measures.get(name)) for name in MEASURES if name in measures}
        return Quality(verdict, tuple(map(str, reasons)), known)


def _number(value: object) -> float | None:
    usable = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if usable else None


def judge(measures: Mapping[str, float | None], notes: Sequence[str] = ()) -> Quality:
    """The verdict by the rule of this module; `notes`: sentences that ask for a look themselves.

    A measure that is missing, None or no finite number is recorded as None and does not count.
    """
    known = {name: _number(measures.get(name)) for name in MEASURES}
    found = [("check", note) for note in notes]
    for limit in LIMITS:
        if (value := known[limit.measure]) is not None:
            found.append((limit.verdict(value), limit.reason.format(value)))
    weeks = known["age_weeks_pma"]
    if weeks is not None and any(start <= weeks < end for start, end in UNSEEN_WEEKS):
        found.append(("check", f"Training saw no brain of this age ({_age_text(weeks)})."))
    beyond = [(verdict, reason) for verdict, reason in found if verdict != "pass"]
    worst = max((verdict for verdict, _ in beyond), key=VERDICTS.index, default="pass")
    return Quality(worst, tuple(reason for _, reason in beyond), known)


def _age_text(weeks: float) -> str:
    """Weeks since the last menstrual period as people would say it."""
    if weeks < 40:
        return f"{weeks:.0f} weeks since the last menstrual period"
    months = (weeks - 40) * 7 / (365.25 / 12)
    return f"{months:.0f} months" if months < 24 else f"{months / 12:.0f} years"
