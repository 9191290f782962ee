"""Let the tests of this folder import `rank_rows`, which they also run as a script."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
