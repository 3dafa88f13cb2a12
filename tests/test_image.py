"""The container image and the SIF made of it, as a cluster would run them.

BIDS_SYNTHSEG_IMAGE and BIDS_SYNTHSEG_SIF name them, as `make image-test` does: nothing is built
here, and an image that happens to be there may be of another version.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_synthseg import __version__
from bids_synthseg.errors import CannotCreate
from bids_synthseg.phantom import phantom_image, phantom_labels

IMAGE = os.environ.get("BIDS_SYNTHSEG_IMAGE", "")
SIF = Path(os.environ.get("BIDS_SYNTHSEG_SIF", "missing.sif")).absolute()
# Somebody without an account, in the image as on this machine.
USER = 12345
# No network, nothing to write but /tmp and what is mounted, no rights.
CONFINED = (
    "--network=none", "--read-only", "--tmpfs=/tmp:rw,size=256m", f"--user={USER}:{USER}",
    "--cap-drop=all", "--security-opt=no-new-privileges",
)  # fmt: skip
ARGUMENTS = ("participant", "--device", "cpu", "--n-cpus", "1")
LIMIT_BYTES = 2_000_000_000


def call(*words: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)


def engine() -> str | None:
    """podman or docker, whichever has the image; None where neither has."""
    for name in ("podman", "docker"):
        if IMAGE and shutil.which(name) and call(name, "image", "inspect", IMAGE).returncode == 0:
            return name
    return None


@pytest.fixture(scope="module")
def container():
    """container(words, options...) -> what the confined image did."""
    name = engine()
    if name is None:
        pytest.skip("BIDS_SYNTHSEG_IMAGE names no image that podman or docker has")

    def run(words: tuple, *options: object) -> subprocess.CompletedProcess:
        return call(name, "run", "--rm", *CONFINED, *options, IMAGE, *words)

    return run


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory):
    """open_folder(name) -> a new folder that another user can reach and write to."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        for parent in (folder.parent, folder.parent.parent):
            parent.chmod(0o755)
        folder.chmod(0o777)
        return folder

    return make


@pytest.fixture(scope="module")
def dataset(open_folder):
    """A phantom newborn, T1w and T2w, in voxels of 2 mm to save time."""
    root = open_folder("bids")
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "phantom", "BIDSVersion": "1.10.0"}')
    rng = np.random.default_rng(0)
    labels = phantom_labels((72, 72, 72), 2.0, rng)
    for contrast in ("T1w", "T2w"):
        volume = phantom_image(labels, contrast, rng)
        image = nib.Nifti1Image(np.rint(volume.data).astype(np.int16), volume.grid.affine)
        image.header.set_xyzt_units("mm")
        image.to_filename(anat / f"sub-01_{contrast}.nii.gz")
    return root


@pytest.fixture(scope="module")
def bare(dataset, open_folder):
    """Derivatives of the installation that runs these tests."""
    out = open_folder("bare")
    done = call(sys.executable, "-m", "bids_synthseg", dataset, out, *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    return out


def assert_same_images(found: Path, wanted: Path) -> None:
    """Every image there is, voxel for voxel."""
    names = {path.relative_to(wanted) for path in wanted.rglob("*.nii.gz")}
    assert names and {path.relative_to(found) for path in found.rglob("*.nii.gz")} == names
    for name in names:
        one, other = (nib.load(folder / name) for folder in (found, wanted))
        assert (one.affine == other.affine).all(), name
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj)), name


@pytest.mark.container
def test_what_the_image_tells_of_itself(container):
    assert container(("--version",)).stdout == f"bids_synthseg {__version__}\n"
    shown = call(
        engine(), "image", "inspect", "--format", "{{json .Config.Labels}} {{.Size}}", IMAGE
    )
    labels, _, size = shown.stdout.strip().rpartition(" ")
    for name in ("title", "licenses", "version", "revision", "source"):
        assert f'"org.opencontainers.image.{name}"' in labels
    version = ("-c", "import torch; print(torch.__version__)")
    if "+cpu" in container(version, "--entrypoint=python").stdout:
        assert int(size) < LIMIT_BYTES


@pytest.mark.container
def test_there_is_no_compiler_and_no_pip_inside(container):
    words = ("-c", "command -v gcc cc g++ c++ clang ld as make; python -m pip --version")
    done = container(words, "--entrypoint=sh")
    assert done.stdout == "" and "No module named pip" in done.stderr


@pytest.mark.container
def test_it_segments_as_the_bare_installation_does(container, dataset, bare, open_folder):
    out = open_folder("out")
    mounts = (f"--volume={dataset}:/data:ro", f"--volume={out}:/out")
    done = container(("/data", "/out", *ARGUMENTS), *mounts)
    assert done.returncode == 0, done.stderr
    # Matplotlib and others complain there when they find no place for their caches.
    assert "Warning" not in done.stderr and "writable" not in done.stderr
    assert_same_images(out, bare)
    assert (out / "sub-01.html").is_file()

    again = container(("/data", "/out", *ARGUMENTS), *mounts)
    assert again.returncode == 0 and "skipped" in (out / "logs" / "status.tsv").read_text()
    group = container(("/data", "/out", "group"), *mounts)
    assert group.returncode == 0 and (out / "group.html").is_file(), group.stderr


@pytest.mark.container
@pytest.mark.parametrize("mode", [":ro", ""], ids=["mounted read-only", "of somebody else"])
def test_an_output_that_cannot_be_written_is_one_line(container, dataset, open_folder, mode):
    out = open_folder("foreign")
    out.chmod(0o755)  # root's, or that of who runs the tests
    done = container(
        ("/data", "/out", *ARGUMENTS), f"--volume={dataset}:/data:ro", f"--volume={out}:/out{mode}"
    )
    assert done.returncode == CannotCreate.exit_code
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: /out")
    assert not any(out.iterdir())


@pytest.mark.container
def test_no_home_is_needed(container, dataset):
    """With a home that cannot be written, and a /tmp that can, nothing is said about either."""
    words = ("/data", "/tmp/out", *ARGUMENTS, "--viewer", "none")
    done = container(words, f"--volume={dataset}:/data:ro", "--env=HOME=/nowhere")
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr


@pytest.mark.container
@pytest.mark.parametrize(
    "program",
    [("torchrun", "--help"), ("dask", "worker", "--help"), ("bids_synthseg_tools", "--help")],
    ids=lambda words: words[0],
)
def test_other_programs_of_the_image(container, program):
    assert container(program[1:], f"--entrypoint={program[0]}").returncode == 0


@pytest.fixture(scope="module")
def apptainer():
    """apptainer(words, options...) -> what the SIF did, as another user where that is possible."""
    if shutil.which("apptainer") is None or not SIF.is_file():
        pytest.skip("no apptainer, or BIDS_SYNTHSEG_SIF names no file")
    root = os.geteuid() == 0

    def run(words: tuple, *options: object, home: Path) -> subprocess.CompletedProcess:
        other = {"user": USER, "group": USER, "extra_groups": ()} if root else {}
        return call(
            "apptainer", "-q", "run", *options, SIF, *words,
            cwd=home, env={"PATH": os.environ["PATH"], "HOME": str(home)}, **other,
        )  # fmt: skip

    return run


@pytest.mark.apptainer
@pytest.mark.parametrize(
    "options",
    [("--containall", "--cleanenv", "--net", "--network=none"), ()],
    ids=["confined", "default"],
)
def test_the_sif_segments_as_the_bare_installation_does(
    apptainer, dataset, bare, open_folder, options
):
    out, home = open_folder("sif"), open_folder("home")
    binds = ("-B", f"{dataset}:/data:ro", "-B", f"{out}:/out")
    done = apptainer(("/data", "/out", *ARGUMENTS), *options, *binds, home=home)
    assert done.returncode == 0, done.stderr
    assert_same_images(out, bare)
    left = {path.name for path in home.iterdir()} - {".apptainer"}  # Apptainer's own
    assert not left


@pytest.mark.apptainer
def test_the_sif_says_in_one_line_what_it_cannot_write(apptainer, dataset, open_folder):
    out, home = open_folder("foreign"), open_folder("home")
    out.chmod(0o555)
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    binds = ("-B", f"{dataset}:/data:ro", "-B", f"{out}:/out")
    done = apptainer(("/data", "/out", *ARGUMENTS), "--containall", *binds, home=home)
    assert done.returncode == CannotCreate.exit_code
    assert done.stderr.splitlines()[-1].startswith("Error: /out")
