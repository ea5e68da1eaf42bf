"""Fine-tune Boson AI's Higgs Audio v2 for Vietnamese, from a table of clips to speech.

Each module is exported from a notebook in `nbs/`: steps (`nbs/0N_*`) are what a user runs, parts
hold the code that steps share. This file only sets up the process before torch is imported.
"""

__version__ = "0.2.0"

import logging
import os
import sys

# Batches differ in length. With expandable segments, torch's CUDA allocator leaves fewer gaps
# between them. torch reads the variable when a GPU is first used. The user's own value is kept.
os.environ.setdefault(
    "PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
)

# OpenMP's threads spin while they wait for work. If several processes run at once, they then take
# each other's processor time and become up to ten times slower. Threads that sleep after about
# 10 microseconds cost a single process almost nothing. OpenMP reads both variables when torch is
# imported. The user's own values are kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# nbdev's tests (they set IN_TEST) run several notebooks at once: one thread each.
if os.environ.get("IN_TEST") and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

# PEFT imports torchao and bitsandbytes, and both print messages at every start that a user cannot
# act on: torchao registers two Enum classes by a call that torch 2.14 deprecates, and bitsandbytes
# asks for an optional CPU kernel. Only these two messages are suppressed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").addFilter(
    lambda record: "Calling register_constant() on Enum subclasses is deprecated"
    not in record.getMessage()
)
