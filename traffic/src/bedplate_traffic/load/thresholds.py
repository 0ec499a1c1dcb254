"""Judges a run by its profile's thresholds."""

from collections.abc import Sequence

from bedplate_traffic.load.profile import Profile, Relative, Threshold
from bedplate_traffic.report.model import ClassReport, Judgement, metric_value


def judge(profile: Profile, classes: Sequence[ClassReport]) -> list[Judgement]:
    """Return one judgement per threshold; a profile without any requires that every request is answered."""
    by_name = {report.name: report for report in classes}
    if profile.thresholds:
        return [_judge_threshold(threshold, by_name) for threshold in profile.thresholds]
    unanswered = sum(
        report.failed + report.refused + report.unfinished + report.slots.missed for report in classes
    )
    completed = sum(report.answered + report.cancelled for report in classes)
    return [Judgement("every request is answered", unanswered == 0 and completed > 0, float(unanswered))]


def _judge_threshold(threshold: Threshold, classes: dict[str, ClassReport]) -> Judgement:
    value = metric_value(classes[threshold.of_class], threshold.metric)
    conditions, ok = [], value is not None
    for comparison, limit in (
        ("at least", threshold.min),
        ("at most", threshold.max),
        ("exactly", threshold.equals),
    ):
        if limit is None:
            continue
        bound, description = _resolve(limit, threshold.metric, classes)
        conditions.append(f"{comparison} {description}")
        if value is None or bound is None:
            ok = False
        elif comparison == "at least":
            ok = ok and value >= bound
        elif comparison == "at most":
            ok = ok and value <= bound
        else:
            ok = ok and value == bound
    return Judgement(f"{threshold.of_class}: {threshold.metric} is {' and '.join(conditions)}", ok, value)


def _resolve(
    limit: float | Relative, metric: str, classes: dict[str, ClassReport]
) -> tuple[float | None, str]:
    """Return a limit's number, None where the other class lacks the metric, and its description."""
    if not isinstance(limit, Relative):
        return limit, f"{limit:g}"
    other = metric_value(classes[limit.of_class], metric)
    bound = None if other is None else other * limit.times
    shown = "none" if bound is None else f"{bound:g}"
    return bound, f"{limit.times:g} x that of {limit.of_class} ({shown})"
