"""Fractions as people read them, with what chance could have made of them."""


def wilson_interval(fraction: float, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a fraction seen in `count` trials.

    **Source:** E. B. Wilson, "Probable inference", JASA 22 (1927).
    """
    if count == 0:
        return 0.0, 1.0
    z = 1.959964  # of the normal distribution, two-sided 95 %
    centre = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    spread = fraction * (1 - fraction) / count + z * z / (4 * count * count)
    half = z * spread**0.5 / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(fraction: float) -> str:
    """Returns a fraction as "96.1 %", which no line break divides."""
    return f"{100 * fraction:.1f}\u00a0%"


def counted(right: int, asked: int) -> str:
    """Returns "96.1 % (346 of 360)"."""
    return f"{percent(right / max(asked, 1))} ({right} of {asked})"


def interval(fraction: float, count: int) -> str:
    """Returns the 95 % confidence interval, as "93.6 to 97.7 %", which no line break divides."""
    low, high = wilson_interval(fraction, count)
    return f"{100 * low:.1f} to {100 * high:.1f}\u00a0%".replace(" ", "\u00a0")
