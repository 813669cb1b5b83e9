import sys
from pathlib import Path

# So that test files can import the modules beside them.
sys.path.append(str(Path(__file__).resolve().parent))
