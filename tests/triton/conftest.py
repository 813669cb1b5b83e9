import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# So that test files can import the list of samples.
sys.path.append(str(FOLDER.parent / "tdnet_ops"))

# These need another interpreter of the kernels, in a process of their own: see test_interpreted.py.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
