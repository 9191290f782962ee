"""Returns as they are shown: rewards may be of any size."""


def returned(value: float, decimals: int = 2) -> str:
    """Write a return with some decimals, a small one with three digits; `-` if there is none (NaN)."""
    if value != value:
        return "-"
    return f"{value:.3g}" if 0 < abs(value) < 10 ** (1 - decimals) else f"{value:.{decimals}f}"
