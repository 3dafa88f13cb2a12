"""Rigid alignment of two scans of one session: posteriors find the place, intensities refine it.

The network has already made the contrasts alike: each voxel's expected tissue value is an image
that means the same in T1w and T2w, so the plain mean square difference brings scans together from
far apart, the more so as structures have names: their centres tell how a brain lies. How exactly is
limited by the network, whose errors differ between contrasts; mutual information of the scans
themselves, inside the brain, has no such bias but needs a start nearby.

A network takes left for left in the mirror image of a brain as well, so a scan whose header
exchanges the sides has plausible labels; but folds of cortex lie in other places, and the mirrored
posteriors fit the other scan better.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from bids_synthseg.anatomy.volume import Grid, Volume
from bids_synthseg.segmentation.field import GridField
from bids_synthseg.segmentation.predict import Segmented

# Far apart where neighbours should be told apart; BIDS tissue number -> value.
TISSUE_VALUE = {0: 0.0, 2: 1.0, 3: 0.25, 8: 0.55, 9: 0.8, 10: 0.9, 11: 0.7}

MIN_DICE = 0.6
"""Below this overlap of structures two scans are not merged."""

WORTH_MOVING = 0.01
"""An alignment must raise the overlap by this much to replace the headers' own."""

WORTH_MOVING_VOXELS = 1.0
"""Nor is the brain moved by less than so many working voxels: neither network nor registration is
more exact than the headers of scans whose subject kept still."""

MIRRORED_BY = 0.02
"""Two scans are mirror images where mirroring one raises their overlap by this much."""

COST_OF_A_TURN = 0.05
"""Of turns that fit about as well the smaller is taken: half a turn must raise the overlap by this
much."""

_SAMPLED = 0.5
_SAMPLING_SEED = 1
_HISTOGRAM_BINS = 32


@dataclass(frozen=True, eq=False)
class Alignment:
    """`transform` (4, 4): point in the fixed scan's world -> point in the moving scan's, mm.

    `dice`: mean soft overlap of structures after, `dice_before`: by the headers alone;
    `moved_mm`: mean distance that the points of the fixed brain are moved, 0 for the identity;
    `mirrored_dice`: after, with one scan mirrored.
    """

    transform: np.ndarray
    dice: float
    dice_before: float
    moved_mm: float = 0.0
    mirrored_dice: float = 0.0

    @property
    def mirrored(self) -> bool:
        """True where one scan shows the mirror image of the other's brain."""
        return self.mirrored_dice >= max(MIN_DICE, self.dice + MIRRORED_BY)

    @property
    def accepted(self) -> bool:
        """True where the scans show the same brain in the same place."""
        return self.dice >= MIN_DICE and not self.mirrored

    @property
    def summary(self) -> str:
        """What was done, for the log."""
        return (
            f"moved by {self.moved_mm:.1f} mm; overlap {self.dice:.2f}, "
            f"by the headers {self.dice_before:.2f}"
        )

    @staticmethod
    def of_the_first() -> "Alignment":
        """That of the fixed scan to itself."""
        return Alignment(np.eye(4), 1.0, 1.0)


def align(fixed: Segmented, moving: Segmented) -> Alignment:
    """Rigid alignment of `moving` to `fixed`; the identity unless moving is a clear gain."""
    identity = np.eye(4)
    before = overlap(fixed.field, moving.field, identity)
    rough, rough_dice = _rough(fixed.field, moving.field, before)
    found = _by_intensities(fixed, moving, rough if rough_dice > before else identity)
    after = overlap(fixed.field, moving.field, found)
    twin = mirrored(moving.field)
    # Scans that lie on each other by their headers need not be turned about to be compared.
    twin_start = _by_centres(fixed.field, twin, turned=before < MIN_DICE)
    twin_place = _by_posteriors(fixed.field, twin, twin_start, shrink=(4,))
    mirrored_dice = overlap(fixed.field, twin, twin_place)
    # What posteriors say of the mirror image is to be compared with what they say of the scan.
    if mirrored_dice < max(before, rough_dice) + MIRRORED_BY:
        mirrored_dice = 0.0
    moved_mm = _distance_mm(fixed.field, found)
    worth_mm = WORTH_MOVING_VOXELS * float(fixed.field.grid.voxel_size_mm.max())
    if after < before + WORTH_MOVING or moved_mm < worth_mm:
        return Alignment(identity, before, before, mirrored_dice=mirrored_dice)
    return Alignment(found, after, before, moved_mm, mirrored_dice)


def _rough(fixed: GridField, moving: GridField, before: float) -> tuple[np.ndarray, float]:
    """Where posteriors lay one brain on the other, and the overlap there: from the headers on, of
    which `before` is the overlap, and where that is no good from the centres of structures too."""
    starts = [np.eye(4)] if before > 0 else []
    if before < MIN_DICE:
        starts.append(_by_centres(fixed, moving))
    places = [_by_posteriors(fixed, moving, start) for start in starts]
    dices = [overlap(fixed, moving, place) for place in places]
    best = int(np.argmax(dices))
    return places[best], dices[best]


def mirrored(field: GridField) -> GridField:
    """A field as its mirror image would have it: the other side of its grid, by the other name."""
    twins = torch.from_numpy(field.table.mirror_channels).to(field.data.device)
    return GridField(field.data.flip(1)[twins], field.grid, field.table)


def overlap(fixed: GridField, moving: GridField, transform: np.ndarray, every: int = 2) -> float:
    """Mean soft Dice over structures, on every so many voxels of the fixed working grid."""
    indices = np.stack(np.meshgrid(*(np.arange(0, n, every) for n in fixed.grid.shape)), axis=-1)
    points = fixed.grid.to_world(indices.reshape(-1, 3))
    there = moving.at(_mapped(points, transform))[1:]
    here = fixed.at(points)[1:]
    total = here.sum(axis=1) + there.sum(axis=1)
    # Structures of a few voxels say little about a rigid motion.
    large = total > 0.005 * total.sum()
    shared = np.minimum(here, there).sum(axis=1)
    return float((2 * shared[large] / total[large]).mean()) if large.any() else 0.0


def itk_text(transform: np.ndarray) -> str:
    """A rigid (4, 4) RAS-mm point transform as an ITK text file (which counts in LPS).

    ITK and ANTs use such a file to resample an image onto a target: it must map points of the
    target to points of the image.
    """
    to_lps = np.diag([-1.0, -1.0, 1.0])
    linear = to_lps @ transform[:3, :3] @ to_lps
    shift = to_lps @ transform[:3, 3]
    numbers = " ".join(repr(float(v)) for v in (*linear.ravel(), *shift))
    return (
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def transform_of(itk: str) -> np.ndarray:
    """The (4, 4) transform of RAS mm that `itk_text` wrote; ValueError for another text."""
    lines = dict(line.partition(":")[::2] for line in itk.splitlines())
    numbers = np.array(lines.get("Parameters", "").split(), float)
    linear, shift = numbers[:9].reshape(3, 3), numbers[9:].reshape(3)
    to_ras = np.diag([-1.0, -1.0, 1.0])
    transform = np.eye(4)
    transform[:3, :3] = to_ras @ linear @ to_ras
    transform[:3, 3] = to_ras @ shift
    return transform


def _mapped(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def _distance_mm(fixed: GridField, transform: np.ndarray) -> float:
    """Mean distance between the points of the fixed brain and where they are taken."""
    points = fixed.grid.to_world(np.argwhere(fixed.brain))
    if not len(points):
        return 0.0
    return float(np.linalg.norm(_mapped(points, transform) - points, axis=1).mean())


def _by_posteriors(
    fixed: GridField, moving: GridField, start: np.ndarray, shrink: tuple[int, ...] = (4, 2)
) -> np.ndarray:
    """The rigid transform (4, 4) that is best by posteriors, from `start` on."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    first, second = (Volume(_tissue_values(field), field.grid) for field in (fixed, moving))
    return _optimised(method, first, second, start, shrink)


def _by_centres(fixed: GridField, moving: GridField, turned: bool = True) -> np.ndarray:
    """The rigid transform (4, 4) that lays centres of structures on each other, or, if `turned`,
    centre on centre after a quarter turn or several: the one with the best overlap."""
    (here, here_mass), (there, there_mass) = (_centres(field) for field in (fixed, moving))
    weight = np.minimum(here_mass, there_mass)
    if not weight.any():
        return np.eye(4)
    weight = weight / weight.sum()
    middle, other_middle = weight @ here, weight @ there
    # Kabsch 1976: the rotation with the least squares of distances.
    left, _, right = np.linalg.svd((there - other_middle).T @ (weight[:, None] * (here - middle)))
    handed = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turns = [left @ handed @ right, *(_quarter_turns() if turned else ())]

    def placed(turn: np.ndarray) -> np.ndarray:
        transform = np.eye(4)
        transform[:3, :3] = turn
        transform[:3, 3] = other_middle - turn @ middle
        return transform

    def fit(turn: np.ndarray) -> float:
        angle = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
        return overlap(fixed, moving, placed(turn), every=4) - COST_OF_A_TURN * angle / np.pi

    return placed(turns[0] if len(turns) == 1 else max(turns, key=fit))


def _centres(field: GridField) -> tuple[np.ndarray, np.ndarray]:
    """(C - 1, 3) centres in mm of the posteriors of all labels, and (C - 1,) their volumes in mm3;
    of labels too small to tell a place both are 0."""
    data = field.data[1:].float().cpu().numpy()
    mass = data.sum(axis=(1, 2, 3), dtype=np.float64)
    sums = []
    for axis, n in enumerate(field.grid.shape):
        others = tuple(other for other in (1, 2, 3) if other != axis + 1)
        sums.append(data.sum(axis=others, dtype=np.float64) @ np.arange(n))
    large = mass > 0.005 * mass.sum()
    centres = np.zeros((len(data), 3))
    centres[large] = field.grid.to_world((np.stack(sums, axis=1)[large].T / mass[large]).T)
    return centres, np.where(large, mass * field.grid.voxel_volume_mm3, 0)


def _quarter_turns() -> list[np.ndarray]:
    """The 24 rotations (3, 3) that take axes to axes."""
    signed = (
        np.eye(3)[list(axes)] * signs
        for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3))
    )
    return [turn for turn in signed if np.linalg.det(turn) > 0]


def _by_intensities(fixed: Segmented, moving: Segmented, start: np.ndarray) -> np.ndarray:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_HISTOGRAM_BINS)
    # The rim of the brain is its strongest edge; scalp and neck do not move as the brain does.
    near = ndimage.binary_dilation(fixed.field.brain, iterations=2)
    method.SetMetricFixedMask(_sitk_image(Volume(near.astype(np.uint8), fixed.field.grid)))
    return _optimised(method, fixed.image, moving.image, start, (2, 1))


def _optimised(
    method: sitk.ImageRegistrationMethod,
    fixed: Volume,
    moving: Volume,
    start: np.ndarray,
    shrink: tuple[int, ...],
) -> np.ndarray:
    """The rigid transform (4, 4) that is best by the metric of `method`, from `start` on."""
    method.SetMetricSamplingStrategy(method.REGULAR)
    # ITK would seed the places it samples by the clock; the same scans must give the same result.
    method.SetMetricSamplingPercentage(_SAMPLED, _SAMPLING_SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=100, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([factor / 2 for factor in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    centre = fixed.grid.centre_mm
    rigid = sitk.VersorRigid3DTransform()
    rigid.SetCenter(centre.tolist())
    # Versors cannot go on from half a turn: the moving image is put where `start` says instead.
    placed = Grid(moving.grid.shape, np.linalg.inv(start) @ moving.grid.affine)
    # The optimiser works on `rigid` itself.
    method.SetInitialTransform(rigid, inPlace=True)
    try:
        method.Execute(_sitk_image(fixed), _sitk_image(Volume(moving.data, placed)))
    except RuntimeError:
        # The fields of view do not overlap: there is nothing better than the start.
        return start
    result = np.eye(4)
    result[:3, :3] = np.reshape(rigid.GetMatrix(), (3, 3))
    result[:3, 3] = centre + rigid.GetTranslation() - result[:3, :3] @ centre
    return start @ result


def _tissue_values(field: GridField) -> np.ndarray:
    """(X, Y, Z) expected tissue value."""
    values = np.array([TISSUE_VALUE.get(row.mapping, 0.5) for row in field.table.rows])
    return np.tensordot(values.astype(np.float32), field.data.float().cpu().numpy(), axes=1)


def _sitk_image(volume: Volume) -> sitk.Image:
    """An image (X, Y, Z) whose world is RAS millimetres, as both are."""
    grid = volume.grid
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    image.SetSpacing(grid.voxel_size_mm.tolist())
    image.SetOrigin(grid.affine[:3, 3].tolist())
    image.SetDirection((grid.affine[:3, :3] / grid.voxel_size_mm).ravel().tolist())
    return image
