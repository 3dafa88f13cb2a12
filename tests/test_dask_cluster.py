"""Sessions on Dask workers: each once, a dying worker's again, a lost scheduler is no crash."""

import gc
import os
import pickle
import re
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_synthseg import __version__, cluster_file, dask_cluster
from bids_synthseg.bids.scans import ScanGroup
from bids_synthseg.bids.status import read_status
from bids_synthseg.cluster_file import ClusterFile
from bids_synthseg.dask_cluster import on_cluster, on_scheduler
from bids_synthseg.errors import BadData, InputMissing, TryAgainLater, UsageProblem
from bids_synthseg.execution import run_sessions

KilledWorker = pytest.importorskip("distributed").KilledWorker

GROUPS = [ScanGroup(subject, None, ()) for subject in ("01", "02", "03", "04", "05")]


@dataclass(frozen=True)
class Settings:
    device: str = "auto"
    n_cpus: int | None = None


@dataclass(frozen=True)
class Work:
    """In place of the real one: notes its calls in a file, and kills its process where told to.

    deaths: label -> how often; held: labels that wait for a file "go".
    """

    folder: Path
    options: Settings = Settings()
    deaths: dict = field(default_factory=dict)
    held: tuple = ()

    def with_device(self, device, n_cpus=None):
        return replace(self, options=Settings(device, n_cpus or self.options.n_cpus))

    def calls(self):
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []

    def __call__(self, group):
        with (self.folder / "calls").open("a") as stream:
            stream.write(f"{group.label}\n")
        while group.label in self.held and not (self.folder / "go").exists():
            time.sleep(0.05)
        if self.calls().count(group.label) <= self.deaths.get(group.label, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if group.label == "sub-04":
            raise BadData("x.nii.gz: empty; copy it again")
        return SimpleNamespace(status="done", message=str(self.options.n_cpus))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dask_cluster, "POLL_S", 0.05)
    yield
    # A client of Dask that never came to be waits for a lock when it goes, which the next one that
    # is made may hold just then.
    gc.collect()


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


@pytest.fixture
def toml(tmp_path):
    """toml(line, ...) -> a cluster file of these lines."""

    def write(*lines):
        path = tmp_path / "cluster.toml"
        path.write_text("\n".join(["[cluster]", *lines]))
        return path

    return write


@pytest.fixture
def local(toml):
    """A cluster of two workers of three threads each in this process."""
    return toml('type = "local"', "jobs = 2", "processes = false", "threads_per_worker = 3")


@pytest.fixture
def scheduler():
    """A scheduler with one worker, both in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


def rows(output):
    return {row["subject"]: row for row in read_status(output / "logs" / "status.tsv")}


def test_every_session_once_on_a_cluster_of_our_own(tmp_path, logs, local, caplog):
    caplog.set_level("INFO", "bids_synthseg")
    work = Work(tmp_path)
    assert run_sessions(GROUPS, on_cluster(local, work, logs), tmp_path) == 1
    assert sorted(work.calls()) == [group.label for group in GROUPS]
    written = rows(tmp_path)
    assert [row["status"] for row in written.values()] == [*["done"] * 3, "failed", "done"]
    assert written["sub-04"]["message"] == "x.nii.gz: empty; copy it again"
    # Threads are the worker's, and its peak of memory is known.
    assert written["sub-01"]["message"] == "3" and float(written["sub-01"]["peak_mb"]) > 1
    assert "done after" in (logs / "sub-02.log").read_text()
    assert "Dask workers: 2" in caplog.messages


def test_a_scheduler_that_runs_already(tmp_path, logs, scheduler):
    work = Work(tmp_path, Settings(n_cpus=7))
    engine = on_scheduler(scheduler.scheduler_address, work, logs)
    assert run_sessions(GROUPS[:2], engine, tmp_path) == 0
    assert {row["message"] for row in rows(tmp_path).values()} == {"7"}  # the user's own number


def test_no_more_begin_than_there_are_workers(tmp_path, logs, scheduler):
    engine = on_scheduler(scheduler.scheduler_address, Work(tmp_path), logs)
    events = [(group.subject, outcome is None) for group, outcome in engine(GROUPS[:3])]
    assert events == [(s, begins) for s in ("01", "02", "03") for begins in (True, False)]


def test_closed_early(tmp_path, logs, scheduler):
    work = Work(tmp_path, held=("sub-01",))
    events = on_scheduler(scheduler.scheduler_address, work, logs)(GROUPS)
    assert next(events) == (GROUPS[0], None)
    events.close()
    (tmp_path / "go").touch()
    assert work.calls() in ([], ["sub-01"])


def test_a_worker_that_dies(tmp_path, logs, toml):
    # A real process, which the first session kills once.
    work = Work(tmp_path, deaths={"sub-01": 1})
    file = toml('type = "local"', "jobs = 1", "threads_per_worker = 1")
    assert run_sessions(GROUPS[:2], on_cluster(file, work, logs), tmp_path) == 0
    assert work.calls() == ["sub-01", "sub-01", "sub-02"]
    assert [row["status"] for row in rows(tmp_path).values()] == ["done", "done"]


def test_a_worker_that_is_given_up_is_replaced(tmp_path, logs, toml, monkeypatch):
    # As where starting Python anew takes longer than the cluster waits.
    monkeypatch.setattr(dask_cluster, "RETURN_S", 0.1)
    clusters, looks = [], []
    connect, count = dask_cluster._client, dask_cluster._count_workers

    def noting(target):
        clusters.append(target)
        return connect(target)

    def patient(client):
        looks.append(client)
        assert len(looks) < 200, "no worker came"
        return count(client)

    monkeypatch.setattr(dask_cluster, "_client", noting)
    monkeypatch.setattr(dask_cluster, "_count_workers", patient)
    engine = on_cluster(toml('type = "local"', "processes = false"), Work(tmp_path), logs)
    events = engine(GROUPS[:2])
    assert [next(events)[1] is None, next(events)[1].status] == [True, "done"]
    (address,) = clusters[0].scheduler.workers
    clusters[0].sync(clusters[0].scheduler.remove_worker, address, stimulus_id="test")
    assert [end and end.status for _, end in events] == [None, "done"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (lambda: KilledWorker("sub-01", None, 2), "killed its worker 3 times, .* for memory"),
        (lambda: ImportError("No module named 'bids_synthseg'"), "could not begin it .*No module"),
    ],
)
def test_what_fails_a_session_for_good(error, line):
    future = SimpleNamespace(cancelled=lambda: False, exception=error)
    outcome = dask_cluster._outcome(future)
    assert outcome.status == "failed" and re.search(line, outcome.message)


def test_no_scheduler_there(tmp_path, logs, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_S", 0.3)
    engine = on_scheduler("tcp://127.0.0.1:9", Work(tmp_path), logs)
    with pytest.raises(TryAgainLater, match=r"127\.0\.0\.1:9: no Dask scheduler answers"):
        run_sessions(GROUPS, engine, tmp_path)


def test_no_address(tmp_path, logs):
    with pytest.raises(UsageProblem, match=r"--dask-scheduler nonsense://x.*tcp://HOST:PORT"):
        run_sessions(GROUPS, on_scheduler("nonsense://x", Work(tmp_path), logs), tmp_path)


def test_a_scheduler_that_goes(tmp_path, logs, scheduler):
    work = Work(tmp_path, held=("sub-01",))
    engine = on_scheduler(scheduler.scheduler_address, work, logs)

    def engine_and_end(groups):
        for event in engine(groups):
            yield event
            (tmp_path / "go").touch()
            scheduler.close()

    with pytest.raises(TryAgainLater, match="scheduler has gone"):
        run_sessions(GROUPS, engine_and_end, tmp_path)
    assert rows(tmp_path)["sub-01"]["status"] == "interrupted"


def test_a_worker_of_another_version(tmp_path, logs):
    outcome = dask_cluster._session("0.0.0", b"not even looked at")
    assert outcome.status == "failed" and "not 0.0.0; install the same" in outcome.message


def test_a_worker_that_sees_other_folders(tmp_path):
    payload = pickle.dumps((Work(tmp_path), GROUPS[0], tmp_path / "elsewhere" / "logs"))
    outcome = dask_cluster._session(__version__, payload)
    assert outcome.status == "failed" and "does not see" in outcome.message
    assert not (tmp_path / "elsewhere").exists()


def test_without_dask(tmp_path, logs, local, monkeypatch):
    monkeypatch.setattr(cluster_file, "find_spec", lambda name: None)
    with pytest.raises(UsageProblem, match=r"distributed: not installed; pip install .*\[dask\]"):
        on_scheduler("tcp://127.0.0.1:9", Work(tmp_path), logs)
    with pytest.raises(UsageProblem, match="distributed: not installed"):
        on_cluster(local, Work(tmp_path), logs)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["jobs = 2"], "type = '' is not known; use one of slurm, pbs"),
        (['type = "cloud"'], "type = 'cloud' is not known"),
        (['type = "slurm"', "jobs = 0"], "jobs must be a whole number"),
        (['type = "slurm"', "jobs = true"], "jobs must be a whole number"),
        (['type = "slurm"', "gpus = 2"], "gpus must be true or false"),
        (['type = "local"', "gpus = true"], "--device cuda --n-procs"),
        (['type = "pbs"', "gpus = true", "processes = 2"], "leave out processes"),
        (["type = "], "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used(toml, lines, complaint):
    file = toml(*lines)
    with pytest.raises(UsageProblem, match=r"cluster\.toml") as caught:
        ClusterFile.read(file)
    assert complaint in str(caught.value)


def test_no_such_file_and_no_table(tmp_path):
    with pytest.raises(InputMissing, match="no such file"):
        ClusterFile.read(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("cluster = 3")
    with pytest.raises(UsageProblem, match=r"has no table \[cluster\]"):
        ClusterFile.read(tmp_path / "empty.toml")


def test_what_a_file_asks_for_becomes_a_job_script(toml, logs):
    jobqueue = pytest.importorskip("dask_jobqueue")
    file = ClusterFile.read(
        toml(
            'type = "slurm"',
            "gpus = true",
            "cores = 4",
            'memory = "8GB"',
            'worker_extra_args = ["--lifetime", "50m"]',
            "[cluster.scheduler_options]",
            'host = "127.0.0.1"',
        )
    )
    assert (file.kind, file.jobs, file.gpus) == ("slurm", 1, True)
    with jobqueue.SLURMCluster(**file.keywords(1, logs)) as cluster:
        script = cluster.job_script()
    for words in (
        "-J bids_synthseg",
        "--cpus-per-task=4",
        "--nthreads 4",
        "--lifetime 50m",
        "--resources GPU=1",
        f"{logs}/",
    ):
        assert words in script
    assert "--nworkers" not in script  # one session at a time has all cores


def test_keys_that_the_class_does_not_know(tmp_path, logs, toml, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(dask_cluster.shutil, "which", lambda name: name)
    for line, complaint in (("corse = 4", "corse"), ("cores = 4", "must specify .* memory")):
        engine = on_cluster(toml('type = "slurm"', line), Work(tmp_path), logs)
        with pytest.raises(UsageProblem, match=f"SLURMCluster: .*{complaint}"):
            run_sessions(GROUPS, engine, tmp_path)


def test_a_queue_that_is_not_here(tmp_path, logs, toml, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(dask_cluster.shutil, "which", lambda name: None)
    engine = on_cluster(toml('type = "lsf"'), Work(tmp_path), logs)
    with pytest.raises(InputMissing, match="bsub: not found"):
        run_sessions(GROUPS, engine, tmp_path)


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """sbatch(text) makes that shell script the machine's sbatch, and scancel a note of its call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(text):
        for name, body in (("sbatch", text), ("scancel", f"echo $1 >>{tmp_path}/cancelled")):
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)

    return install


SLURM = (
    'type = "slurm"',
    "jobs = 2",
    "cores = 1",
    'memory = "1GB"',
    'scheduler_options = { host = "127.0.0.1" }',
)


def test_a_queue_that_refuses(tmp_path, logs, toml, sbatch, caplog):
    pytest.importorskip("dask_jobqueue")
    sbatch("echo invalid partition >&2; exit 1")
    engine = on_cluster(toml(*SLURM), Work(tmp_path), logs)
    with pytest.raises(TryAgainLater, match="took none of the jobs"):
        run_sessions(GROUPS, engine, tmp_path)
    assert "the queue refused a job: invalid partition" in caplog.messages
    assert not any(record.exc_info for record in caplog.records)


def test_jobs_end_with_the_engine(tmp_path, logs, toml, sbatch, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    # One job of two is taken; its worker never comes.
    sbatch(f"mkdir {tmp_path}/first 2>/dev/null || exit 1; echo Submitted batch job 7")

    looks = []

    def count(client):
        if (tmp_path / "first").exists():
            looks.append(client)
        if len(looks) > 9:
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(dask_cluster, "_count_workers", count)
    with pytest.raises(KeyboardInterrupt):
        run_sessions(GROUPS, on_cluster(toml(*SLURM), Work(tmp_path), logs), tmp_path)
    assert (tmp_path / "cancelled").read_text().split() == ["7"]


def test_gpus_move_the_work_there(tmp_path, logs, toml, monkeypatch):
    seen = []
    monkeypatch.setattr(Work, "with_device", lambda self, device: seen.append(device) or self)
    on_cluster(toml('type = "slurm"', "gpus = true"), Work(tmp_path), logs)
    assert seen == ["cuda"]


def test_a_cluster_of_our_own_listens_here_and_only_to_its_own(toml, logs, local):
    from distributed import Client, LocalCluster

    with LocalCluster(**ClusterFile.read(local).keywords(1, logs)) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        with pytest.raises(OSError):  # who speaks plainly is not heard
            Client(address.replace("tls", "tcp"), timeout=1, set_as_default=False)
        gc.collect()
        with Client(cluster, set_as_default=False) as client:
            assert client.submit(sum, [1, 2]).result() == 3


def test_a_scheduler_with_certificates(tmp_path, logs):
    from dask import config
    from distributed import LocalCluster, Security

    security = Security.temporary()
    files = {}
    for name in ("ca_file", "client_cert", "client_key"):
        files[name] = tmp_path / name
        files[name].write_text(getattr(security, f"tls_{name}"))
    with LocalCluster(
        n_workers=1, processes=False, security=security, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        engine = on_scheduler(cluster.scheduler_address, Work(tmp_path), logs)
        with pytest.raises(UsageProblem, match="no certificates for TLS"):
            run_sessions(GROUPS[:1], engine, tmp_path)
        gc.collect()
        settings = {
            "distributed.comm.tls.ca-file": str(files["ca_file"]),
            "distributed.comm.tls.client.cert": str(files["client_cert"]),
            "distributed.comm.tls.client.key": str(files["client_key"]),
        }
        with config.set(settings):
            assert run_sessions(GROUPS[:1], engine, tmp_path) == 0


def test_certificates_of_jobs(toml, logs, tmp_path, caplog):
    jobqueue = pytest.importorskip("dask_jobqueue")
    with jobqueue.SLURMCluster(**ClusterFile.read(toml(*SLURM)).keywords(1, logs)) as cluster:
        script = cluster.job_script()
        keys = list(logs.glob(".dask-jobqueue.worker.*"))
        assert len(keys) == 3 and {key.stat().st_mode & 0o777 for key in keys} == {0o600}
        assert "tls://127.0.0.1:" in script and all(str(key) in script for key in keys)
    given = ClusterFile.read(toml(*SLURM, '[cluster.security]\ntls_ca_file = "ca.pem"'))
    assert given.keywords(1, logs)["security"].tls_ca_file == "ca.pem"
    with pytest.raises(UsageProblem, match=r"security: .*tls_nonsense"):
        ClusterFile.read(toml(*SLURM, 'security = { tls_nonsense = "x" }')).keywords(1, logs)
    assert "run code as you" not in caplog.text
    plain = ClusterFile.read(toml(*SLURM, "security = false"))
    assert plain.keywords(1, logs)["security"] is None and "run code as you" in caplog.text
