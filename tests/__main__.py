"""The test command, `python -m tests`.

It runs ruff, checks that exported code, parameters cells and notebooks are up to date, runs the
notebooks and pytest, and stops at the first failure.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def contents(*patterns):
    return {p: p.read_bytes() for pattern in patterns for p in sorted(ROOT.glob(pattern))}


def unchanged(what, command, *patterns):
    """Run `command` and stop if it changes a file matching `patterns`: the committed file was
    stale. The working tree keeps the change.
    """
    before = contents(*patterns)
    subprocess.run(command, cwd=ROOT, check=True)
    if changed := [
        p.relative_to(ROOT) for p, b in contents(*patterns).items() if before.get(p) != b
    ]:
        sys.exit(
            f"{what}: `{' '.join(command)}` changes {', '.join(map(str, changed))}; look at it and "
            f"commit"
        )
    print(f"{what}: in step", flush=True)


def main():
    os.environ |= dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONWARNINGS="ignore")
    subprocess.run(
        ["ruff", "check", "-q", "nbs", "higgs_vi", "tests", "exps"], cwd=ROOT, check=True
    )
    print("ruff: nothing to say", flush=True)
    unchanged("exported code", ["nbdev_export"], "higgs_vi/*.py")
    unchanged("parameters cells", [sys.executable, "-m", "tests.parameters"], "nbs/0*.ipynb")
    unchanged("notebooks", ["nbdev_clean"], "nbs/*.ipynb")
    subprocess.run(["nbdev_test", "--n_workers", "2"], cwd=ROOT, check=True)
    print("notebooks: they run", flush=True)
    one = dict(OMP_NUM_THREADS="1")  # two processes on two cores
    # worksteal: neighbours stay on one worker, which prepares their shared runs once
    pytest = [sys.executable, "-m", "pytest", "-n2", "--dist=worksteal", "--durations=8"]
    sys.exit(subprocess.run(pytest, cwd=ROOT, env=os.environ | one).returncode)


if __name__ == "__main__":
    # What tests and notebooks leave, some gigabytes, goes with the folder.
    with tempfile.TemporaryDirectory(prefix="higgs_vi-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = folder
        main()
