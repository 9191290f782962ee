"""Returns as they are shown: rewards may be of any size."""


def score_of(*, in_wrappers: bool) -> str:
    """Say what a return is."""
    return "score of full games as their wrappers make it" if in_wrappers else "raw score of full games"


def returned(value: float, decimals: int = 2) -> str:
    """Write a return with some decimals, a small one with three digits; `-` if there is none (NaN)."""
    if value != value:
        return "-"
    return f"{value:.3g}" if 0 < abs(value) < 10 ** (1 - decimals) else f"{value:.{decimals}f}"
