"""Several processes on one machine: OpenMP threads must not spin, and a small model generates on
one thread.
"""
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from higgs_vi.generate import Sampling, generate_delayed_codes, one_thread
from higgs_vi.prompt import Prompt

ROOT = Path(__file__).parents[1]
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "IN_TEST", "MKL_NUM_THREADS")


def bare(**own):
    "The environment of a user who has set only `own`."
    return {k: v for k, v in os.environ.items() if k not in NAMES} | {"PYTHONPATH": str(ROOT)} | own


def told(code, **own):
    return subprocess.run(
        [sys.executable, "-c", code], env=bare(**own), capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize(
    "own, expected",
    [
        ({}, ["3000", "None", "None"]),
        (dict(GOMP_SPINCOUNT="7"), ["7", "None", "None"]),
        (dict(OMP_WAIT_POLICY="ACTIVE"), ["None", "ACTIVE", "None"]),
        (dict(IN_TEST="1"), ["3000", "None", "1"]),
        (dict(IN_TEST="1", OMP_NUM_THREADS="2"), ["3000", "None", "2"]),
    ],
)
def test_the_package_sets_how_threads_wait_where_nobody_has(own, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    assert (
        told(
            f"import higgs_vi, os, sys; print(*map(os.environ.get, {names})); assert 'torch' not "
            f"in sys.modules",
            **own,
        )
        == expected
    )


def test_a_start_is_silent_whichever_module_is_imported_first():
    """PEFT imports torchao and bitsandbytes, which warn on a CPU unless our package was imported
    before.
    """
    out = subprocess.run(
        [sys.executable, "-c", "import higgs_vi, peft"],
        env=bare(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout + out.stderr == ""


def test_nbdevs_tests_get_one_thread_though_a_notebook_imports_torch_first():
    code = """from torch import get_num_threads as threads
n = threads()
import higgs_vi
print(n, threads())"""
    assert told(code, IN_TEST="1")[1] == "1"


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_imports_the_package_before_torch(path):
    source = "\n".join(
        "".join(c["source"])
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code"
    )
    imports = re.findall(r"^((?:import|from) [^#\n]*)", source, re.M)
    first = [
        i
        for i, line in enumerate(imports)
        if re.search(r"\b(torch|transformers|peft|accelerate)\b", line)
    ]
    assert not first or any("higgs_vi" in line for line in imports[: first[0]])


def test_a_small_model_speaks_on_one_thread_and_gives_the_others_back(parts):
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    hook = parts.model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        generate_delayed_codes(parts, Prompt("Xin chào."), Sampling(max_seconds=0.2))
        assert set(seen) == {1} and torch.get_num_threads() == 2
        with pytest.raises(KeyError), one_thread(parts.model): raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        hook.remove()
        torch.set_num_threads(before)


SPEAK = """
import sys, time
import higgs_vi
from higgs_vi.generate import Sampling
from higgs_vi.speech import say
from higgs_vi.voices import make_prompt
from higgs_vi.model import load_checkpoint
from higgs_vi.model import NANO
import torch
parts = load_checkpoint(NANO, None, torch.float32, "cpu")
prompt = make_prompt("Hôm nay trời đẹp quá, tôi muốn đi dạo.")
speak = lambda seconds: say(parts, prompt, Sampling(max_seconds=seconds))
speak(0.5)
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    speak(3.0)
    print(time.perf_counter() - start, flush=True)
"""


@pytest.mark.slow
def test_three_processes_at_once_take_at_most_six_times_as_long():
    procs = [
        subprocess.Popen(
            [sys.executable, "-c", SPEAK],
            env=bare(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    assert [p.stdout.readline() for p in procs] == ["ready\n"] * 3

    def seconds(some):
        for p in some:
            print("go", file=p.stdin, flush=True)
        return [float(p.stdout.readline()) for p in some]

    alone, together = [], []
    for _ in range(5):
        alone += seconds(procs[:1])
        together += seconds(procs)
    for p in procs:
        p.communicate()
    print(
        f"alone {statistics.median(alone):.2f} s, three at once {statistics.median(together):.2f} s"
    )
    assert statistics.median(together) < 6 * statistics.median(alone)
