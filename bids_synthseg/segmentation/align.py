"""Rigid alignment of two scans of one session, driven by their posteriors.

The network has already made the contrasts alike: each voxel's expected tissue value is an image
that means the same in T1w and T2w, so the plain mean square difference aligns them (SimpleITK).
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from bids_synthseg.segmentation.field import GridField

# Far apart where neighbours should be told apart; BIDS tissue number -> value.
TISSUE_VALUE = {0: 0.0, 2: 1.0, 3: 0.25, 8: 0.55, 9: 0.8, 10: 0.9, 11: 0.7}

MIN_DICE = 0.6
"""Below this overlap of structures two scans are not merged."""

WORTH_MOVING = 0.01
"""An alignment must raise the overlap by this much to replace the headers' own."""


@dataclass(frozen=True)
class Alignment:
    """`transform` (4, 4): point in the fixed scan's world -> point in the moving scan's, mm.

    `dice`: mean soft overlap of structures after, `dice_before`: by the headers alone.
    """

    transform: np.ndarray
    dice: float
    dice_before: float

    @property
    def accepted(self) -> bool:
        """True where the scans show the same brain in the same place."""
        return self.dice >= MIN_DICE


def align(fixed: GridField, moving: GridField) -> Alignment:
    """Rigid alignment of `moving` to `fixed`; the identity where moving gains nothing."""
    identity = np.eye(4)
    before = overlap(fixed, moving, identity)
    found = _register(fixed, moving)
    after = overlap(fixed, moving, found)
    if after < before + WORTH_MOVING:
        return Alignment(identity, before, before)
    return Alignment(found, after, before)


def overlap(fixed: GridField, moving: GridField, transform: np.ndarray) -> float:
    """Mean soft Dice over structures, on every second voxel of the fixed working grid."""
    step = 2
    indices = np.stack(np.meshgrid(*(np.arange(0, n, step) for n in fixed.grid.shape)), axis=-1)
    points = fixed.grid.to_world(indices.reshape(-1, 3))
    there = moving.at(points @ transform[:3, :3].T + transform[:3, 3])
    here = fixed.at(points)
    twice_shared = 2 * np.minimum(here, there)[1:].sum(axis=1)
    total = here[1:].sum(axis=1) + there[1:].sum(axis=1)
    # Structures of a few voxels say little about a rigid motion.
    large = total > 0.005 * total.sum()
    return float((twice_shared[large] / total[large]).mean()) if large.any() else 0.0


def _register(fixed: GridField, moving: GridField) -> np.ndarray:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=100, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0])
    first, second = _tissue_image(fixed), _tissue_image(moving)
    start = sitk.VersorRigid3DTransform()
    start.SetCenter(tuple(float(c) for c in fixed.grid.centre_mm))
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = method.Execute(first, second)
    except RuntimeError:
        # The fields of view do not overlap: the headers' own alignment is all there is.
        return np.eye(4)
    rigid = sitk.VersorRigid3DTransform(sitk.CompositeTransform(found).GetNthTransform(0))
    linear = np.array(rigid.GetMatrix()).reshape(3, 3)
    centre = np.array(rigid.GetCenter())
    result = np.eye(4)
    result[:3, :3] = linear
    result[:3, 3] = centre + np.array(rigid.GetTranslation()) - linear @ centre
    return result


def _tissue_image(field: GridField) -> sitk.Image:
    """Expected tissue value on the working grid, in RAS millimetres as world."""
    values = np.array([TISSUE_VALUE.get(row.mapping, 0.5) for row in field.table.rows])
    data = np.tensordot(values.astype(np.float32), field.data.float().cpu().numpy(), axes=1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(tuple(float(v) for v in field.grid.voxel_size_mm))
    image.SetOrigin(tuple(float(v) for v in field.grid.affine[:3, 3]))
    axes = field.grid.affine[:3, :3] / field.grid.voxel_size_mm
    image.SetDirection(tuple(float(v) for v in axes.ravel()))
    return image


def itk_text(transform: np.ndarray) -> str:
    """A rigid (4, 4) RAS-mm point transform as an ITK text file (which counts in LPS)."""
    to_lps = np.diag([-1.0, -1.0, 1.0])
    linear = to_lps @ transform[:3, :3] @ to_lps
    shift = to_lps @ transform[:3, 3]
    numbers = " ".join(repr(float(v)) for v in (*linear.ravel(), *shift))
    return (
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
