__version__ = "0.1.0"

import os

# Lengths vary from batch to batch: segments that grow leave fewer gaps. torch reads it when a GPU is first used; a user's own value stays.
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))
