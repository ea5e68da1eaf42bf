__version__ = "0.1.0"

import logging, os, sys

# Lengths vary from batch to batch: segments that grow leave fewer gaps. torch reads it when a GPU is first used; a user's own value stays.
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

# OpenMP's threads spin while they wait for work. Several processes then take each other's time and slow down tenfold.
# Threads that sleep after some 10 microseconds cost a process that is alone almost nothing. OpenMP reads both variables when
# torch is imported; a user's own values stay.
if "OMP_WAIT_POLICY" not in os.environ: os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# nbdev's tests (they set IN_TEST) run several notebooks at once: one thread each.
if os.environ.get("IN_TEST") and "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules: sys.modules["torch"].set_num_threads(1)

# PEFT imports torchao and bitsandbytes. torchao registers two Enum classes by a call that torch 2.14 deprecates, bitsandbytes asks for
# an optional kernel for CPUs: messages at every start, of which no user can remove the cause. Only they are left out.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").addFilter(
    lambda record: "Calling register_constant() on Enum subclasses is deprecated" not in record.getMessage())
