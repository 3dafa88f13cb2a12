"""SLURM job arrays: scripts by hand, what is left, a stand-in for sbatch."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from bids_synthseg.errors import InputMissing, TryAgainLater, UsageProblem
from bids_synthseg.submission import (
    Job,
    array_script,
    array_text,
    group_script,
    parts_left,
    submit,
)
from bids_synthseg.workbench import command

PLAN = ("sub-1", "sub-2", "sub-3", "sub-4", "sub-5")


@pytest.fixture
def out(tmp_path):
    """An output in which five sessions were planned."""
    logs = tmp_path / "out" / "logs"
    logs.mkdir(parents=True)
    rows = [f"{subject}\tn/a\tx" for subject in PLAN for _ in range(2)]
    (logs / "plan.tsv").write_text("\n".join(["subject\tsession\timage", *rows]) + "\n")
    return tmp_path / "out"


def status(out: Path, part: int, **sessions: str) -> None:
    """The table of a part: sub_1="done"."""
    rows = [f"{name.replace('_', '-')}\tn/a\t{state}" for name, state in sessions.items()]
    table = "\n".join(["subject\tsession\tstatus", *rows]) + "\n"
    (out / "logs" / f"status_part-{part}.tsv").write_text(table)


@pytest.mark.parametrize(
    ("parts", "throttle", "text"),
    [([0], 0, "0"), ([0, 1, 2], 0, "0-2"), ([7, 0, 1, 3, 8], 2, "0-1,3,7-8%2")],
)
def test_numbers_are_written_as_runs(parts, throttle, text):
    assert array_text(parts, throttle) == text


def test_what_is_left(out):
    # Part 0 has sub-1, sub-3, sub-5; part 1 has sub-2, sub-4.
    assert parts_left(out, 2) == [0, 1]
    status(out, 0, sub_1="done", sub_3="skipped", sub_5="done")
    status(out, 1, sub_2="done", sub_4="running")
    assert parts_left(out, 2) == [1]
    status(out, 1, sub_2="done")  # killed between two sessions
    assert parts_left(out, 2) == [1]
    status(out, 1, sub_2="done", sub_4="done")
    assert parts_left(out, 2) == []
    with pytest.raises(InputMissing, match="nothing has run"):
        parts_left(out / "elsewhere", 2)


def test_the_script_of_an_installation(tmp_path):
    job = Job(tmp_path / "b", tmp_path / "o", 9, partition="main", throttle=3, extra=("--no-tta",))
    lines = array_script(job, [1, 2, 5]).splitlines()
    assert lines[0] == "#!/bin/bash"
    for setting in (
        "array=1-2,5%3",
        "time=04:00:00",
        "mem=4G",
        "cpus-per-task=2",
        "partition=main",
    ):
        assert f"#SBATCH --{setting}" in lines
    assert f"#SBATCH --output={tmp_path}/o/logs/slurm-%A_%a.out" in lines
    assert not any("gres" in line for line in lines)
    assert lines[-1] == (
        f"bids_synthseg {tmp_path}/b {tmp_path}/o participant --num-parts 9 "
        '--part-id "$SLURM_ARRAY_TASK_ID" --n-cpus "$SLURM_CPUS_PER_TASK" --no-tta'
    )


def test_the_script_of_a_container(tmp_path):
    job = Job(tmp_path / "b c", tmp_path / "o", 2, container=tmp_path / "app.sif", gres="gpu:1")
    line = array_script(job, [0, 1]).splitlines()[-1]
    assert line.startswith("apptainer run --cleanenv --containall --nv ")
    assert (
        f"-B '{tmp_path}/b c:/data:ro' -B {tmp_path}/o:/out {tmp_path}/app.sif /data /out" in line
    )
    group = group_script(job)
    assert group.endswith(f"{tmp_path}/app.sif /data /out group\n") and "array" not in group


def test_impossible_jobs(tmp_path):
    with pytest.raises(UsageProblem, match="at least 1"):
        Job(tmp_path, tmp_path, 0)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Stands in for sbatch: keeps its arguments and script, and answers with a number."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "sbatch"
    notes = tmp_path / "notes"
    script.write_text(f'#!/bin/sh\n[ -e "{folder}/refuse" ] && echo "no\nway" >&2 && exit 1\n'
                      f'echo "$@" >> {notes}\ncat >> {notes}\necho "41;cluster"\n')  # fmt: skip
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return notes


def test_sbatch_gets_the_script(out, sbatch):
    assert submit("#!/bin/bash\ntrue\n", out, after="7") == "41"
    assert sbatch.read_text() == "--parsable --dependency=afterany:7\n#!/bin/bash\ntrue\n"
    (sbatch.parent / "bin" / "refuse").touch()
    with pytest.raises(TryAgainLater, match="sbatch: no way"):
        submit("x", out)


def test_no_sbatch_is_said(out, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputMissing, match="login node"):
        submit("x", out)


def test_the_tool(out, sbatch, tmp_path):
    status(out, 0, sub_1="done", sub_3="done", sub_5="done")
    words = ["submit", str(tmp_path / "b"), str(out), "--num-parts", "2", "--failed"]
    shown = CliRunner().invoke(command, [*words, "--no-group", "--", "--no-tta"])
    assert shown.exit_code == 0 and "--array=1\n" in shown.output and "--no-tta" in shown.output
    done = CliRunner().invoke(command, [*words, "--submit"])
    assert "Job 41: parts 1 of 2." in done.output and "level group" in done.output
    assert "--dependency=afterany:41" in sbatch.read_text()
    status(out, 1, sub_2="done", sub_4="done")
    assert "Every part is finished." in CliRunner().invoke(command, words).output
