"""The processor of this machine, as the system describes it."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Return the name of the processor, as well as the system tells it."""
    return processor_facts().get("model name") or platform.processor()


def processor_facts() -> dict[str, str]:
    """Return what the system says of the first core; nothing where it does not say it as Linux does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
