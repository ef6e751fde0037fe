import pytest


def refusals(*cases, error=ValueError):
    """Return the test of (call, what the error says) for each call that must be refused."""

    @pytest.mark.parametrize(("call", "said"), cases)
    def refused(call, said):
        with pytest.raises(error, match=said):
            call()

    return refused
