"""What is told twice outside the code: versions, options, dependencies, names in workflows."""

import configparser
import json
import re
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click
import pytest
import yaml
from boutiques import bosh
from packaging.requirements import Requirement

from bids_synthseg import __version__, cli, errors
from bids_synthseg.console import spread

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BOUTIQUES = ROOT / "descriptors" / "boutiques.json"
BABS = ROOT / "descriptors" / "babs_bids_synthseg.yaml"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements() -> list[Requirement]:
    """Every dependency of every extra, this package itself left out."""
    parts = [setup()["options"]["install_requires"], *setup()["options.extras_require"].values()]
    lines = [line for part in parts for line in part.split("\n") if line.strip()]
    return [one for one in map(Requirement, lines) if one.name != "bids_synthseg"]


def options() -> dict[str, click.Option]:
    """Long flag -> option of the App, those apart that print something and stop."""
    found = [one for one in cli.command.params if isinstance(one, click.Option)]
    return {
        next(name for name in one.opts if name.startswith("--")): one
        for one in found
        if not one.is_eager
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_pin_that_suits(requirement, python):
    where = {"python_version": python, "python_full_version": f"{python}.1"}
    if requirement.marker and not requirement.marker.evaluate(where):
        return
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    mine = [
        pin
        for pin in pins
        if canonical(pin.name) == canonical(requirement.name)
        and (pin.marker is None or pin.marker.evaluate(where))
    ]
    assert len(mine) == 1, f"{requirement.name}: {len(mine)} pins in constraints.txt"
    (version,) = (clause.version for clause in mine[0].specifier)
    assert requirement.specifier.contains(version)


def test_the_version_is_told_alike():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == __version__
    assert json.loads(BOUTIQUES.read_text("utf-8"))["tool-version"] == __version__
    text = BABS.read_text("utf-8")
    assert f"bids_synthseg {__version__} " in text.splitlines()[0]
    folders = yaml.safe_load(text)["zip_foldernames"]
    assert folders == {"bids_synthseg": __version__.replace(".", "-")}  # BABS knows no dots


def test_pythons_are_told_alike():
    classifiers = setup()["metadata"]["classifiers"]
    assert tuple(re.findall(r"Python :: (3\.\d+)", classifiers)) == PYTHONS
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    assert tuple(jobs["test"]["strategy"]["matrix"]["python"]) == PYTHONS


def test_the_image_is_built_of_what_there_is():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    (extras,) = re.findall(r'"\.\[(.*)\]"', text)
    assert set(extras.split(",")) <= set(setup()["options.extras_require"])
    makefile = (ROOT / "Makefile").read_text("utf-8")
    given = set(re.findall(r"--build-arg (\w+)=", makefile))
    taken = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    assert given <= taken and taken - given == {"BASE_IMAGE"}
    index = re.compile(r"TORCH_INDEX_URL ?\??= ?(\S+)")
    assert index.search(text)[1] == index.search(makefile)[1]


def installed(extras):
    """Name -> distribution of all that this package needs with these extras and that is here."""
    found, left = {}, [("bids_synthseg", frozenset(extras))]
    while left:
        name, wanted = left.pop()
        key = name.lower().replace("_", "-")
        if wanted <= found.get(key, (None, frozenset()))[1] and key in found:
            continue
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        found[key] = here, wanted
        for needed in map(Requirement, here.requires or []):
            marker = needed.marker
            if not marker or any(marker.evaluate({"extra": one}) for one in wanted or [""]):
                left.append((needed.name, frozenset(needed.extras)))
    return {name: here for name, (here, _) in found.items()}


def test_licences_that_ask_for_more_than_their_text_are_named():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    named = set(re.findall(r"^\* ([\w-]+)", notice, re.MULTILINE))
    shared = set()
    for name, here in installed(["dask", "demo", "report", "train"]).items():
        about = here.metadata
        words = [about.get("License-Expression"), (about.get("License") or "")[:200]]
        words += [line for line in about.get_all("Classifier") or [] if "License" in line]
        if re.search("GPL|MPL|General Public|Mozilla", " ".join(filter(None, words))):
            shared.add(name)
    assert {"connected-components-3d", "num2words"} <= shared <= named


def test_the_build_context_holds_what_the_wheel_is_made_of():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    metadata = setup()
    wanted = [
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
        *metadata["metadata"]["license_files"].split(),
    ]
    wanted.append(metadata["metadata"]["long_description"].removeprefix("file:").strip())
    folders = dict(
        line.split("=") for line in metadata["options"]["package_dir"].split("\n") if line.strip()
    )
    wanted += [folder.strip() for folder in folders.values()]
    assert [name for name in wanted if not (ROOT / name).exists()] == []
    assert [name for name in wanted if not any(fnmatch(name, one) for one in let_in)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_name_what_there_is(path):
    text = path.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    called = re.findall(r"make (?:--silent )?((?:[a-z-]+ )*[a-z-]+)\b(?!=)", text)
    assert called and {target for words in called for target in words.split()} <= targets
    given = set(re.findall(r"\b([A-Z_]+)=", " ".join(re.findall(r"make .*", text))))
    assert given <= set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "uses" in job or "timeout-minutes" in job
        assert (ROOT / job.get("uses", "")).exists()


def test_boutiques_knows_the_command_line():
    """Its own check of form is `bosh validate --bids`."""
    descriptor = json.loads(BOUTIQUES.read_text("utf-8"))
    inputs = {one["command-line-flag"]: one for one in descriptor["inputs"][4:]}
    assert set(inputs) == set(options())
    for flag, option in options().items():
        one = inputs[flag]
        assert (one["type"] == "Flag") is bool(option.is_flag or option.count), flag
        assert one.get("list", False) is (option.multiple and not option.count), flag
        if isinstance(option.type, click.Choice):
            assert one["value-choices"] == list(option.type.choices), flag
        assert descriptor["command-line"].count(one["value-key"]) == 1, flag
    codes = {one["code"] for one in descriptor["error-codes"]}
    ours = {one.exit_code for one in vars(errors).values() if isinstance(one, type)}
    assert ours - {errors.InvalidBids.exit_code} <= codes


def test_boutiques_holds_it_valid(capsys):
    bosh(["validate", "--bids", str(BOUTIQUES)])
    assert "BIDS validation OK" in capsys.readouterr().out


def test_boutiques_writes_a_line_that_the_app_reads(tmp_path):
    invocation = {
        "bids_dir": str(tmp_path),
        "output_dir_name": "/out",
        "analysis_level": "participant",
        "participant_label": ["01", "02"],
        "save_posteriors": "tissue",
        "n_procs": 2,
        "overwrite": True,
    }
    (tmp_path / "invocation.json").write_text(json.dumps(invocation))
    words = ["exec", "simulate", "-i", str(tmp_path / "invocation.json"), str(BOUTIQUES)]
    made, line = bosh(words).shell_command.split("; ")
    assert made == "mkdir -p /out"
    name, *words = line.split()
    assert name == "bids_synthseg"
    given = cli.command.make_context(name, spread(words, cli.MANY)).params
    assert given["participants"] == ("01", "02") and given["n_procs"] == 2 and given["overwrite"]


def test_babs_gives_options_that_there_are():
    config = yaml.safe_load(BABS.read_text("utf-8"))
    flags = config["bids_app_args"]
    assert flags.pop("$SUBJECT_SELECTION_FLAG") == "--participant-label"
    assert set(flags) <= set(options())
    command = cli.command.make_context(
        "bids_synthseg", ["b", "o", "participant", *(w for pair in flags.items() for w in pair)]
    )
    asked = re.search(r"--mem=(\d+)G", config["cluster_resources"]["customized_text"])
    assert command.params["mem_gb"] < int(asked[1])
    # What BABS 0.5 asks for.
    assert {"input_datasets", "zip_foldernames", "script_preamble", "job_compute_space"} <= set(
        config
    )
