import gc
import subprocess
import sys

import pytest

from galampi.ranks.importing import heavy_imports


def test_the_collector_rests_and_wakes_up_again() -> None:
    # In a process of its own, for what is frozen stays so.
    code = (
        "import gc\n"
        "from galampi.ranks.importing import heavy_imports\n"
        "before = gc.get_freeze_count()\n"
        "with heavy_imports():\n"
        "    assert not gc.isenabled()\n"
        "    import numpy\n"
        "assert gc.isenabled()\n"
        "assert gc.get_freeze_count() > before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_wakes_up_after_an_import_that_failed_too() -> None:
    with pytest.raises(ImportError), heavy_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
    gc.unfreeze()
