import pytest

from galampi.digits import returned


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (123.456, 2, "123.46"),
        (0.0, 2, "0.00"),
        (-0.123, 2, "-0.12"),
        (0.0123, 2, "0.0123"),
        (-1.5e-7, 2, "-1.5e-07"),
        (0.5, 1, "0.5"),
        (12.34, 1, "12.3"),
        (float("nan"), 2, "-"),
    ],
)
def test_returns_of_any_size_have_digits(value, decimals, text) -> None:
    assert returned(value, decimals) == text
