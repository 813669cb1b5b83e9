"""Loads the compiled library `_C`, which defines `torch.ops.tdnet.*`, and names its constants."""

import torch

# The library links against torch's, which the import above has loaded.
try:
    from tdnet_ops import _C
except ImportError as error:
    raise ImportError(
        f"tdnet_ops: no compiled library loads beside torch {torch.__version__} ({error}). "
        "Reinstall it with pip install --force-reinstall --no-deps tdnet, or, in a source tree, "
        "run python setup.py build_ext --inplace."
    ) from error

VERSION: str = _C.version
TORCH_TARGET: str = _C.torch_target
COMPILER: str = _C.compiler
CPU_COMPILED: str = _C.cpu_compiled
CPU_IN_USE: str = _C.cpu_in_use
CUDA_ARCHITECTURES: str = _C.cuda_architectures
CUDA_STATUS: str = _C.cuda_status
