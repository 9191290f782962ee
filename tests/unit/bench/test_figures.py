"""What a benchmark makes of its samples."""

import pytest

from galampi.bench.figures import EMULATORS, F32, FIGURES, ONE, SB3, TWO, Figure, summary


def trained(steps_per_s: float, **phases_s: float) -> dict:
    return {
        "steps_per_s": steps_per_s,
        "phases_s": phases_s or {"learn_s": 0.098, "gossip_s": 0.002},
        "pss_bytes": 300 << 20,
        "first_update_s": 5.0,
    }


def figure(start: str) -> Figure:
    (found,) = [each for each in FIGURES if each.name.startswith(start)]
    return found


def test_a_comparison_is_the_median_of_its_rounds_and_not_the_ratio_of_medians() -> None:
    # The machine is half as fast in the second round, and a third in the third.
    rounds = [
        {F32: {"steps_per_s": two}, SB3: {"steps_per_s": peer}} for two, peer in ((2400, 800), (1200, 400), (800, 400))
    ]
    found = summary(figure("2 ranks, float32, over Stable"), rounds)
    assert found["value"] == 3.0
    assert (found["least"], found["greatest"]) == (2.0, 3.0)
    assert found["reaches_goal"] is True
    assert found["reaches_stretch"] is True


def test_less_is_better_where_it_is() -> None:
    share = figure("gossip's share")
    found = summary(share, [{TWO: trained(1000, learn_s=0.0985, gossip_s=0.0015)}])
    assert found["value"] == pytest.approx(1.5)
    assert found["reaches_goal"] is True
    assert found["reaches_stretch"] is False
    assert summary(share, [{TWO: trained(1000, learn_s=0.09, gossip_s=0.01)}])["reaches_goal"] is False


def test_what_was_not_measured_has_no_value() -> None:
    found = summary(figure("2 ranks, bfloat16, over the emulators"), [{F32: trained(1000), EMULATORS: trained(4000)}])
    assert found["value"] is None
    assert found["reaches_goal"] is None


def test_two_ranks_over_one() -> None:
    found = summary(figure("2 ranks over 1"), [{TWO: trained(1900), ONE: trained(1000)}])
    assert found["value"] == 1.9
    assert found["reaches_goal"] is True
    assert found["reaches_stretch"] is False
