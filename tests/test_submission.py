"""SLURM job arrays: scripts by hand, what is left, a stand-in for sbatch."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bids_synthseg import cli
from bids_synthseg.errors import InputMissing, TryAgainLater, UsageProblem
from bids_synthseg.submission import (
    NAMES_TOO,
    PATH_OPTIONS,
    Job,
    array_script,
    array_text,
    group_script,
    parts_left,
    submit,
    training_script,
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
        f"exec bids_synthseg {tmp_path}/b {tmp_path}/o participant --num-parts 9 --mem-gb 4 "
        '--part-id "$SLURM_ARRAY_TASK_ID" --n-cpus "$SLURM_CPUS_PER_TASK" --no-tta'
    )


def test_the_script_of_a_container(tmp_path):
    """Folders have their own names inside; one that lies in another is bound after it."""
    (tmp_path / "b c" / "out").mkdir(parents=True)
    job = Job(
        tmp_path / "b c", tmp_path / "b c" / "out", 2, container=tmp_path / "app.sif", gres="gpu:1"
    )
    line = array_script(job, [0, 1]).splitlines()[-1]
    assert line.startswith("exec apptainer run --cleanenv --containall --nv -B ")
    assert (
        f"-B '{tmp_path}/b c:{tmp_path}/b c:ro' -B '{tmp_path}/b c/out:{tmp_path}/b c/out' "
        f"{tmp_path}/app.sif '{tmp_path}/b c' '{tmp_path}/b c/out' participant --num-parts 2 "
    ) in line
    group = group_script(job)
    assert group.endswith(f"{tmp_path}/app.sif '{tmp_path}/b c' '{tmp_path}/b c/out' group\n")
    assert "array" not in group


class TestPathsOfTheApp:
    """What stands after `--` goes to the App, the paths in it absolute and seen in a container."""

    @pytest.fixture
    def here(self, tmp_path, monkeypatch):
        """The folder in which the user is, with an SVR data set, edits and a model."""
        for name in ("svr", "edits", "b", "o"):
            (tmp_path / name).mkdir()
        (tmp_path / "m.safetensors").touch()
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def line(self, here, *extra: str, container: Path | None = Path("app.sif")) -> str:
        job = Job(Path("b"), Path("o"), container=container, extra=extra)
        return array_script(job, [0]).splitlines()[-1]

    @pytest.mark.parametrize(
        ("extra", "bound", "written"),
        [
            (("--derivatives", "svr=svr", "edits=edits"), ("svr", "edits"),
             "--derivatives svr=HERE/svr edits=HERE/edits"),
            (("--derivatives=svr=svr", "--no-tta"), ("svr",),
             "--derivatives=svr=HERE/svr --no-tta"),
            (("--model=m.safetensors",), ("m.safetensors",), "--model=HERE/m.safetensors"),
            (("--model", "m.safetensors", "-v"), ("m.safetensors",),
             "--model HERE/m.safetensors -v"),
            (("--config", "large"), (), "--config large"),
            (("--init-from", "shipped"), (), "--init-from shipped"),
            (("--participant-label", "svr"), (), "--participant-label svr"),
        ],
    )  # fmt: skip
    def test_they_are_bound(self, here, extra, bound, written):
        line = self.line(here, *extra)
        assert line.endswith(f" {written.replace('HERE', str(here))}")
        assert line.count("-B") == 2 + len(bound)
        assert all(f"-B {here}/{name}:{here}/{name}:ro" in line for name in bound)
        alone = self.line(here, *extra, container=None)
        assert alone.endswith(f" {written.replace('HERE', str(here))}") and "-B" not in alone

    def test_what_contains_the_output_does_not_hide_it(self, here):
        line = self.line(here, "--derivatives", "all=.")
        assert line.index(f"-B {here}:{here}:ro") < line.index(f"-B {here}/o:{here}/o ")

    def test_what_cannot_be(self, here):
        with pytest.raises(InputMissing, match="nowhere: no such file or folder; check --model"):
            self.line(here, "--model", "nowhere")
        (here / "a:b").mkdir()
        with pytest.raises(UsageProblem, match="a:b: Apptainer cannot bind"):
            self.line(here, "--derivatives", "x=a:b")

    def test_no_path_is_forgotten(self):
        """A new option of the App with a path must be known here."""
        taken = [option for option in cli.command.params if isinstance(option, click.Option)]
        paths = {o.opts[-1] for o in taken if isinstance(o.type, click.Path)} - {"--work-dir"}
        words = {o.opts[-1] for o in taken if "PATH" in (o.metavar or "")}
        assert paths | words <= {*PATH_OPTIONS, "--dask-cluster"}
        assert set(NAMES_TOO) <= set(PATH_OPTIONS) <= {name for o in taken for name in o.opts}


class TestTraining:
    @pytest.mark.parametrize(
        ("gres", "gpus"),
        [("", 0), ("gpu", 1), ("gpu:4", 4), ("gpu:a100:2", 2), ("gpu:a100", 1), ("gpu:3,x:9", 3)],
    )
    def test_gpus_are_counted(self, tmp_path, gres, gpus):
        assert Job(tmp_path, tmp_path, gres=gres).gpus == gpus

    def test_on_one_node(self, tmp_path):
        job = Job(
            tmp_path / "b", tmp_path / "o", gres="gpu:4", cpus=18, extra=("--config", "large")
        )
        script = training_script(job)
        lines = script.splitlines()
        for option in ("requeue", "nodes=1", "signal=B:USR1@120", "open-mode=append"):
            assert f"#SBATCH --{option}" in lines
        assert (
            "torchrun --nproc-per-node 4 --standalone -m bids_synthseg "
            f"{tmp_path}/b {tmp_path}/o participant --train --n-cpus 4 --config large &"
        ) in script

    def test_on_two_nodes_in_a_container(self, tmp_path):
        job = Job(tmp_path / "b", tmp_path / "o", container=tmp_path / "a.sif", nodes=2, n_procs=3)
        script = training_script(job)
        assert "apptainer exec --cleanenv --containall -B " in script
        assert "a.sif torchrun --nproc-per-node 3 --nnodes 2 --rdzv-backend c10d " in script
        assert '--rdzv-endpoint "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | ' in script

    @pytest.fixture
    def job(self, tmp_path):
        """job(seconds, code) -> a bash that runs a script whose run takes `seconds` and then, or
        when told to end, exits with `code`; the commands of SLURM write down their words."""
        folder = tmp_path / "bin"
        folder.mkdir()
        notes = tmp_path / "notes"
        tools = {
            "scancel": f'echo scancel "$@" >> {notes}; kill -TERM "$(cat {tmp_path}/run)"',
            "scontrol": f'echo scontrol "$@" >> {notes}',
            "srun": f"trap 'exit $CODE' TERM; echo $$ > {tmp_path}/run; echo begun\n"
            'sleep "$SECONDS_LONG" & wait; exit "$CODE"',
        }
        for name, text in tools.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)

        def start(seconds: float, code: int) -> subprocess.Popen:
            own = {
                "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
                "SLURM_JOB_ID": "7",
                "SLURM_CPUS_PER_TASK": "1",
                "SECONDS_LONG": str(seconds),
                "CODE": str(code),
            }
            script = training_script(Job(tmp_path / "b", tmp_path / "o"))
            return subprocess.Popen(
                ["bash", "-c", script], env=os.environ | own, stdout=subprocess.PIPE, text=True
            )

        return start

    @pytest.mark.parametrize(
        ("sent", "code", "notes"),
        [
            ("USR1", 1, ["scancel --signal=TERM 7", "scontrol requeue 7"]),
            ("USR1", 0, ["scancel --signal=TERM 7"]),  # it was at its last step
        ],
    )
    def test_the_time_is_almost_up(self, job, tmp_path, sent, code, notes):
        with job(60, code) as process:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(getattr(signal, f"SIG{sent}"))
        assert process.returncode == code
        assert (tmp_path / "notes").read_text().splitlines() == notes

    def test_preempted_jobs_wait_for_the_checkpoint(self, job, tmp_path):
        with job(60, 1) as process:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert process.poll() is None
            os.kill(int((tmp_path / "run").read_text()), signal.SIGTERM)  # SLURM tells the run too
        assert process.returncode == 1 and not (tmp_path / "notes").exists()

    @pytest.mark.parametrize("code", [0, 65])
    def test_a_run_that_ends_by_itself(self, job, tmp_path, code):
        process = job(0, code)
        process.communicate(timeout=60)
        assert process.returncode == code and not (tmp_path / "notes").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"time": "1:00\ntouch owned"}, {"partition": "a\r"}, {"gres": "gpu:1\x1b"},
        {"output_dir": "o\nrm"}, {"bids_dir": "b\u2028"}, {"container": Path("a\n.sif")},
        {"extra": ("--no-tta\n#SBATCH",)}, {"output_dir": "back\\slash"},
    ],
)  # fmt: skip
def test_no_word_becomes_a_line_of_the_script(tmp_path, change):
    folders = {name: tmp_path / change.pop(name, name) for name in ("bids_dir", "output_dir")}
    with pytest.raises(UsageProblem) as caught:
        Job(**folders, **change)
    assert len(str(caught.value).splitlines()) == 1


def test_a_percent_sign_in_a_path_is_none_of_slurms(tmp_path):
    script = array_script(Job(tmp_path / "b", tmp_path / "50%A"), [0])
    assert f"#SBATCH --output={tmp_path}/50%%A/logs/slurm-%A_%a.out\n" in script.replace("'", "")
    assert f"{tmp_path}/50%A participant" in script.replace("'", "")


def test_impossible_jobs(tmp_path):
    for change in ({"num_parts": 0}, {"mem_gb": 0}, {"nodes": 0}, {"n_procs": 0}):
        with pytest.raises(UsageProblem, match="at least 1"):
            Job(tmp_path, tmp_path, **change)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "in how many tasks"),
        (["--num-parts", "2", "--nodes", "2"], "--nodes only goes with --train"),
        (["--train", "--num-parts", "2"], "--num-parts does not go with --train"),
        (["--train", "--failed"], "--failed does not go"),
        (["--train", "--no-group"], "--group does not go"),
    ],
)
def test_words_that_contradict(tmp_path, words, complaint):
    done = CliRunner().invoke(command, ["submit", str(tmp_path), str(tmp_path / "o"), *words])
    assert isinstance(done.exception, UsageProblem) and complaint in str(done.exception)


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


def test_the_tool_trains(out, sbatch, tmp_path):
    words = ["submit", str(tmp_path / "b"), str(out), "--train", "--n-procs", "2"]
    shown = CliRunner().invoke(command, [*words, "--", "--config", "large"])
    assert shown.exit_code == 0 and "--nproc-per-node 2 --standalone" in shown.output
    assert "Job 41: training." in CliRunner().invoke(command, [*words, "--submit"]).output
    assert "#SBATCH --requeue" in sbatch.read_text()


@pytest.mark.slurm
def test_a_real_array(out, tmp_path, monkeypatch):
    """Five parts; one kills itself the first time, and it alone is submitted again."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM is running here")
    app = tmp_path / "bin" / "bids_synthseg"
    app.parent.mkdir()
    app.write_text(
        "#!/bin/bash\n"
        f"cd {out}/logs; I=$SLURM_ARRAY_TASK_ID; echo $I >> ran\n"
        "[ $I = 1 ] && [ $(grep -c 1 ran) = 1 ] && kill -9 $$\n"
        "printf 'subject\\tsession\\tstatus\\nsub-%d\\tn/a\\tdone\\n' $((I + 1)) "
        "> status_part-$I.tsv\n"
    )
    app.chmod(0o755)
    monkeypatch.setenv("PATH", f"{app.parent}{os.pathsep}{os.environ['PATH']}")
    words = ["submit", str(tmp_path), str(out), "--num-parts", "5", "--cpus", "1", "--mem-gb", "1"]
    words += ["--time", "00:01:00"]
    for more, left in (([], [1]), (["--failed"], [])):
        said = CliRunner().invoke(command, [*words, *more, "--no-group", "--submit"]).output
        number = said.split()[1].strip(":")
        deadline = time.monotonic() + 120
        while subprocess.run(["squeue", "-h", "-j", number], capture_output=True).stdout:
            if time.monotonic() > deadline:
                subprocess.run(["scancel", number], check=True)
                pytest.skip("the queue of SLURM is too long to wait for")
            time.sleep(0.5)
        assert parts_left(out, 5) == left
    assert sorted((out / "logs" / "ran").read_text().split()) == ["0", "1", "1", "2", "3", "4"]
