"""How large a soak is: a smoke of a minute each, the whole with SOAK=full, or what single variables say."""

import os


def size(name: str, *, smoke: int, full: int) -> int:
    """Return `SOAK_<name>`, or what is usual for the whole size."""
    return int(os.environ.get(f"SOAK_{name}", full if os.environ.get("SOAK") == "full" else smoke))
