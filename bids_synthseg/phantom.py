"""A made-up newborn head: a label map of nested ellipsoids with folded cortex, and images of it.

It is nobody's anatomy, so it may be shipped and tested with freely; it has every structure of the
label table in about the right place, so that left and right, sizes and contrasts mean something.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.anatomy.volume import Grid, Volume

# Size of the head that the coordinates below are given for, x to the right, y forward, z up.
HEAD_MM = (110.0, 130.0, 95.0)
SHAPE = (110, 130, 95)
_CORTEX_MM = 2.3
_CSF_MM = 2.5
_SKULL_MM = 2.5
_SCALP_MM = 2.5
_FOLD_WAVELENGTH_MM = 22.0
_FOLD_DEPTH = 0.2


@dataclass(frozen=True)
class _Part:
    """An ellipsoid, in mm: at +x and -x where the structure has sides."""

    structure: str
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]


_CEREBRUM = _Part("cerebral cortex", (0, 4, 5.5), (41, 52, 33))
_CEREBELLUM = _Part("cerebellar cortex", (0, -29, -21), (33, 19, 14))
# Where the hemispheres hang together: the fissure stops here.
_CORE = _Part("cerebral white matter", (0, 2, 2), (15, 29, 18))
# Painted in this order, the later over the earlier.
_PARTS = (
    _Part("cerebellar white matter", (15, -28, -21), (10, 9, 5.5)),
    _Part("vermis", (0, -30, -21), (5, 17, 13.5)),
    _Part("brain stem", (0, -9, -24), (8, 8, 20)),
    _Part("fourth ventricle", (0, -16.5, -22), (3.5, 3, 6)),
    _Part("corpus callosum", (0, 2, 3), (6, 27, 17)),
    _Part("lateral ventricle", (8, 2, 9), (5, 21, 5)),
    _Part("hippocampus", (22, -11, -11), (5, 11, 4.5)),
    _Part("amygdala", (20, 3, -13), (5, 5, 5)),
    _Part("ventral diencephalon", (6, -4, -8), (6, 8, 5)),
    _Part("putamen", (21, 5, 1), (4.5, 12, 8)),
    _Part("pallidum", (15.5, 2, 0), (3.5, 7, 5.5)),
    _Part("caudate", (13, 13, 7), (3.5, 11, 6)),
    _Part("accumbens", (8, 15, -4), (3.5, 4.5, 3.5)),
    _Part("thalamus", (8.5, -6, 2), (6.5, 10, 7)),
    _Part("third ventricle", (0, -3, 0), (2, 9, 7)),
)
# Grey values of a newborn: myelin is sparse, so white matter is darker than cortex in T1w and
# brighter in T2w, the reverse of an adult.
_GREY = {
    "background": (4, 4),
    "cerebrospinal fluid": (30, 235),
    "lateral ventricle": (28, 240),
    "third ventricle": (28, 240),
    "fourth ventricle": (28, 240),
    "cerebral white matter": (74, 165),
    "corpus callosum": (80, 150),
    "cerebral cortex": (106, 105),
    "cerebellar cortex": (110, 95),
    "cerebellar white matter": (94, 125),
    "vermis": (112, 92),
    "brain stem": (114, 96),
    "ventral diencephalon": (112, 98),
    "thalamus": (118, 92),
    "pallidum": (120, 90),
    "putamen": (110, 100),
    "caudate": (108, 104),
    "accumbens": (106, 106),
    "hippocampus": (98, 115),
    "amygdala": (99, 117),
}
_SKULL_GREY = (14, 12)
_SCALP_GREY = (150, 130)
CONTRASTS = ("T1w", "T2w")


def phantom_labels(
    shape: tuple[int, int, int] = SHAPE,
    voxel_mm: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Volume:
    """A label map (X, Y, Z) int32 with every id of the label table, in RAS+ around the origin.

    The head fills the field of view, whatever its size in mm. rng varies sizes by some percent and
    the folds; without it the phantom is always the same. Voxels above about 3 % of the field of
    view lose small structures.
    """
    rng = rng or np.random.default_rng(0)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -voxel_mm * (np.array(shape) - 1) / 2
    grid = Grid(shape, affine)
    scale = min(n * voxel_mm / size for n, size in zip(shape, HEAD_MM, strict=True))
    stretch = scale * rng.uniform(0.95, 1.0, 3)
    # Open axes that broadcast: (X, 1, 1), (1, Y, 1), (1, 1, Z), in the head's own millimetres.
    steps = np.ogrid[tuple(slice(0, n) for n in shape)]
    x, y, z = (
        ((voxel_mm * step + start) / one).astype(np.float32)
        for step, start, one in zip(steps, affine[:3, 3], stretch, strict=True)
    )
    voxel = voxel_mm / float(stretch.min())  # a voxel's size in those millimetres
    space = (x, y, z)

    surface = 1.0 + _folds(space, rng)
    cerebrum = _radius(_CEREBRUM, space) < surface
    # The fissure is at least two voxels wide, on a grid of even as of odd size.
    fissure = (np.abs(x) < max(0.9, 0.76 * voxel)) & (_radius(_CORE, space) > 1.0)
    cerebellum = _radius(_CEREBELLUM, space) < 1.0
    cerebrum &= ~fissure & ~cerebellum & (z > -27)
    depth = ndimage.distance_transform_edt(cerebrum) * voxel
    # Distances run to the centre of a voxel outside, half a voxel beyond the surface.
    cortex = cerebrum & (depth <= max(_CORTEX_MM + voxel / 2, 1.01 * voxel))
    cortex &= _radius(_CORE, space) > 1.0
    inside = (_radius(_CEREBRUM, space, _CSF_MM) < 1.0) | (
        _radius(_CEREBELLUM, space, _CSF_MM) < 1.0
    )

    table = LabelTable.default()
    left = np.broadcast_to(x < 0, shape)
    labels = np.zeros(shape, dtype=np.int32)

    def paint(structure: str, where: np.ndarray) -> None:
        for row in table.rows:
            if row.structure == structure:
                side = {"left": left, "right": ~left}.get(row.side, True)
                labels[where & side] = row.index

    paint("cerebrospinal fluid", inside & (z > -40))
    paint("cerebral white matter", cerebrum)
    paint("cerebral cortex", cortex)
    paint("cerebellar cortex", cerebellum)
    for part in _PARTS:
        where = _radius(part, (np.abs(x), y, z)) < 1.0
        if part.structure == "corpus callosum":  # an arch: hollow and open below
            hollow = _Part("", part.centre, (99, part.radii[1] - 5, part.radii[2] - 4.5))
            where &= (_radius(hollow, space) > 1.0) & (z > 2)
        if part.structure == "brain stem":
            where &= (z > -42) & (z < -5)
        paint(part.structure, where)
    return Volume(labels, grid)


def phantom_image(labels: Volume, contrast: str, rng: np.random.Generator | None = None) -> Volume:
    """An image (X, Y, Z) float32 of a phantom's labels: newborn contrast, skull and scalp around.

    contrast: "T1w" or "T2w" (ValueError for others). Grey values are blurred by half a voxel as
    partial volume, multiplied by a smooth bias field of up to some 20 %, and made noisy.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast {contrast!r}: choose from {', '.join(CONTRASTS)}")
    rng = rng or np.random.default_rng(1)
    column = CONTRASTS.index(contrast)
    table = LabelTable.default()
    greys = np.zeros(int(table.ids.max()) + 1, dtype=np.float32)
    for row in table.rows:
        greys[row.index] = _GREY[row.structure][column]
    image = greys[labels.data]
    scale = min(np.array(labels.data.shape) * labels.grid.voxel_size_mm / np.array(HEAD_MM))
    away = ndimage.distance_transform_edt(labels.data == 0, sampling=labels.grid.voxel_size_mm)
    away /= scale
    image[(away > 0) & (away <= _SKULL_MM)] = _SKULL_GREY[column]
    image[(away > _SKULL_MM) & (away <= _SKULL_MM + _SCALP_MM)] = _SCALP_GREY[column]
    image = ndimage.gaussian_filter(image, 0.5)
    image *= _bias_field(image.shape, rng)
    # Magnitude images have Rician noise.
    noise = rng.normal(0.0, 3.0, (2, *image.shape)).astype(np.float32)
    return Volume(np.hypot(image + noise[0], noise[1]).astype(np.float32), labels.grid)


def _radius(part: _Part, space: tuple[np.ndarray, ...], margin_mm: float = 0.0) -> np.ndarray:
    """1 on the surface of the ellipsoid, less inside."""
    square = sum(
        ((position - centre) / (radius + margin_mm)) ** 2
        for position, centre, radius in zip(space, part.centre, part.radii, strict=True)
    )
    return np.sqrt(square)


def _folds(space: tuple[np.ndarray, ...], rng: np.random.Generator) -> np.ndarray:
    """How far the brain's surface lies in (negative): narrow sulci between broad gyri."""
    x, y, z = space
    wave = 2 * np.pi / _FOLD_WAVELENGTH_MM
    phase = rng.uniform(0, 2 * np.pi, 3)
    # |x| makes the two hemispheres alike; the bend keeps the sulci from being planes.
    bend = np.sin(0.6 * wave * y + phase[1]) + np.sin(0.7 * wave * z + phase[2])
    across = np.sin(0.5 * wave * (0.4 * np.abs(x) + 0.9 * y + 0.4 * z) + 0.6 * bend + phase[0])
    sulci = np.exp(-((across / 0.22) ** 2))
    return -_FOLD_DEPTH * sulci


def _bias_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) smooth factors around 1: the exponential of a random quadratic polynomial."""
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32).reshape(-1, *[1] * (2 - axis))
               for axis, n in enumerate(shape))  # fmt: skip
    terms = (x, y, z, x * y, x * z, y * z, x**2, y**2, z**2)
    return np.exp(sum(rng.uniform(-0.08, 0.08) * term for term in terms))
