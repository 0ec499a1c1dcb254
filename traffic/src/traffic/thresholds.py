"""Judges a run by its profile's thresholds."""

from collections.abc import Sequence

from traffic.profile import Profile, Relative, Threshold
from traffic.report import ClassReport, Judgement, metric


def judge(profile: Profile, classes: Sequence[ClassReport]) -> list[Judgement]:
    """Return one judgement a threshold; without any, one that every request must be answered."""
    by_name = {one.name: one for one in classes}
    if profile.thresholds:
        return [_judged(threshold, by_name) for threshold in profile.thresholds]
    unanswered = sum(one.failed + one.refused + one.unfinished + one.slots.missed for one in classes)
    served = sum(one.answered + one.cancelled for one in classes)
    return [Judgement("every request is answered", unanswered == 0 and served > 0, float(unanswered))]


def _judged(threshold: Threshold, classes: dict[str, ClassReport]) -> Judgement:
    seen = metric(classes[threshold.of_class], threshold.metric)
    words, ok = [], seen is not None
    for name, given in (
        ("at least", threshold.min),
        ("at most", threshold.max),
        ("exactly", threshold.equals),
    ):
        if given is None:
            continue
        bound, said = _bound(given, threshold.metric, classes)
        words.append(f"{name} {said}")
        if seen is None or bound is None:
            ok = False
        elif name == "at least":
            ok = ok and seen >= bound
        elif name == "at most":
            ok = ok and seen <= bound
        else:
            ok = ok and seen == bound
    return Judgement(f"{threshold.of_class}: {threshold.metric} is {' and '.join(words)}", ok, seen)


def _bound(given: float | Relative, name: str, classes: dict[str, ClassReport]) -> tuple[float | None, str]:
    if not isinstance(given, Relative):
        return given, f"{given:g}"
    other = metric(classes[given.of_class], name)
    value = None if other is None else other * given.times
    shown = "none" if value is None else f"{value:g}"
    return value, f"{given.times:g} x that of {given.of_class} ({shown})"
