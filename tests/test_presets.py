"""Presets: each is sound, and those of published systems draw from their published ranges.

Ranges are looked at where they count: in the extremes and rates of many draws. Published numbers
stand here as published, in their own units.
"""

from dataclasses import replace
from importlib.resources import as_file, files

import numpy as np
import pytest
from training_samples import sphere

from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.learning.config import TrainConfig, presets, read_config
from bids_synthseg.learning.start import settled
from bids_synthseg.learning.transfer import start_network
from bids_synthseg.models.checkpoint import load_model
from bids_synthseg.models.heads import Head
from bids_synthseg.synthesis.acquisition import AcquisitionDraw, blur_sigma, draw_acquisition
from bids_synthseg.synthesis.contrast import TISSUE_OF
from bids_synthseg.synthesis.deformation import DeformationConfig, draw_affine, draw_velocity
from bids_synthseg.synthesis.parts import MOST
from bids_synthseg.synthesis.recipe import Draw, SourceMap, draw, render, working_voxel

PUBLISHED = ("infant-synthseg", "synthseg", "fetalsynthseg", "clinical-fetal")
N = 600
RATE = 0.06
"""Three standard errors of a rate over N draws, at most."""


def source() -> SourceMap:
    """The ball with a scan, clustered at random."""
    thresholds = np.full((1, len(TISSUE_OF), MOST, MOST - 1), np.inf, dtype=np.float32)
    for count in range(2, MOST + 1):
        thresholds[0, :, count - 1, : count - 1] = np.linspace(0.1, 0.5, count - 1)
    return replace(sphere(16, scan=True), thresholds=thresholds)


def draws(name: str, n: int = N, **changes: object) -> list[Draw]:
    """Samples of a preset on a small grid, of the ball with some fields changed."""
    config, one = read_config(name), replace(source(), **changes)
    return [
        draw(one, config.synthesis, (16, 16, 16), 1.0, np.random.default_rng(k)) for k in range(n)
    ]


def acquisitions(name: str) -> list[AcquisitionDraw]:
    config, rng = read_config(name).synthesis.acquisition, np.random.default_rng(1)
    return [draw_acquisition(config, rng) for _ in range(4 * N)]


def linears(name: str, **off: float) -> np.ndarray:
    """(N, 3, 3) of a preset's affine maps, with some of their ranges set to zero."""
    config, rng = replace(read_config(name).synthesis.deformation, **off), np.random.default_rng(2)
    return np.array([draw_affine(config, (32,) * 3, False, rng)[:3, :3] for _ in range(N)])


def reaches(values: np.ndarray, low: float, high: float, slack: float = 0.02) -> bool:
    """Whether values fill the range from low to high: within it, and up to its ends."""
    margin = slack * (high - low)
    inside = values.min() >= low - 1e-3 * high and values.max() <= high * 1.001
    return bool(inside and values.min() <= low + margin and values.max() >= high - margin)


def test_the_shipped_presets():
    assert presets() == tuple(sorted([*PUBLISHED, "adult-to-infant", "default", "large"]))


@pytest.mark.parametrize("name", presets())
def test_a_preset_fits_the_shipped_labels(name):
    config = read_config(name)
    assert config.network.channels_out == Head(LabelTable.default(), config.head).n_channels
    assert config != TrainConfig()


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_it_is(name):
    text = (files("bids_synthseg") / "data" / "presets" / f"{name}.toml").read_text()
    assert text.startswith("# ") and max(map(len, text.splitlines())) <= 100
    assert (name in ("default", "large")) or "# Differs" in text


@pytest.mark.parametrize("name", presets())
def test_a_preset_renders_a_sample(name):
    config, one, shape = read_config(name), source(), (32, 48, 32)
    voxel_mm = working_voxel(one, shape, config.fill, config.voxel_mm)
    for seed in range(2):
        drawn = draw(one, config.synthesis, shape, voxel_mm, np.random.default_rng(seed))
        image, classes = render(one, drawn)
        assert image.shape == classes.shape == shape
        assert image.isfinite().all() and image.min() >= 0 and image.std() > 0
        assert len(classes.unique()) >= 5


def test_transfer_goes_on_with_the_shipped_network():
    preset = read_config("adult-to-infant")
    head = Head(LabelTable.default(), preset.head)
    config = settled(preset, head)
    with as_file(files("bids_synthseg.weights") / "segmentation.safetensors") as path:
        model = load_model(path)
    found = start_network(model, config.network, head)
    assert preset.init_from == "shipped" and not found.fresh and not found.dropped
    assert config.network.features == model.network.config.features
    assert (config.shape, config.fill) == (model.shape, model.fill)


@pytest.mark.parametrize(
    ("name", "shape", "voxel_mm", "steps", "warm_up_l2", "sampling"),
    [
        ("infant-synthseg", (128, 160, 128), 1.0, 300 * 3000, 0, "uniform"),
        ("synthseg", (160, 160, 160), 1.0, 101 * 5000, 5000, "uniform"),
        ("fetalsynthseg", (256, 256, 256), 0.5, None, 0, "uniform"),
        ("clinical-fetal", (160, 160, 160), 0.5, 21 * 5000, 5000, "shape"),
    ],
)
def test_grid_and_schedule(name, shape, voxel_mm, steps, warm_up_l2, sampling):
    config = read_config(name)
    assert (config.shape, config.voxel_mm) == (shape, voxel_mm)
    assert config.steps == steps or steps is None
    assert (config.loss.warm_up_l2, config.sampling.by) == (warm_up_l2, sampling)
    # Adam at 1e-4 from the first step to the last, one sample each, the last weights and no mean.
    assert (config.rate, config.schedule, config.warm_up) == (1e-4, "constant", 1)
    assert (config.batch, config.accumulate, config.average, config.coarse_steps) == (1, 1, 0, 0)
    assert config.clip > 1e6 and config.loss_step == 1 and config.pool == 1
    # Dice alone, but for FetalSynthSeg's Dice and cross-entropy.
    assert config.loss.dice == 1
    assert config.loss.cross_entropy == (1 if name == "fetalsynthseg" else 0)


def test_clinical_fetal_draws_every_one_of_six_clusters_alike():
    sampling = read_config("clinical-fetal").sampling
    assert (sampling.clusters, sampling.temper, sampling.weights) == (6, 0, {})


@pytest.mark.parametrize(
    ("name", "rotation_deg", "scale", "shear", "warp_voxels", "nodes"),
    [
        ("infant-synthseg", 15, 1.15, 0.012, 3, (7, 7)),
        ("synthseg", 15, 1.2, 0.012, 4, (7, 7)),
        ("fetalsynthseg", 20, 1.1, 0.02, 4, (8, 15)),
        ("clinical-fetal", 20, 1.2, 0.012, 4, (7, 7)),
    ],
)
def test_deformation(name, rotation_deg, scale, shear, warp_voxels, nodes):
    config = read_config(name)
    turned = linears(name, scale=0, shear=0)
    # The matrix is Rx Ry Rz: its angles in turn.
    angles = np.rad2deg(
        [
            np.arctan2(-turned[:, 1, 2], turned[:, 2, 2]),
            np.arcsin(turned[:, 0, 2]),
            np.arctan2(-turned[:, 0, 1], turned[:, 0, 0]),
        ]
    )
    for axis in angles:
        assert reaches(axis, -rotation_deg, rotation_deg)
    scaled = np.diagonal(linears(name, rotation_deg=0, shear=0), axis1=1, axis2=2)
    for axis in scaled.T:
        assert reaches(axis, 1 / scale, scale)
    assert abs(np.corrcoef(scaled.T)[0, 1]) < 0.15, "axes are scaled by themselves"
    sheared = linears(name, rotation_deg=0, scale=0)[:, ~np.eye(3, dtype=bool)]
    assert reaches(sheared, -shear, shear)

    deformation = config.synthesis.deformation
    assert deformation.shift == 0
    velocities = [
        draw_velocity(deformation, config.shape, np.random.default_rng(k)) for k in range(300)
    ]
    # The SD is drawn evenly from 0 up; what the nodes show of it varies by a few hundredths.
    assert reaches(np.array([v.std() for v in velocities]), 0, warp_voxels * 1.04, slack=0.07)
    sides = [v.shape[-1] for v in velocities]
    assert (min(sides), max(sides)) == nodes


@pytest.mark.parametrize(
    ("name", "rate"),
    [("infant-synthseg", 0), ("synthseg", 0.5), ("fetalsynthseg", 0.5), ("clinical-fetal", 0)],
)
def test_mirror_images(name, rate):
    flips = np.mean([one.flip for one in draws(name)])
    assert flips == pytest.approx(rate, abs=RATE if rate else 0)


@pytest.mark.parametrize(
    ("name", "log_sd", "nodes", "share", "gamma"),
    [
        ("infant-synthseg", (0, 0.5), (4, 4), 1.0, 0.5),
        ("synthseg", (0, 0.7), (4, 4), 0.95, 0.5),
        ("fetalsynthseg", (0.01, 0.02), (1, 5), 1.0, 0.1),
        ("clinical-fetal", (0, 0.7), (4, 4), 0.95, 0.5),
    ],
)
def test_bias_and_gamma(name, log_sd, nodes, share, gamma):
    found = acquisitions(name)
    sides = [one.bias.shape[0] for one in found]
    assert (min(sides), max(sides)) == nodes
    assert np.mean([one.bias.any() for one in found]) == pytest.approx(share, abs=0.02)
    # A variance averaged over SDs drawn evenly between two ends.
    squares = np.concatenate([one.bias.ravel() ** 2 for one in found if one.bias.any()])
    low, high = log_sd
    assert np.sqrt(squares.mean()) == pytest.approx(
        np.sqrt((high**2 + high * low + low**2) / 3), rel=0.05
    )
    logs = np.log([one.gamma for one in found])
    assert logs.mean() == pytest.approx(0, abs=0.05) and logs.std() == pytest.approx(gamma, rel=0.1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_noise(name):
    found = acquisitions(name)
    if name == "fetalsynthseg":
        noise = np.array([one.noise for one in found])
        assert reaches(noise, 5 / 255, 15 / 255)
        assert not any(one.noise_relative or one.rician for one in found)
    else:
        assert not any(one.noise for one in found)
    # None of the artefacts of later systems, no change of shape, no scan's own intensities.
    synthesis = read_config(name).synthesis
    assert synthesis.real == synthesis.shape.ventricles == synthesis.shape.cortex == 0
    artefacts = synthesis.artefacts
    assert not (artefacts.misplaced or artefacts.voids or artefacts.halo)
    assert not (artefacts.structured or artefacts.blurred)


@pytest.mark.parametrize("name", ["synthseg", "clinical-fetal"])
def test_resolution_of_synthseg(name):
    """5 % sharp; of the rest a tenth coarse along each axis, U(1, 4) mm, the others along one,
    U(1, 8) mm (from the voxel on); slices between a voxel and their spacing thick."""
    voxel_mm = read_config(name).voxel_mm
    found = acquisitions(name)
    spacing = np.array([one.spacing for one in found])
    coarse = (spacing > 1).sum(axis=1)
    for axes, rate in ((0, 0.05), (1, 0.855), (3, 0.095)):
        assert np.mean(coarse == axes) == pytest.approx(rate, abs=0.03)
    one_axis, all_axes = spacing[coarse == 1], spacing[coarse == 3]
    assert reaches(one_axis.max(axis=1) * voxel_mm, voxel_mm, 8)
    assert np.bincount(one_axis.argmax(axis=1)).min() > 0.28 * len(one_axis)
    for axis in all_axes.T:
        assert reaches(axis * voxel_mm, voxel_mm, 4, slack=0.05)
    assert abs(np.corrcoef(all_axes.T)[0, 1]) < 0.25
    thickness = np.array([one.thickness for one in found])
    assert (thickness >= 1).all() and (thickness <= spacing + 1e-5).all()
    thick = (thickness - 1)[spacing > 2] / (spacing - 1)[spacing > 2]
    assert reaches(thick, 0, 1)
    jitter = np.array([one.blur for one in found])
    assert reaches(jitter, 1 / 1.03, 1.03)
    # The published blur at 1 mm, and of a sharp axis.
    assert [blur_sigma(s, s) for s in (1, 2, 4, 8)] == [0.5, 1.5, 3, 6]


def test_resolution_of_infant_synthseg():
    found = acquisitions("infant-synthseg")
    assert all(one.spacing == (1, 1, 1) for one in found)
    sigmas = np.array([one.blur * blur_sigma(1, 1) for one in found])
    assert reaches(sigmas, 0.5 / 1.03, 0.5 * 1.03)


def test_resolution_of_fetalsynthseg():
    """20 % native and unblurred; else 0.5 to 1.5 mm along all axes alike, no gaps, an SD of
    (0.85 to 1.15) ln 5 / pi times the spacing in voxels."""
    found = acquisitions("fetalsynthseg")
    coarse = [one for one in found if max(one.spacing) > 1]
    assert 1 - len(coarse) / len(found) == pytest.approx(0.2, abs=0.03)
    assert all(one.blur == 0 for one in found if max(one.spacing) == 1)
    assert reaches(np.array([one.spacing[0] for one in coarse]) * 0.5, 0.5, 1.5)
    assert all(one.spacing == (one.spacing[0],) * 3 == one.thickness for one in coarse)
    factors = [one.blur * blur_sigma(one.spacing[0], one.thickness[0]) / one.spacing[0]
               for one in coarse]  # fmt: skip
    assert reaches(np.array(factors), 0.85 * np.log(5) / np.pi, 1.15 * np.log(5) / np.pi)


@pytest.mark.parametrize(
    ("name", "mean", "spread"),
    [
        ("infant-synthseg", (25 / 255, 225 / 255), (5 / 255, 25 / 255)),
        ("synthseg", (0, 1), (0, 30 / 250)),
        ("clinical-fetal", (0, 1), (0, 30 / 250)),
    ],
)
def test_classes_at_random(name, mean, spread):
    at_random = [one for one in draws(name) if not one.contrast]
    means = np.array([one.means[1:6] for one in at_random])
    spreads = np.array([one.spreads[1:6] for one in at_random])
    for values, (low, high) in ((means, mean), (spreads, spread)):
        for kind in values.T:
            assert reaches(kind, low, high)
    # Cortex left and right and fluid: every class for itself, the sides of a structure as well.
    assert np.abs(np.corrcoef(means[:, 2:].T) - np.eye(3)).max() < 0.2


def test_parts_of_fetalsynthseg():
    """1 to 4 clusters of each tissue and of the scan's own surroundings, each of them mean
    U(25, 225) and SD U(5, 25) of 255."""
    parts = [one.parts for one in draws("fetalsynthseg")]
    counts = np.array([one.counts for one in parts])
    assert (counts.min(axis=0) == 1).all() and (counts.max(axis=0) == 4).all()
    for count in range(1, 5):
        assert np.mean(counts == count) == pytest.approx(0.25, abs=0.03)
    assert abs(np.corrcoef(counts.T)[0, 1]) < 0.15, "each tissue has a number of its own"
    assert reaches(np.array([one.means for one in parts]), 25 / 255, 225 / 255)
    assert reaches(np.array([one.spreads for one in parts]), 5 / 255, 25 / 255)


def test_parts_of_clinical_fetal():
    """Four clusters of the scan's own surroundings; the brain keeps its labels."""
    parts = [one.parts for one in draws("clinical-fetal")]
    assert {tuple(one.counts) for one in parts} == {(4, 0, 0, 0, 0)}
    assert reaches(np.array([one.means for one in parts]), 0, 1)
    assert reaches(np.array([one.spreads for one in parts]), 0, 30 / 250)


@pytest.mark.parametrize(("name", "black", "dim"), [
    ("synthseg", 0.05, 0.25), ("clinical-fetal", 0.05, 0.25), ("fetalsynthseg", 0.5, 0.0),
    # Infant-SynthSeg: always with a prior, that is in half, else in 0.2.
    ("infant-synthseg", 0.6, 0.0),
])  # fmt: skip
def test_air(name, black, dim):
    config = read_config(name).synthesis.contrast
    assert config.dim_background == dim
    found = draws(name)
    air = np.array([one.means[0] for one in found])
    assert np.mean(air == 0) == pytest.approx(black, abs=RATE)
    # Nearly black: mean up to 15 and SD up to 5 of 250; air like any class may be that by chance.
    low = (air > 0) & (air <= 15 / 250)
    chance = (1 - black - dim) * max(0.0, 15 / 250 - config.mean_min) / config.mean_max
    assert low.mean() == pytest.approx(dim + chance, abs=RATE)


def test_priors_of_infant_synthseg():
    """Half of the samples, both contrasts alike, in the order that newborns have: the second
    component of white matter (21) is the mature one."""
    found = draws("infant-synthseg", labels=np.array([0, 2, 3, 21, 24, 16]))
    for contrast, order in (("T1w", (1, 2, 3)), ("T2w", (2, 3, 1))):
        members = [one for one in found if one.contrast == contrast]
        assert len(members) / N == pytest.approx(0.25, abs=RATE)
        apart = [one.means[list(order)] for one in members if one.means[1] != one.means[3]]
        assert (np.diff(np.mean(apart, axis=0)) > 0).all()


def test_fusing_of_infant_synthseg():
    """Components of a structure are one in half of the samples, whether by priors or at random."""
    found = draws("infant-synthseg", labels=np.array([0, 2, 21, 16, 170, 3]))
    fused = np.array([one.means[1] == one.means[2] for one in found])
    stem = np.array([one.means[3] == one.means[4] for one in found])
    seen = np.array([one.contrast != "" for one in found])
    assert (fused == stem).all(), "one coin for all sets"
    for branch in (seen, ~seen):
        assert fused[branch].mean() == pytest.approx(0.5, abs=0.09)
    assert not any(one.means[1] == one.means[5] for one in found)


def test_fusing_of_synthseg():
    """Always: lateral ventricle with its horn, hippocampus with amygdala, each side for itself."""
    for labels in ([0, 4, 5, 17, 18, 24], [0, 43, 44, 53, 54, 24]):
        for one in draws("synthseg", n=20, labels=np.array(labels)):
            means = one.means[1:6].tolist()
            assert means[0] == means[1] and means[2] == means[3]
            assert len(set(means)) == 3
    (apart,) = {len(set(one.means[1:6].tolist())) for one in draws("clinical-fetal", n=20)}
    assert apart == 5


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_head_is_painted(name):
    """A published system sees what its maps and scans hold, and nothing else."""
    assert read_config(name).synthesis.keep_surroundings == 1
    for one in draws(name, n=50):
        assert one.head.edges == (0.0,) * 4 and one.head.blobs is None and one.head.donor == -1
        assert one.keep_surroundings


def test_default_ranges_are_not_those_of_a_published_system():
    """What the tests above would miss: that a preset's key never arrives."""
    assert DeformationConfig() not in [
        read_config(name).synthesis.deformation for name in PUBLISHED
    ]
