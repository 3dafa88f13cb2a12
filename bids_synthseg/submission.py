"""A data set, or a training run, as SLURM jobs: the scripts, which parts are left, `sbatch`.

Every task of an array does one part (`--num-parts`, `--part-id`); a job that waits for all of them
makes the group level. What is left is read from the plan and the status tables in the output, so
that a part that was killed, ran out of memory or never started counts as left.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bids_synthseg.arguments import Part
from bids_synthseg.bids.status import read_status
from bids_synthseg.errors import InputMissing, TryAgainLater, UsageProblem
from bids_synthseg.storage import make_folder
from bids_synthseg.tsv import read_rows

FINISHED = ("done", "skipped")

PATH_OPTIONS = (
    "--bids-database-dir",
    "--bids-filter-file",
    "--config",
    "--derivatives",
    "--init-from",
    "--model",
    "--split-file",
    "--validation",
)
"""Words of the App after which files or folders stand."""
NAMES_TOO = ("--config", "--init-from")
"""Those after which the name of something that ships may stand instead."""

NOTICE_S = 120
"""A training run is told so long before its time is up: room for a step and a checkpoint."""

_GOES_ON = """\
again=""
# The time is almost up: the run makes a checkpoint and ends, the job gets into the queue again.
trap 'again=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
# Preempted or cancelled: the run is told as well, and this shell waits for its checkpoint.
trap : TERM
{command} &
step=$!
# A trap ends a wait, not the run.
while kill -0 "$step" 2> /dev/null; do wait "$step" || true; done
code=0
wait "$step" || code=$?
if [ -n "$again" ] && [ "$code" -ne 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code\""""


@dataclass(frozen=True)
class Job:
    """What to run where.

    container: a SIF to run with Apptainer, None for the command as it is installed; cpus, mem_gb,
    time: of one task, which for training is a node; n_procs: sessions at once in a task, None for
    what the App chooses, or processes per node that train, None for one per GPU; throttle: tasks at
    once, 0 for any number; extra: more words for the App. Raises UsageProblem.
    """

    bids_dir: Path
    output_dir: Path
    num_parts: int = 1
    container: Path | None = None
    partition: str = ""
    gres: str = ""
    time: str = "04:00:00"
    mem_gb: int = 4
    cpus: int = 2
    n_procs: int | None = None
    nodes: int = 1
    throttle: int = 0
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n_procs = 1 if self.n_procs is None else self.n_procs
        counts = (self.num_parts, self.mem_gb, self.cpus, self.nodes, n_procs)
        if min(counts) < 1 or self.throttle < 0:
            raise UsageProblem(
                "--num-parts, --mem-gb, --cpus, --nodes and --n-procs must be at least 1"
            )
        folders = (self.bids_dir.resolve(), self.output_dir.resolve(), self.container or "")
        for word in (*folders, self.partition, self.gres, self.time, *self.extra):
            # What follows a line break in a comment of the script would be a command.
            if not str(word).isprintable():
                raise UsageProblem(
                    f"{str(word)!r}: a line break or another character that cannot be seen; "
                    "correct the option, or rename the folder"
                )
        if "\\" in str(self.output_dir.resolve()):
            raise UsageProblem(
                f"{self.output_dir}: SLURM reads a backslash as more than a character; rename it"
            )

    @property
    def gpus(self) -> int:
        """GPUs of one task: the number at the end of "gpu:a100:4", else 1, 0 without "gpu"."""
        if "gpu" not in self.gres:
            return 0
        count = re.search(r"gpu[^,]*:(\d+)(?=,|$)", self.gres)
        return int(count[1]) if count else 1


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
        table = read_status(logs / f"status_part-{number}.tsv")
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
    words = ["--num-parts", str(job.num_parts), "--mem-gb", str(job.mem_gb)]
    if job.n_procs:
        words += ["--n-procs", str(job.n_procs)]
    extra, paths = _with_absolute_paths(job.extra)
    # The shell of the task knows its number and its cores. It gives its place to the App, since
    # SLURM tells the shell alone that the job is to end.
    command = (
        f"exec {_command(job, 'participant', words, paths)} "
        '--part-id "$SLURM_ARRAY_TASK_ID" --n-cpus "$SLURM_CPUS_PER_TASK"'
        f"{''.join(f' {shlex.quote(word)}' for word in extra)}"
    )
    array = {"array": array_text(parts, job.throttle)}
    return _script(job, "bids_synthseg", "slurm-%A_%a", command, array)


def group_script(job: Job) -> str:
    """The sbatch script of the group level."""
    return _script(job, "bids_synthseg_group", "slurm-%j", f"exec {_command(job, 'group')}")


def training_script(job: Job) -> str:
    """The sbatch script of a training run on one or several nodes, which goes on by itself.

    A job that is preempted, or about to reach its time limit, writes a checkpoint and waits for its
    turn again.
    """
    processes = job.n_procs or job.gpus or 1
    words = ["--train", "--n-cpus", str(max(1, job.cpus // processes))]
    extra, paths = _with_absolute_paths(job.extra)
    torchrun = ["torchrun", "--nproc-per-node", str(processes)]
    meeting = ""
    if job.nodes == 1:
        torchrun.append("--standalone")
    else:
        torchrun += ["--nnodes", str(job.nodes), "--rdzv-backend", "c10d"]
        # Two jobs may share a node: ports differ. Known to the shell of the job only.
        meeting = (
            ' --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint '
            '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            ':$((20000 + SLURM_JOB_ID % 10000))"'
        )
    app = [*_folders(job), "participant", *words, *extra]
    command = (
        'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" '
        f"{shlex.join([*_inside(job, paths, 'exec'), *torchrun])}{meeting} "
        f"{shlex.join(['-m', 'bids_synthseg', *app])}"
    )
    settings: dict[str, str | None] = {
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "requeue": None,
        "signal": f"B:USR1@{NOTICE_S}",
        "open-mode": "append",
    }
    return _script(
        job, "bids_synthseg_train", "training-%j", _GOES_ON.format(command=command), settings
    )


def submit(script: str, output_dir: Path, after: str = "") -> str:
    """Hand a script to sbatch; returns the number of the job. `after`: a job to wait for, however
    that ends.

    Raises InputMissing where there is no sbatch, TryAgainLater where it refuses.
    """
    if shutil.which("sbatch") is None:
        raise InputMissing("sbatch: not found; submit on a login node of the cluster, not here")
    make_folder(output_dir / "logs")
    wait = [f"--dependency=afterany:{after}"] if after else []
    done = subprocess.run(
        ["sbatch", "--parsable", *wait], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TryAgainLater(f"sbatch: {' '.join(done.stderr.split())}; correct the options")
    return done.stdout.strip().partition(";")[0]


def _command(job: Job, level: str, words: Sequence[str] = (), paths: Sequence[Path] = ()) -> str:
    """The App at a level, installed or in a container."""
    app = _inside(job, paths, "run") or ["bids_synthseg"]
    return shlex.join([*app, *_folders(job), level, *words])


def _folders(job: Job) -> list[str]:
    return [str(job.bids_dir.resolve()), str(job.output_dir.resolve())]


def _inside(job: Job, paths: Sequence[Path], verb: str) -> list[str]:
    """The start of a command in the container, which sees `paths` and the job's two folders under
    their own names, so that links from the output to other data sets hold outside as well; nothing
    for an installation. verb: "run" or "exec". Raises UsageProblem for a path it cannot be given.
    """
    if job.container is None:
        return []
    modes = {path: ":ro" for path in (*paths, job.bids_dir.resolve())}
    modes[job.output_dir.resolve()] = ""
    if unfit := [path for path in modes if re.search("[:,]", str(path))]:
        raise UsageProblem(
            f"{unfit[0]}: Apptainer cannot bind a path with ':' or ','; rename it, or make a link"
        )
    # Parents first: a folder would hide what was bound below it before.
    in_order = sorted(modes, key=lambda path: len(path.parts))
    binds = [word for path in in_order for word in ("-B", f"{path}:{path}{modes[path]}")]
    gpu = ["--nv"] if job.gpus else []
    sif = str(job.container.resolve())
    return ["apptainer", verb, "--cleanenv", "--containall", *gpu, *binds, sif]


def _with_absolute_paths(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The App's words with the paths among them made absolute, and these paths.

    Raises InputMissing for one that is not there: better here than in every task.
    """
    changed: list[str] = []
    paths: list[Path] = []
    option = ""
    for word in words:
        before, value = "", word
        if word.startswith("-"):
            option, sign, value = word.partition("=")
            before = option + sign
        if option == "--derivatives" and value:
            name, sign, value = value.partition("=")
            before += name + sign
        place = Path(value)
        if option not in PATH_OPTIONS or not value:
            changed.append(word)
        elif place.exists():
            paths.append(place.resolve())
            changed.append(f"{before}{place.resolve()}")
        elif option in NAMES_TOO:
            changed.append(word)
        else:
            raise InputMissing(f"{place}: no such file or folder; check {option}")
    return changed, paths


def _script(
    job: Job,
    name: str,
    log: str,
    command: str,
    more: Mapping[str, str | None] = MappingProxyType({}),
) -> str:
    """A script for sbatch; more: options of sbatch, None for a flag, left out where empty."""
    logs = job.output_dir.resolve() / "logs"
    # A percent sign stands for numbers of the job, two of them for one.
    log_folder = str(logs).replace("%", "%%")
    settings = {
        "job-name": name,
        **more,
        "time": job.time,
        "mem": f"{job.mem_gb}G",
        "cpus-per-task": str(job.cpus),
        "partition": job.partition,
        "gres": job.gres,
        "output": f"{log_folder}/{log}.out",
    }
    options = [
        f"#SBATCH --{key}" + ("" if value is None else f"={shlex.quote(value)}")
        for key, value in settings.items()
        if value != ""
    ]
    # SLURM does not make the folder of its logs, and fails without a word where it is missing.
    hint = f"# Before sbatch: mkdir -p {shlex.quote(str(logs))}"
    return "\n".join(["#!/bin/bash", *options, hint, "set -euo pipefail", command, ""])
