"""noisegate sweep on a real Slurm of one node, where it is installed."""

import os
import shutil
import socket
import subprocess
import time

import pytest

from tests.integration.test_sweep import command, results

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel")
MISSING = [p for p in PROGRAMS if shutil.which(p) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING), reason=f"needs Debian's slurm-wlm: no {MISSING}"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]
OPTIONS = ["--budgets=0.25", "--methods=noise,retrained", "--jobs=2"]
CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmctldPort={port}
SlurmdPort={port_d}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES State=UP
"""


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment in which the commands of Slurm find the daemons."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().split(".")[0],
            port=free_port(),
            port_d=free_port(),
            folder=folder,
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    daemons = [
        subprocess.Popen([*words, "-D"], env=environment, cwd=folder)
        for words in (["slurmctld", "-c"], ["slurmd"])
    ]
    for _ in range(100):
        nodes = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            env=environment,
            capture_output=True,
            text=True,
        )
        if nodes.stdout.strip() == "idle":
            break
        time.sleep(0.2)
    else:
        pytest.skip(f"Slurm does not start: {nodes.stdout} {nodes.stderr}")
    yield environment
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


def sweep(folder, slurm, *more):
    """Runs a sweep by Slurm."""
    return subprocess.run(
        command(folder, *OPTIONS, "--slurm=partition=debug,time=10", *more),
        env=slurm,
        capture_output=True,
        text=True,
    )


def test_slurm_gives_the_figures_of_this_machine(tmp_path, slurm):
    """Cells are jobs, one of which waits for the other."""
    run = sweep(tmp_path / "slurm", slurm)
    assert run.returncode == 0, run.stderr
    subprocess.run(command(tmp_path / "here", *OPTIONS), check=True)
    ours, expected = results(tmp_path / "slurm"), results(tmp_path / "here")
    assert ours.keys() == expected.keys() and len(ours) == 2
    for name, cell in expected.items():
        assert ours[name]["test"] == cell["test"]
        assert ours[name]["widths"] == cell["widths"]
        jobs = tmp_path / "slurm" / "cells" / name / "slurm"
        assert len(list(jobs.glob("*_submission.sh"))) == 1


def test_jobs_outlive_the_sweep(tmp_path, slurm):
    """The next call knows the job; a cancelled one has failed."""
    note = tmp_path / "cells" / "noise_0.25_1" / "slurm_job.txt"
    with subprocess.Popen(
        command(tmp_path, *OPTIONS, "--slurm=partition=debug,time=10"),
        env=slurm,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not note.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    job = note.read_text()
    subprocess.run(["scancel", job], env=slurm, check=True)
    run = sweep(tmp_path, slurm)
    assert run.returncode == 1
    assert f"job {job} of Slurm ended without a result" in run.stderr
    assert sweep(tmp_path, slurm, "--retry").returncode == 0
    assert len(results(tmp_path)) == 2
