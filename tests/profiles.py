"""Hypothesis profiles: `default`, and `quick` (10 examples a property) for `make quick`."""

from hypothesis import settings

QUICK_EXAMPLES = 10

settings.register_profile("quick", max_examples=QUICK_EXAMPLES, deadline=None)


def examples(n: int) -> int:
    """Return how many examples a property tries: `n`, but no more than 10 in the profile `quick`."""
    return min(n, QUICK_EXAMPLES) if settings.get_current_profile_name() == "quick" else n
