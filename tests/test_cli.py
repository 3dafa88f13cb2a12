"""The command line: what is understood, what is refused with which exit code."""

import json
import logging
import math
import subprocess
import sys
import types
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from conftest import nifti

from bids_synthseg import __version__, arguments, cli, console, work
from bids_synthseg.anatomy.labels import LabelTable
from bids_synthseg.bids import plan
from bids_synthseg.bids.methods import Methods
from bids_synthseg.bids.status import read_status
from bids_synthseg.errors import BadData, TryAgainLater, UsageProblem
from bids_synthseg.execution import in_turn
from bids_synthseg.toml import parse_toml

pytestmark = pytest.mark.usefixtures("package_log")


def call(*arguments):
    return console.run(cli.command, console.spread([str(a) for a in arguments], cli.MANY))


@pytest.fixture
def raw(bids_tree):
    """sub-01 with T1w and T2w, sub-02 with two sessions of T1w; files are never opened here."""
    return bids_tree(
        {
            "sub-01": {"anat": {"sub-01_T1w.nii.gz": None, "sub-01_T2w.nii.gz": None}},
            "sub-02": {
                f"ses-{s}": {"anat": {f"sub-02_ses-{s}_run-{r}_T1w.nii.gz": None for r in (1, 2)}}
                for s in ("a", "b")
            },
        }
    )


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for what the pipeline does; notes sessions, their options, and loaded devices."""
    noted = types.SimpleNamespace(sessions=[], failing=set(), options=None, loaded=[])

    def run_session(group, bids_dir, output_dir, segmenter, options):
        noted.sessions.append(group)
        noted.options = options
        if group.label in noted.failing:
            raise BadData(f"{group.label}: cannot be used; replace it")
        return types.SimpleNamespace(status="done", message="")

    def load(options):
        noted.loaded.append(options.device)
        return types.SimpleNamespace(table=LabelTable.default())

    def methods_of(groups, segmenter, options):
        return Methods(__version__, "0" * 64, ("T1w",), False, False, True, False, False)

    def choose_device(name):  # every device is there
        return torch.device("cpu" if name == "auto" else name)

    work._load.cache_clear()
    monkeypatch.setattr(work, "run_session", run_session)
    monkeypatch.setattr("bids_synthseg.pipeline.Segmenter.load", load)
    monkeypatch.setattr("bids_synthseg.pipeline.methods_of", methods_of)
    monkeypatch.setattr("bids_synthseg.pipeline.choose_device", choose_device)
    yield noted
    work._load.cache_clear()


def test_options_reach_the_pipeline(raw, tmp_path, pipeline):
    arguments = ["--device", "cuda:1", "--no-tta", "--save-posteriors", "tissue", "--n-cpus", "3"]
    arguments += [
        "--overwrite",
        "--redo-changed",
        "--save-per-image",
        "--all-scans",
        "--model",
        "w.safetensors",
    ]
    arguments += ["--write-preproc", "always", "--viewer", "none", "--n-procs", "1"]
    arguments += ["--derivatives", f"nesvor={tmp_path / 'nesvor'}"]
    (tmp_path / "nesvor").mkdir()
    about = {"Name": "a", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (tmp_path / "nesvor" / "dataset_description.json").write_text(json.dumps(about))
    assert call(raw, tmp_path / "out", "participant", *arguments) == 0
    assert [g.label for g in pipeline.sessions] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert vars(pipeline.options) == {
        "device": "cuda:1",
        "mirror": False,
        "save_posteriors": "tissue",
        "save_per_image": True,
        "write_preproc": "always",
        "model": Path("w.safetensors").absolute(),
        "all_scans": True,
        "overwrite": True,
        "redo_changed": True,
        "viewer": "none",
        "derivatives": {"nesvor": tmp_path / "nesvor"},
        "n_cpus": 3,
    }
    logs = tmp_path / "out" / "logs"
    assert len((logs / "status.tsv").read_text().splitlines()) == 4
    written = parse_toml((logs / "config.toml").read_text())
    assert written["segmentation"]["derivatives"] == [f"nesvor={tmp_path / 'nesvor'}"]
    assert (tmp_path / "out" / "dataset_description.json").is_file()


def test_a_run_says_what_it_did(raw, tmp_path, pipeline, capsys, names_only):
    assert call(raw, tmp_path / "out", "participant", "--participant-label", "01", "--no-tta") == 0
    logs = tmp_path / "out" / "logs"
    written = parse_toml((logs / "config.toml").read_text())
    assert written["command_line"]["participants"] == ["01"]
    assert written["command_line"]["bids_dir"] == str(raw)
    assert written["segmentation"]["mirror"] is False
    assert written["segmentation"]["write_preproc"] == "several"
    assert "billot2023" in (logs / "CITATION.bib").read_text()
    assert __version__ in (logs / "CITATION.md").read_text()
    capsys.readouterr()
    words = (raw, tmp_path / "out", "participant", "--participant-label", "01", "--dry-run")
    assert call(*words) == 0
    printed = capsys.readouterr()
    assert (logs / "plan.tsv").read_text() == printed.out
    assert printed.err.startswith("1 session, 2 scans: about")


def test_edited_sessions_do_not_go_through_the_network(raw, tmp_path, pipeline, monkeypatch):
    edited = []

    def find_edits(folder, groups, output_dir):
        return {("02", "a"): (folder / "map.nii.gz",)}

    def run_edited(group, maps, bids_dir, output_dir, segmenter, options):
        edited.append((group.label, maps))
        return types.SimpleNamespace(status="done", message="")

    monkeypatch.setattr("bids_synthseg.edits.find_edits", find_edits)
    monkeypatch.setattr(work, "run_edited", run_edited)
    (tmp_path / "mine").mkdir()
    chosen = ("--derivatives", f"edits={tmp_path / 'mine'}")
    assert call(raw, tmp_path / "out", "participant", *chosen) == 0
    assert edited == [("sub-02_ses-a", (tmp_path / "mine" / "map.nii.gz",))]
    assert [g.label for g in pipeline.sessions] == ["sub-01", "sub-02_ses-b"]


def test_a_job_array_does_every_session_once(raw, tmp_path, pipeline, monkeypatch, capsys):
    out = tmp_path / "out"
    words = (raw, out, "participant", "--num-parts", "2")
    for task in ("0", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert call(*words) == 0
    assert [g.label for g in pipeline.sessions] == ["sub-01", "sub-02_ses-b", "sub-02_ses-a"]
    logs = {path.name for path in (out / "logs").glob("*part-*")}
    assert logs == {
        "status_part-0.tsv", "status_part-1.tsv", "config_part-0.toml", "config_part-1.toml",
    }  # fmt: skip
    # The plan is that of the whole, whoever wrote it last.
    assert len((out / "logs" / "plan.tsv").read_text().splitlines()) == 1 + 6
    capsys.readouterr()
    assert call(*words, "--part-id", "0", "--dry-run") == 0
    assert "sub-02\tses-b" in (printed := capsys.readouterr().out) and "ses-a" not in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--part-id", "0"), "--part-id needs --num-parts"),
        (("--num-parts", "2"), "--num-parts needs --part-id"),
        (("--num-parts", "2", "--part-id", "2"), "counted from 0 to 1"),
        (("--num-parts", "0"), "--num-parts"),
        (("--train", "--num-parts", "2"), "--num-parts does not go together with --train"),
        (("--train", "--n-procs", "2"), "--n-procs does not go together with --train"),
    ],
)
def test_impossible_parts(raw, tmp_path, pipeline, monkeypatch, capsys, words, complaint):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert call(raw, tmp_path / "out", "participant", *words) == 64
    assert complaint in capsys.readouterr().err


def test_reports_alone_segment_nothing(raw, tmp_path, pipeline, monkeypatch):
    made = []

    def write_reports(bids_dir, output_dir, **chosen):
        made.append(chosen)
        return 1

    monkeypatch.setattr("bids_synthseg.bids.reports.write_reports", write_reports)
    words = ("--reports-only", "--viewer", "nilearn", "--participant-label", "02")
    assert call(raw, tmp_path / "out", "participant", *words) == 1
    assert made == [
        {"participants": ("02",), "sessions": (), "viewer": "nilearn", "table_of_links": {}}
    ]
    assert pipeline.sessions == []


def test_the_quality_column_chooses(raw, tmp_path, pipeline, capsys):
    rows = "filename\trating\n" + "".join(
        f"anat/sub-02_ses-a_run-{run}_T1w.nii.gz\t{rating}\n" for run, rating in ((1, 2), (2, 3.5))
    )
    (raw / "sub-02/ses-a/sub-02_ses-a_scans.tsv").write_text(rows)
    arguments = [raw, tmp_path / "out", "participant", "--participant-label", "02"]
    assert call(*arguments, "--quality-column", "rating") == 0
    assert [s.entities["run"] for g in pipeline.sessions for s in g.scans] == ["2", "1"]
    assert call(*arguments, "--quality-column", "stars") == 64
    assert "--quality-column stars: no scans.tsv" in capsys.readouterr().err


def test_defaults(raw, tmp_path, pipeline, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert call(raw, tmp_path / "out", "subject", "--notrack", "--skip-bids-validation") == 0
    assert pipeline.options.mirror is True
    assert pipeline.options.n_cpus == 1
    assert pipeline.options.model is None
    assert [len(g.scans) for g in pipeline.sessions] == [2, 1, 1]


@pytest.fixture
def engines(monkeypatch):
    """Engines of other processes do it in this one; what they are made with is noted."""
    noted = []

    def processes(work, n_procs, devices, n_cpus, logs):
        noted.append((work.options.device, n_procs, devices, n_cpus))
        return in_turn(work, logs)

    def on_dask(where, work, logs):
        noted.append((where, work.options.device, work.options.n_cpus))
        return in_turn(work, logs)

    monkeypatch.setattr("bids_synthseg.processes.processes", processes)
    monkeypatch.setattr("bids_synthseg.dask_cluster.on_scheduler", on_dask)
    monkeypatch.setattr("bids_synthseg.dask_cluster.on_cluster", on_dask)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    return noted


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # A single process is this one; it takes the first of several GPUs.
        (["--n-cpus", "8"], []),
        (["--n-procs", "1", "--device", "cuda"], []),
        (["--n-procs", "2", "--n-cpus", "8"], [("auto", 2, ["cpu"], 8)]),
        (["--n-procs", "9", "--n-cpus", "8"], [("auto", 3, ["cpu"], 8)]),
        (["--n-procs", "2", "--mem-gb", "2.5"], []),
        (["--device", "cuda", "--n-cpus", "8"], [("cuda", 3, ["cuda:0", "cuda:1"], 8)]),
        (["--device", "cuda:1", "--n-cpus", "8"], [("cuda:1", 2, ["cuda:1"], 8)]),
        (["--dask-scheduler", "tcp://x"], [("tcp://x", "auto", None)]),
        (["--dask-cluster", "x.toml", "--n-cpus", "3"], [(Path("x.toml"), "auto", 3)]),
    ],
)
def test_who_does_the_sessions(raw, tmp_path, pipeline, engines, monkeypatch, words, expected):
    monkeypatch.setattr("bids_synthseg.resources.available_memory_gb", lambda: 99.0)
    assert call(raw, tmp_path / "out", "participant", *words) == 0
    assert engines == expected
    assert len(pipeline.sessions) == 3
    # Where others do the work, this process keeps off the GPU.
    first = "cuda:0" if "--device" in words else "cpu"
    assert pipeline.loaded[0] == ("cpu" if expected else first)


def test_a_session_that_is_too_large_does_not_begin(raw, tmp_path, pipeline, monkeypatch, capsys):
    monkeypatch.setattr(plan, "MEMORY_MB", 900.0)
    monkeypatch.setattr(plan, "MEMORY_MB_PER_SCAN", 175.0)
    words = ("--mem-gb", "1.2", "--n-procs", "2")
    assert call(raw, tmp_path / "out", "participant", *words) == 1
    assert [g.label for g in pipeline.sessions] == ["sub-02_ses-a", "sub-02_ses-b"]
    assert "sub-01: needs about 1.2 GB of memory, there are 1.2; give" in capsys.readouterr().err


def test_without_mem_gb_what_there_is_counts(
    raw, tmp_path, pipeline, monkeypatch, capsys, names_only
):
    monkeypatch.setattr(plan, "MEMORY_MB", 2000.0)
    monkeypatch.setattr("bids_synthseg.resources.available_memory_gb", lambda: 1.9)
    assert call(raw, tmp_path / "out", "participant", "--dry-run") == 0
    assert "3 sessions will fail" in (planned := capsys.readouterr()).err
    assert planned.out.count("of memory, there are 1.9; give the job more") >= 3
    assert call(raw, tmp_path / "out", "participant") == 1
    assert pipeline.sessions == []
    assert call(raw, tmp_path / "out", "participant", "--mem-gb", "3") == 0


def test_a_scheduler_out_of_reach_is_for_later(raw, tmp_path, pipeline, monkeypatch, capsys):
    def on_scheduler(address, work, logs):
        def engine(groups):
            raise TryAgainLater(f"{address}: no answer; is the scheduler running?")
            yield

        return engine

    monkeypatch.setattr("bids_synthseg.dask_cluster.on_scheduler", on_scheduler)
    assert call(raw, tmp_path / "out", "participant", "--dask-scheduler", "tcp://x") == 75
    assert "Error: tcp://x: no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (console.Terminated("ended"), 143)]
)
def test_a_run_that_is_stopped(raw, tmp_path, pipeline, monkeypatch, capsys, stop, code):
    def run_session(*_):
        raise stop

    monkeypatch.setattr(work, "run_session", run_session)
    assert call(raw, tmp_path / "out", "participant") == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--participant-label", "01"], ["sub-01"]),
        (["--participant_label", "sub-02", "--session-id", "ses-b"], ["sub-02_ses-b"]),
        (["--participant-label", "01", "02", "--contrast", "T2w"], ["sub-01"]),
        (["--participant-label", "01", "--participant-label=02", "--session-label", "a", "b"],
         ["sub-02_ses-a", "sub-02_ses-b"]),
        (["--contrast", "t1w", "both"], ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]),
    ],
)  # fmt: skip
def test_selection(raw, tmp_path, pipeline, arguments, expected):
    assert call(raw, tmp_path / "out", "participant", *arguments) == 0
    assert [g.label for g in pipeline.sessions] == expected


def test_filter_file(raw, tmp_path, pipeline):
    filters = tmp_path / "filters.json"
    filters.write_text(json.dumps({"t1w": {"run": 2}, "bold": {"task": "rest"}}))
    arguments = ["--bids-filter-file", filters, "--participant-label", "02", "-q"]
    assert call(raw, tmp_path / "out", "participant", *arguments) == 0
    assert [s.entities["run"] for g in pipeline.sessions for s in g.scans] == ["2", "2"]


def test_a_failed_session_makes_the_exit_code_one(raw, tmp_path, pipeline, capsys):
    pipeline.failing = {"sub-01"}
    assert call(raw, tmp_path / "out", "participant") == 1
    assert len(pipeline.sessions) == 3
    assert "sub-01: cannot be used; replace it" in capsys.readouterr().err


def test_stop_on_first_crash(raw, tmp_path, pipeline):
    pipeline.failing = {"sub-01"}
    assert call(raw, tmp_path / "out", "participant", "--stop-on-first-crash") == 1
    assert len(pipeline.sessions) == 1


def test_dry_run_prints_the_plan_and_writes_nothing(raw, tmp_path, capsys, names_only):
    assert call(raw, tmp_path / "out", "participant", "--dry-run", "--contrast", "T1w") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["subject", "session", "image", "use", "seconds", "memory_mb"]
    assert ["sub-01", "n/a", "sub-01/anat/sub-01_T1w.nii.gz", "segmented"] in [r[:4] for r in rows]
    left_out = {row[2]: row[3] for row in rows[1:] if row[3] != "segmented"}
    assert left_out["sub-01/anat/sub-01_T2w.nii.gz"] == "left out: T2w was not asked for"
    assert "sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii.gz" in left_out
    assert not (tmp_path / "out").exists()


def test_dry_run_says_what_the_run_will_say(raw, tmp_path, capsys):
    """Every problem but those of the voxels themselves, with the words of the status table."""
    anat = raw / "sub-01/anat"
    for name in ("T1w", "T2w"):
        nifti(np.random.default_rng(0).gamma(3, 50, (5, 6, 7))).to_filename(
            anat / f"sub-01_{name}.nii.gz"
        )
    (anat / "sub-01_T2w.nii.gz").write_text("/annex/objects/MD5E-s1--0.nii.gz\n")
    linked = raw / "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w.nii.gz"
    linked.unlink()
    linked.symlink_to("gone")
    (raw / f"sub-{'a' * 220}" / "anat").mkdir(parents=True)
    (raw / f"sub-{'a' * 220}" / "anat" / f"sub-{'a' * 220}_T1w.nii").touch()
    words = (raw, tmp_path / "out", "participant")
    assert call(*words, "--dry-run") == 0
    printed = capsys.readouterr()
    rows = [line.split("\t") for line in printed.out.splitlines()]
    said = {
        row[0] + row[1]: row[3].removeprefix("fails: ")
        for row in rows
        if row[3].startswith("fails: ")
    }
    assert "git-annex" in said["sub-01n/a"]
    assert "the link leads nowhere" in said["sub-02ses-a"]
    assert "the file is empty" in said["sub-02ses-b"]
    assert "shorten" in said[f"sub-{'a' * 220}n/a"]
    assert "4 sessions will fail; 4 sessions" in printed.err
    assert call(*words, "--viewer", "none") == 1
    rows = read_status(tmp_path / "out/logs/status.tsv")
    assert {row["subject"] + row["session"]: row["message"] for row in rows} == said


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--device", "cuda:99"], 64, "not available here"),
        (["--model", "none.safetensors"], 66, "no such weights file"),
        (["--derivatives", "edits=none"], 66, "no such folder"),
    ],
)
def test_dry_run_refuses_what_the_run_would_refuse(raw, tmp_path, capsys, options, code, words):
    for more in ([], ["--dry-run"]):
        assert call(raw, tmp_path / "out", "participant", *options, *more) == code
        assert words in capsys.readouterr().err


def test_dry_run_checks_the_output(raw, tmp_path, capsys):
    (tmp_path / "file").touch()
    for output, code in ((raw, 64), (raw / "sub-01", 64), (tmp_path / "file", 73)):
        assert call(raw, output, "participant", "--dry-run") == code
        assert str(output) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["RAW", "OUT", "participants"], 17, "'participants'"),
        (["RAW", "OUT", "group"], 66, "no results of level participant"),
        (["RAW/nowhere", "OUT", "dataset"], 66, "nowhere"),
        (["RAW", "OUT", "group", "--session-label", "a"], 64, "--session-label does not go"),
        (["RAW", "OUT", "group", "--train"], 64, "--train does not go"),
        (["RAW", "OUT", "group", "--no-tta"], 64, "--no-tta does not go"),
        (["RAW", "OUT", "group", "--resume"], 64, "--resume does not go"),
        (["RAW", "OUT"], 64, "ANALYSIS_LEVEL"),
        (["RAW", "OUT", "participant", "--no-such-option"], 64, "--no-such-option"),
        (["RAW", "OUT", "participant", "--n-cpus", "0"], 64, "--n-cpus"),
        (["RAW", "OUT", "participant", "--n-procs", "0"], 64, "--n-procs"),
        (["RAW", "OUT", "participant", "--mem-gb", "0"], 64, "--mem-gb"),
        (
            ["RAW", "OUT", "participant", "--dask-scheduler", "a", "--dask-cluster", "b"],
            64,
            "--dask-scheduler and --dask-cluster: leave one",
        ),
        (
            ["RAW", "OUT", "participant", "--dask-cluster", "a", "--mem-gb", "2"],
            64,
            "--mem-gb is for this machine alone; leave it out with --dask-cluster",
        ),
        (["RAW", "OUT", "group", "--n-procs", "2"], 64, "--n-procs does not go"),
        (["RAW", "OUT", "participant", "--device", "gpu"], 64, "--device gpu"),
        (["RAW", "OUT", "participant", "--contrast", "FLAIR"], 64, "--contrast FLAIR"),
        (["RAW", "OUT", "participant", "--random-seed", "0"], 64, "--random-seed only goes"),
        (["RAW", "OUT", "participant", "--validation", "x"], 64, "--validation only goes"),
        (["RAW", "OUT", "participant", "--split-file", "x"], 64, "--split-file only goes"),
        (["RAW", "OUT", "participant", "--init-from", "x"], 64, "--init-from only goes"),
        (["RAW", "OUT", "participant", "--checkpoint-piece-mib", "9"], 64, "-mib only goes"),
        (["RAW", "OUT", "participant", "--train", "--checkpoint-piece-mib", "0"], 64, "piece-mib"),
        (["RAW", "OUT", "participant", "--train", "--overwrite"], 64, "--overwrite does not go"),
        (["RAW", "OUT", "participant", "--train", "--contrast", "T1w"], 64, "--contrast does not"),
        (
            ["RAW", "OUT", "participant", "--train", "--config", "synthseq"],
            66,
            "fetalsynthseg, inf",
        ),
        (["RAW/nowhere", "OUT", "participant", "--train"], 66, "nowhere"),
        (["RAW", "OUT", "participant", "--participant-label", "09"], 18, "sub-09"),
        (["RAW/nowhere", "OUT", "participant"], 66, "nowhere"),
        (["RAW", "OUT", "participant", "--bids-filter-file", "RAW/no.json"], 66, "no.json"),
        (["RAW", "OUT", "participant", "--bids-filter-file", "RAW/README.md"], 64, "README.md"),
        (["RAW", "RAW", "participant"], 64, "the output folder is the input"),
        (["RAW", "RAW/sub-01", "participant"], 64, "inside the input"),
        (["RAW", "FILE", "participant"], 73, "a file is in the way"),
        (["RAW", "OUT", "participant", "--train", "--resume"], 66, "no training run to resume"),
        (["RAW", "OUT", "participant", "--train", "--derivatives", "more"], 64, "NAME=PATH"),
    ],
)
def test_what_is_refused(raw, tmp_path, pipeline, capsys, arguments, code, words):
    (tmp_path / "file").touch()
    places = {"RAW": raw, "OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert call(*arguments) == code
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "Traceback" not in error
    assert pipeline.sessions == []


@pytest.mark.parametrize("level", ["group", "dataset"])
def test_group_tells_of_what_participant_did(raw, tmp_path, pipeline, capsys, level):
    pipeline.failing = {"sub-01"}
    assert call(raw, tmp_path / "out", "participant") == 1
    assert call(raw, tmp_path / "out", level, "--notrack", "--skip-bids-validation") == 0
    # The stand-in writes no volumes, so that none is done.
    assert "Sessions: 3, not done: 3." in capsys.readouterr().out
    assert "sub-01: cannot be used; replace it" in (tmp_path / "out" / "group.html").read_text()
    for name in ("volumes.tsv", "volumes.json", "qc.tsv", "qc.json"):
        assert (tmp_path / "out" / f"group_{name}").is_file()


def test_no_dataset_description(raw, tmp_path, pipeline, capsys):
    (raw / "dataset_description.json").unlink()
    assert call(raw, tmp_path / "out", "participant") == 66
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture
def training(monkeypatch):
    """Stands in for a training run; notes what it is told."""
    from bids_synthseg.learning import train

    told = {}

    def run_training(sources, out, config, **options):
        told.update(vars(sources), out=out, config=config, **options)
        return out / "model.safetensors"

    monkeypatch.setattr(train, "run_training", run_training)
    monkeypatch.setattr("bids_synthseg.resources.limit_threads", lambda n_threads: None)
    return told


def test_training_gets_its_options(raw, tmp_path, pipeline, training, capsys):
    arguments = ["--random-seed", "0", "--max-minutes", "1.5", "--device", "cpu", "--n-cpus", "1"]
    arguments += ["--derivatives", "a=x", "b=y=z", "--validation", "v", "w.npz", "--resume"]
    arguments += ["--participant-label", "01", "sub-02", "--session-label", "a"]
    arguments += ["--split-file", "s.tsv", "--init-from", "shipped", "--checkpoint-piece-mib", "15"]
    arguments += ["--config", "default"]
    assert call(raw, tmp_path / "out", "participant", "--train", *arguments) == 0
    config = training.pop("config")
    assert (config.seed, config.init_from, config.coarse_steps) == (0, "shipped", 6000)
    assert training == {
        "folders": [raw, Path("x"), Path("y=z")],
        "validation": (Path("v"), Path("w.npz")),
        "participants": ("01", "sub-02"),
        "sessions": ("a",),
        "split_file": Path("s.tsv"),
        "out": tmp_path / "out" / "training",
        "device": "cpu",
        "max_minutes": 1.5,
        "piece_mib": 15,
        "must_resume": True,
        "preset": "default",
    }
    assert "model.safetensors" in capsys.readouterr().out


def test_training_left_to_its_defaults(raw, tmp_path, pipeline, training):
    from bids_synthseg.learning.config import read_config

    assert call(raw, tmp_path / "out", "participant", "--train") == 0
    assert training.pop("config") == read_config("default")
    assert training == {
        "folders": [raw],
        "validation": (),
        "participants": (),
        "sessions": (),
        "split_file": None,
        "out": tmp_path / "out" / "training",
        "device": "cpu",
        "max_minutes": math.inf,
        "piece_mib": 0,
        "must_resume": False,
        "preset": "default",
    }


def test_a_preset_may_say_where_to_begin(raw, tmp_path, pipeline, training):
    out = tmp_path / "out"
    arguments = [raw, out, "participant", "--train", "--config", "adult-to-infant"]
    assert call(*arguments) == 0 and training["config"].init_from == "shipped"
    assert training["config"].keep_network
    assert call(*arguments, "--init-from", "own.safetensors") == 0
    assert training["config"].init_from == "own.safetensors"


def test_training_is_for_packs_too(tmp_path, pipeline, training):
    pack = tmp_path / "maps.npz"
    pack.touch()
    assert call(pack, tmp_path / "out", "participant", "--train") == 0
    assert training["folders"] == [pack]


def test_the_same_training_call_goes_on(tmp_path, phantom_labels, monkeypatch, caplog):
    """A run stopped by the clock goes on when it is called again, with or without --resume."""
    from training_samples import phantom_folder

    from bids_synthseg.learning import train

    monkeypatch.setattr(train, "preview_sheet", lambda *_, **__: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it for good
    folder, out = phantom_folder(tmp_path / "labels", phantom_labels), tmp_path / "out"
    config = tmp_path / "tiny.toml"
    config.write_text("shape = [16, 24, 16]\nbatch = 1\n[network]\nfeatures = [4]\nconvs = [1]\n")
    arguments = [folder, out, "participant", "--train", "--config", config, "--device", "cpu"]
    arguments += ["--n-cpus", "1", "--max-minutes", "1e-6"]
    assert call(*arguments, "--resume") == 66
    caplog.set_level("INFO", logger="bids_synthseg")
    logging.getLogger("bids_synthseg").addHandler(caplog.handler)
    for step, more in ((1, ()), (2, ()), (3, ("--resume",))):
        caplog.clear()
        assert call(*arguments, *more) == 0
        assert json.loads((out / "training" / "state.json").read_text())["step"] == step
        assert (f"resumed at step {step - 1}" in caplog.text) == (step > 1)
    assert "training\n" in (out / ".bidsignore").read_text()  # what validators skip


def test_several_problems_are_several_lines(capsys):
    """One each, all after the same word; blanks within a line are one."""

    @click.command()
    def failing():
        raise BadData("one:   first\ntwo: second")

    assert console.run(failing, []) == BadData.exit_code
    assert capsys.readouterr().err == "Error: one: first\ntwo: second\n"


def test_help_names_every_preset():
    from bids_synthseg.learning.config import presets

    (option,) = [one for one in cli.command.params if one.name == "config"]
    assert f"Presets: {', '.join(presets())}." in option.help


def test_spread():
    many = ("--label", "--other")
    assert console.spread(["in", "--label", "1", "2", "--other", "x", "-v", "y"], many) == [
        "in", "--label", "1", "--label", "2", "--other", "x", "-v", "y"
    ]  # fmt: skip
    assert console.spread(["--label=1", "2"], many) == ["--label=1", "--label", "2"]
    assert console.spread(["--label", "1", "--", "a", "b"], many)[2:] == ["--", "a", "b"]
    assert console.spread(["--label"], many) == ["--label"]


def test_named_paths_are_unique():
    assert arguments.named_paths(["a=/x"]) == {"a": Path("/x")}
    for wrong in (["a=/x", "a=/y"], ["/x"], ["=x"], ["a="]):
        with pytest.raises(UsageProblem, match="NAME=PATH"):
            arguments.named_paths(wrong)


def test_an_unexpected_exception_is_not_hidden(raw, tmp_path, pipeline, monkeypatch):
    def load(options):
        raise ZeroDivisionError

    monkeypatch.setattr("bids_synthseg.pipeline.Segmenter.load", load)
    with pytest.raises(ZeroDivisionError):
        call(raw, tmp_path / "out", "participant")


@pytest.mark.parametrize("module", ["cli", "workbench"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_need_no_heavy_packages(module, option):
    code = (
        f"import sys; from bids_synthseg import {module}; sys.argv = ['x', {option!r}]\n"
        f"try: {module}.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'bids', 'nibabel', 'scipy', 'numpy', 'matplotlib', 'SimpleITK'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    lines = result.stdout.splitlines()
    assert lines[-1] == "[]"
    assert option == "--help" or lines[0].endswith(f" {__version__}")


def test_figures_and_scores_are_commands(tmp_path, capsys):
    from bids_synthseg import workbench

    assert console.run(workbench.command, ["evaluate", str(tmp_path), str(tmp_path)]) == 66
    assert console.run(workbench.command, ["figure", "a", "b"]) == 64
    assert console.run(workbench.command, ["no-such-tool"]) == 64
    assert "dseg.tsv" in capsys.readouterr().err
