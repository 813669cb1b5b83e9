"""Loads the compiled library, which defines `torch.ops.tdnet.*`, and names its constants."""

from pathlib import Path

import torch

# _C loads the library beside it, which links against torch's, which the import above has loaded.
try:
    from tdnet_ops import _C
except ImportError as error:
    # Never the name of a package in an index: anyone could have registered it there.
    raise ImportError(
        f"tdnet_ops: {Path(__file__).parent} has no compiled library that loads beside torch "
        f"{torch.__version__} ({error}). In tdnet's source tree, run pip install . and start "
        "Python elsewhere, or python setup.py build_ext --inplace to use the sources themselves."
    ) from error

NAME_SPACE: str = _C.name_space
LIBRARY = Path(_C.__file__).with_name(f"lib{NAME_SPACE}_ops.so")
VERSION: str = _C.version
TORCH_TARGET: str = _C.torch_target
COMPILER: str = _C.compiler
CPU_COMPILED: str = _C.cpu_compiled
CPU_IN_USE: str = _C.cpu_in_use
CUDA_ARCHITECTURES: str = _C.cuda_architectures
CUDA_STATUS: str = _C.cuda_status
CUDA_MOST_PARTIALS: int = _C.cuda_most_partials
