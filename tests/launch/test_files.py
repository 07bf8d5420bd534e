"""The launch files: they parse, name only what there is, and requeue what was stopped."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
FILES = sorted(p for p in LAUNCH.iterdir() if p.is_file())

STAND_IN = """#!{python}
import json, os, sys
with open({notes!r}, "a") as file:
    file.write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")
{code}
"""


@pytest.fixture
def commands(tmp_path):
    """Puts stand-ins first on the PATH: (name, code) -> None; `calls()` is what they were given."""
    notes = tmp_path / "notes"
    (tmp_path / "bin").mkdir()

    def add(name: str, code: str = "") -> pathlib.Path:
        path = tmp_path / "bin" / name
        text = STAND_IN.format(python=sys.executable, notes=str(notes), name=name, code=code)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def calls() -> list[list[str]]:
        return [json.loads(line) for line in notes.read_text().splitlines()]

    add.calls = calls
    add.environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    return add


def run(script: str, *arguments: str, commands, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LAUNCH / script, *arguments],
        env={**commands.environment, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_slurm_puts_what_was_stopped_into_the_queue_again(commands):
    commands("srun", "sys.exit(75)")
    commands("scontrol")
    done = run("slurm.sh", "--config=a b", commands=commands, PYTHON="true", SLURM_JOB_ID="7")
    assert done.returncode == 75, done.stderr
    assert commands.calls() == [
        *[["srun", "--kill-on-bad-exit=1", "true", "-m", "clipdg_jax.main"]
          + ["--multihost", "--config=a b"]],
        ["scontrol", "requeue", "7"],
    ]  # fmt: skip


@pytest.mark.parametrize("status", [0, 2])
def test_slurm_leaves_the_rest_as_it_ended(commands, status):
    commands("srun", f"sys.exit({status})")
    commands("scontrol")
    done = run("slurm.sh", "--config=x", commands=commands, PYTHON="true", SLURM_JOB_ID="7")
    assert done.returncode == status
    assert [call[0] for call in commands.calls()] == ["srun"]


def test_slurm_waits_for_its_tasks_when_it_gets_term_itself(commands):
    commands("srun", "import signal, time; os.kill(os.getppid(), 15); time.sleep(1); sys.exit(75)")
    commands("scontrol")
    done = run("slurm.sh", "--config=x", commands=commands, PYTHON="true", SLURM_JOB_ID="7")
    assert done.returncode == 75
    assert commands.calls()[-1] == ["scontrol", "requeue", "7"]


def test_an_array_task_takes_its_line(commands, tmp_path):
    lines = tmp_path / "runs.txt"
    lines.write_text("--config=a --workdir='b c'\n'--config=d:e=1,f=2' --config.seed=3\n")
    commands("srun")
    given = {"PYTHON": "true", "SLURM_JOB_ID": "7", "RUNS": str(lines)}
    for index, expected in enumerate(
        (["--config=a", "--workdir=b c"], ["--config=d:e=1,f=2", "--config.seed=3"])
    ):
        done = run(
            "slurm.sh", "--config.log_every=9", commands=commands, SLURM_ARRAY_TASK_ID=str(index),
            **given,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert commands.calls()[-1][6:] == [*expected, "--config.log_every=9"]
    beyond = run("slurm.sh", commands=commands, SLURM_ARRAY_TASK_ID="2", **given)
    assert (beyond.returncode, beyond.stderr.count("\n")) == (2, 1)
    assert "has no line 3" in beyond.stderr


def test_a_tpus_hosts_begin_again_what_was_stopped(commands, tmp_path):
    count = tmp_path / "count"
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    again = (
        f"n = os.path.exists({str(count)!r}); open({str(count)!r}, 'w'); sys.exit(0 if n else 75)"
    )
    python.symlink_to(commands("python-of-the-host", again))
    remote = (
        "import subprocess; sys.exit(subprocess.call(['sh', '-c', sys.argv[-1].split('=', 1)[1]]))"
    )
    commands("gcloud", remote)
    done = run(
        "tpu_vm.sh", "slice", "zone", "--config=x", "--config.data.mix=a b", commands=commands,
        DIRECTORY=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gcloud, *hosts = commands.calls()
    assert gcloud[1:8] == [
        "compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone", "--worker=all",
    ]  # fmt: skip
    assert [host[1:] for host in hosts] == 2 * [
        ["-m", "clipdg_jax.main", "--multihost", "--config=x", "--config.data.mix=a b"]
    ]


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_vm.sh"])
def test_without_arguments_they_say_how(script, commands):
    done = run(script, commands=commands, PYTHON="true")
    assert done.returncode == 2
    assert re.fullmatch(r"error: usage: .*\[arguments of clipdg_jax.main\]\n", done.stderr)


def flags_of_main() -> set[str]:
    text = (ROOT / "clipdg_jax" / "main.py").read_text()
    return set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_flags_and_files_that_are_named_exist(path):
    text = path.read_text()
    ours = {"config", "multihost", "coordinator", "num_processes", "process_id", "workdir"}
    ours |= {"virtual_devices"}
    assert ours == flags_of_main()
    others = {  # Of srun, nvidia-smi, setpriv, gcloud, apt, pip, podman.
        "kill-on-bad-exit", "query-gpu", "format", "pdeathsig", "zone", "worker", "command",
        "array", "nodes", "device", "shm-size", "stop-timeout", "no-install-recommends",
        "no-cache-dir", "help",
    }  # fmt: skip
    lines = [line for line in text.splitlines() if not line.startswith("#SBATCH")]
    named = re.findall(r"(?<![\w-])--([a-z][\w-]*)(?!\.)\b", "\n".join(lines))
    assert set(named) - others <= ours
    for config in re.findall(r"--config=(configs/\w+\.py)", text):
        assert (ROOT / config).is_file()
    for other in re.findall(r"(?:launch|docs|configs|clipdg_jax)/\w+\.\w+", text):
        assert (ROOT / other).is_file(), other


def test_sbatch_options_are_slurms():
    options = re.findall(r"^#SBATCH --([\w-]+)", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    known = {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal",
        "requeue", "open-mode", "output",
    }  # fmt: skip
    assert set(options) == known


@pytest.fixture
def jobset() -> dict:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    (document,) = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    return document


def test_the_jobset_is_a_valid_job_within(jobset):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **template}
    validate.validate(job, validate.latest_version(), strict=True)


def test_the_jobset_adds_up(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name = jobset["metadata"]["name"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    arguments = dict(a.split("=", 1) for a in container["args"] if "=" in a)
    pods = int(arguments["--num_processes"])
    assert job["completions"] == job["parallelism"] == pods
    assert job["completionMode"] == "Indexed"
    host, port = arguments["--coordinator"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    # The pod's number is what the flag names, and TERM leaves time to save.
    assert arguments["--process_id"] == f"$({container['env'][0]['name']})"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    # Status 75 fails the Job in a way that the JobSet begins again.
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [75]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (again,) = jobset["spec"]["failurePolicy"]["rules"]
    assert again["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert again["onJobFailureReasons"] == ["PodFailurePolicy"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_what_the_container_copies_is_there():
    text = (LAUNCH / "Containerfile").read_text()
    for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
    assert "ENTRYPOINT [" in text
