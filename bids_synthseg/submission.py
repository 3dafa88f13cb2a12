"""A data set as a SLURM job array: the script of the array, which of its parts are left, `sbatch`.

Every task does one part (`--num-parts`, `--part-id`); a job that waits for all of them makes the
group level. What is left is read from the plan and the status tables in the output, so that a part
that was killed, ran out of memory or never started counts as left.
"""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_synthseg.arguments import Part
from bids_synthseg.errors import InputMissing, TryAgainLater, UsageProblem
from bids_synthseg.tsv import read_rows

FINISHED = ("done", "skipped")


@dataclass(frozen=True)
class Job:
    """What to run where.

    container: a SIF to run with Apptainer, None for the command as it is installed; cpus, mem_gb,
    time: of one task; throttle: tasks at once, 0 for any number; extra: more words for the App.
    """

    bids_dir: Path
    output_dir: Path
    num_parts: int
    container: Path | None = None
    partition: str = ""
    gres: str = ""
    time: str = "04:00:00"
    mem_gb: int = 4
    cpus: int = 2
    throttle: int = 0
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.num_parts, self.mem_gb, self.cpus) < 1 or self.throttle < 0:
            raise UsageProblem("--num-parts, --mem-gb and --cpus must be at least 1")


def parts_left(output_dir: Path, num_parts: int) -> list[int]:
    """The parts that have a session which is not finished.

    Raises InputMissing where there is no plan: nothing has run yet.
    """
    logs = output_dir / "logs"
    plan = logs / "plan.tsv"
    if not plan.is_file():
        raise InputMissing(f"{plan}: missing, so nothing has run here; leave out --failed")
    rows = read_rows(plan, "subject", "session")
    sessions = list(dict.fromkeys((row["subject"], row["session"]) for row in rows))
    left = []
    for number in range(num_parts):
        table = read_rows(logs / f"status_part-{number}.tsv")
        done = {(row["subject"], row["session"]) for row in table if row["status"] in FINISHED}
        if not done.issuperset(Part(number, num_parts).share(sessions)):
            left.append(number)
    return left


def array_text(parts: Sequence[int], throttle: int = 0) -> str:
    """Numbers as SLURM writes them: "0-4,7", with "%2" for two at once."""
    runs: list[list[int]] = []
    for number in sorted(parts):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{text}%{throttle}" if throttle else text


def array_script(job: Job, parts: Sequence[int]) -> str:
    """The sbatch script of the participant level."""
    words = ["participant", "--num-parts", str(job.num_parts)]
    # The shell of the task knows its number and its cores.
    command = (
        f"{_command(job, words)} "
        '--part-id "$SLURM_ARRAY_TASK_ID" --n-cpus "$SLURM_CPUS_PER_TASK"'
        f"{''.join(f' {shlex.quote(word)}' for word in job.extra)}"
    )
    return _script(job, "bids_synthseg", command, {"array": array_text(parts, job.throttle)})


def group_script(job: Job) -> str:
    """The sbatch script of the group level."""
    return _script(job, "bids_synthseg_group", _command(job, ["group"]), {})


def submit(script: str, output_dir: Path, after: str = "") -> str:
    """Hand a script to sbatch; returns the number of the job. `after`: a job to wait for, however
    that ends.

    Raises InputMissing where there is no sbatch, TryAgainLater where it refuses.
    """
    if shutil.which("sbatch") is None:
        raise InputMissing("sbatch: not found; submit on a login node of the cluster, not here")
    # SLURM does not make the folder of its logs, and fails without a word where it is missing.
    (output_dir / "logs").mkdir(parents=True, exist_ok=True)
    wait = [f"--dependency=afterany:{after}"] if after else []
    done = subprocess.run(
        ["sbatch", "--parsable", *wait], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TryAgainLater(f"sbatch: {' '.join(done.stderr.split())}; correct the options")
    return done.stdout.strip().partition(";")[0]


def _command(job: Job, words: Sequence[str]) -> str:
    """The App with its folders: installed, or in a container that sees nothing else."""
    bids_dir, output_dir = job.bids_dir.resolve(), job.output_dir.resolve()
    if job.container is None:
        return shlex.join(["bids_synthseg", str(bids_dir), str(output_dir), *words])
    gpu = ["--nv"] if "gpu" in job.gres else []
    apptainer = ["apptainer", "run", "--cleanenv", "--containall", *gpu]
    binds = ["-B", f"{bids_dir}:/data:ro", "-B", f"{output_dir}:/out"]
    sif = str(job.container.resolve())
    return shlex.join([*apptainer, *binds, sif, "/data", "/out", *words])


def _script(job: Job, name: str, command: str, more: dict[str, str]) -> str:
    settings = {
        "job-name": name,
        **more,
        "time": job.time,
        "mem": f"{job.mem_gb}G",
        "cpus-per-task": str(job.cpus),
        "partition": job.partition,
        "gres": job.gres,
        "output": f"{job.output_dir.resolve()}/logs/slurm-{'%A_%a' if more else '%j'}.out",
    }
    lines = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in settings.items() if value]
    return "\n".join(["#!/bin/bash", *lines, "set -euo pipefail", command, ""])
