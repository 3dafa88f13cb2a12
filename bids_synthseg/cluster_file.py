"""The TOML file of --dask-cluster: the class of Dask that starts the workers, its arguments."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_synthseg.errors import BadData, UsageProblem
from bids_synthseg.reading import read_toml

if TYPE_CHECKING:
    from distributed import Security

LOG = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
"""Where a cluster on this machine listens: for nobody else."""
CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "local": "LocalCluster",
}
_OWN_KEYS = (("type", ""), ("jobs", 1), ("gpus", False))  # with their defaults
GPU_RESOURCE = {"GPU": 1}


@dataclass(frozen=True)
class ClusterFile:
    """What the table [cluster] of a TOML file asks for.

    kind: key of CLUSTERS; jobs: worker jobs, at most; gpus: every job has one GPU; settings: all
    other keys, for the class in CLUSTERS.
    """

    path: Path
    kind: str
    jobs: int
    gpus: bool
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in tuple(CLUSTERS):  # a list is no key
            kinds = ", ".join(CLUSTERS)
            raise UsageProblem(
                f"{self.path}: type = {self.kind!r} is not known; use one of {kinds}"
            )
        if type(self.jobs) is not int or self.jobs < 1:
            raise UsageProblem(f"{self.path}: jobs must be a whole number from 1")
        if type(self.gpus) is not bool:
            raise UsageProblem(f"{self.path}: gpus must be true or false")
        if self.gpus and self.kind == "local":
            raise UsageProblem(f"{self.path}: for GPUs of this machine use --device cuda --n-procs")
        if self.gpus and self.settings.get("processes", 1) != 1:
            raise UsageProblem(f"{self.path}: with gpus leave out processes, and raise jobs")

    @staticmethod
    def read(path: Path) -> "ClusterFile":
        """Raises InputMissing where there is no such file, UsageProblem for what it says."""
        try:
            content = read_toml(path)
        except BadData as error:
            raise UsageProblem(str(error)) from error
        table = content.get("cluster")
        if not isinstance(table, dict):
            raise UsageProblem(f"{path}: has no table [cluster]; see docs/dask.md")
        settings = dict(table)
        kind, jobs, gpus = (settings.pop(*of) for of in _OWN_KEYS)
        return ClusterFile(path, kind, jobs, gpus, settings)

    def keywords(self, n_jobs: int, logs: Path) -> dict[str, Any]:
        """Arguments of the class: the file's own keys before what is the better default here."""
        # Dask unpacks what it is sent, so that whoever may speak to it runs code as the user.
        secure = {"security": self._security()}
        if self.kind == "local":
            here = {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0"}
            return {"n_workers": n_jobs, **here, **self.settings, **secure}
        # One session at a time in a job, with all its cores; its log where the others are. There
        # lie the keys that the jobs need as well, for this user alone.
        defaults = {"processes": 1, "job_name": "bids_synthseg", "log_directory": str(logs)}
        defaults["shared_temp_directory"] = str(logs)
        given = {**self.settings, **secure}
        words = [*given.pop("worker_extra_args", []), "--no-dashboard"]
        if self.gpus:
            offers = [f"{name}={count}" for name, count in GPU_RESOURCE.items()]
            words += ["--resources", ",".join(offers)]
        # No web page, and what Dask serves in its place for nobody else, on no fixed port: another
        # run may be going on on this login node.
        scheduler = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
        scheduler |= given.pop("scheduler_options", {})
        return {**defaults, **given, "worker_extra_args": words, "scheduler_options": scheduler}

    def _security(self) -> "Security | None":
        """Certificates made for this run, or those in files that the table `security` names, as
        Dask calls them (tls_ca_file, ...); None where `security = false` asks for none.

        Raises UsageProblem for other values, and where a package is missing.
        """
        from distributed import Security

        wanted = self.settings.get("security", True)
        if wanted is True:
            need("cryptography")
            return Security.temporary()
        if wanted is False:
            LOG.warning("%s: security = false: who reaches the port can run code as you", self.path)
            return None
        try:
            return Security(**wanted, require_encryption=True)
        except TypeError as error:
            reason = f"{self.path}: security: {error}; see docs/dask.md"
            raise UsageProblem(reason) from error


def need(package: str) -> None:
    """Raises UsageProblem where a package is not installed."""
    if find_spec(package) is None:
        raise UsageProblem(
            f"{package}: not installed; pip install 'bids_synthseg[dask]' here and on the workers"
        )
