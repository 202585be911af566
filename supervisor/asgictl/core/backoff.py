"""How long to wait before a generation that keeps failing is started again."""

FIRST_DELAY = 0.5
MAX_DELAY = 30.0

_MASK = 0xFFFFFFFFFFFFFFFF


def nominal_delay(failures: int) -> float:
    """Return the seconds to wait after the given number of failures in a row, on average.

    The first failure costs nothing: one crash says little, and a waiting slot is lost
    capacity. Then 0.5 s, doubled each time up to 30 s.
    """
    if failures <= 1:
        return 0.0
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 2, 16))


def delay(failures: int, seed: int) -> float:
    """Return the nominal delay times a factor between 0.5 and 1.5.

    So slots that fail together do not come back together.
    """
    return shortest_delay(failures) + nominal_delay(failures) * fraction(seed)


def shortest_delay(failures: int) -> float:
    """Return the least that ``delay()`` can be."""
    return nominal_delay(failures) / 2


def next_seed(seed: int) -> int:
    """Return the following state of the generator (SplitMix64's increment)."""
    return (seed + 0x9E3779B97F4A7C15) & _MASK


def fraction(seed: int) -> float:
    """Return the number in [0, 1) that belongs to a state of the generator.

    SplitMix64's output function: randomness comes into the core as a seed, so that every
    decision can be replayed.
    """
    mixed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / (1 << 53)
