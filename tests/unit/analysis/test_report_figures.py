"""What the figures of a report show of made-up runs."""

import numpy as np
import pytest
from made_runs import make_run

pytest.importorskip("matplotlib", reason="not installed; `pip install galampi[report]` brings it")
pytest.importorskip("scipy", reason="not installed; `pip install galampi[report]` brings it")

from galampi.analysis.ball import Bound
from galampi.analysis.figures import JobCurve, distances, learning_curves
from galampi.analysis.figures.drawing import Canvas, Figure, start_at_zero
from galampi.analysis.figures.exchange import messages
from galampi.analysis.published import A2C_CURVES
from galampi.analysis.report import report
from galampi.analysis.statistics import Interval
from galampi.analysis.summary import RunReport


@pytest.mark.parametrize("method", ["allreduce", "push-sum"])
def test_distances_are_drawn_against_job_time(tmp_path, method):
    # 200 updates in 20 s.
    run = RunReport(make_run(tmp_path, settings={"gossip.method": method}))
    for figure in distances("job1", run.distance, run.bound):
        axes = Canvas().add_subplot()
        figure.draw(axes)
        assert axes.get_xlabel() == "job time (s)"
        assert axes.lines[0].get_xdata()[-1] == pytest.approx(20)


@pytest.mark.parametrize(("values", "begins_at_0"), [([0.5, 1.0], True), ([-0.5, 1.0], False), ([-2.0, -0.8], False)])
def test_what_is_negative_is_shown(values, begins_at_0):
    axes = Canvas().add_subplot()
    axes.plot([0, 1], values)
    start_at_zero(axes)
    low, high = axes.get_ylim()
    assert (low == 0) == begins_at_0 and low <= min(values) < max(values) <= high


def test_ranks_that_are_alike_have_a_linear_axis(tmp_path):
    out = make_run(tmp_path, settings={"gossip.method": "allreduce"}, spread=0.0)
    report([out])
    run = RunReport(out)
    assert not run.distance.to_mean.any()
    figure = next(iter(distances("job1", run.distance, run.bound)))
    assert "All distances are exactly 0, so the axis is linear." in figure.caption
    axes = Canvas().add_subplot()
    figure.draw(axes)
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize("has_estimates", [False, True])
def test_norms_are_called_estimated_where_they_are(tmp_path, has_estimates):
    bound = Bound(np.arange(2), np.ones(2), np.ones(2), 1.0, 0.5, has_estimates)
    run = RunReport(make_run(tmp_path))
    caption = next(iter(distances("job1", run.distance, bound))).caption
    assert ("it is estimated" in caption) == has_estimates


@pytest.mark.slow
def test_a_script_the_font_lacks(tmp_path):
    jobs = [{"name": "\u65e5\u672c"}, {"name": "\u0639"}]
    runs = [make_run(tmp_path / str(i), num_updates=30, settings=job) for i, job in enumerate(jobs)]
    report(runs, tmp_path / "out")
    assert "\u65e5\u672c" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("method", ["none", "allreduce"])
def test_no_figures_of_messages_where_there_are_none(no_pictures, tmp_path, method):
    out = make_run(tmp_path / "run", num_updates=30, settings={"gossip.method": method})
    report([out])
    names = {path.stem for path in (out / "report" / "figures").iterdir()}
    assert "job1-distance" in names
    assert not names & {"job1-weights", "job1-message-age", "job1-messages"}


@pytest.mark.parametrize("end", [2.5e6, 10e6, 25e6])
def test_a_published_curve_is_drawn_as_far_as_it_goes(end):
    published = A2C_CURVES["ALE/Pong-v5"]
    at = np.linspace(0, end, 10)
    curve = JobCurve("made", at, Interval(at, at, at), 2, None)
    axes = Canvas().add_subplot()
    learning_curves([curve], along="env_steps", published=published, name="x", note="").draw(axes)
    x, y = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
    assert x[0] == 1
    assert x[-1] == pytest.approx(min(end, 10e6) / 1e6)
    assert y[-1] == pytest.approx(np.interp(end, published.env_steps, published.returns))


@pytest.mark.parametrize(("num_updates", "label"), [(12, "messages of one rank"), (45, "messages along one edge")])
def test_messages_of_the_whole_run_are_counted(tmp_path, num_updates, label):
    """Edges are counted after each tenth update here: of a short run once, and never after the last."""
    axes = Canvas().add_subplot()
    messages("job1", RunReport(make_run(tmp_path, num_updates=num_updates)).run).draw(axes)
    assert axes.get_ylabel() == label
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == [f"sent ({2 * num_updates})", f"averaged ({2 * (num_updates - 1)})", "skipped (0)"]


def test_what_was_seen_once_is_a_point(tmp_path):
    run = RunReport(make_run(tmp_path, num_updates=12))
    drawn = []

    def draw(axes):
        drawn.append(axes)
        axes.plot([1.0], [2.0])
        axes.plot([1.0, 2.0], [2.0, np.nan])
        axes.plot([1.0, 2.0], [2.0, 3.0])

    Figure("name", "title", "caption", draw).render()
    assert [line.get_marker() for line in drawn[0].lines] == ["o", "o", "None"]
    assert len(run.distance.times_s) == 1
