"""The requests of a run repeat byte for byte."""

import hashlib
from typing import Any

from bedplate_traffic.load.profile import Profile, TrafficClass
from bedplate_traffic.load.prompts import build_request, should_cancel


def traffic_class(**settings: Any) -> TrafficClass:
    load = {"shape": "burst", "size": 1}
    return Profile.model_validate(
        {"max_seconds": 1, "classes": [{"name": "a", "load": load, **settings}]}
    ).classes[0]


def test_the_same_seed_gives_the_same_bytes() -> None:
    long = traffic_class(prompt_words=20)
    bodies = [build_request(long, "m", 7, number).body() for number in range(100)]
    assert bodies == [build_request(long, "m", 7, number).body() for number in range(100)]
    assert len(set(bodies)) == 100
    assert bodies[0] != build_request(long, "m", 8, 0).body()


def test_the_bytes_never_change_between_releases() -> None:
    varied = traffic_class(
        prompt_words={"distribution": "lognormal", "median": 30, "sigma": 0.8, "max": 400},
        answer_tokens={"distribution": "uniform", "min": 4, "max": 9},
    )
    bodies = b"\n".join(build_request(varied, "m", 1, number).body() for number in range(50))
    assert hashlib.sha256(bodies).hexdigest() == PINNED


PINNED = "2337a4382c8c2416761146fcfd406553bd02ea2cd3745dee2ce91f05fc211604"


def test_a_prompt_has_as_many_words_as_configured() -> None:
    for words in (1, 4, 12, 100):
        prompt = build_request(traffic_class(prompt_words=words), "m", 1, 0).prompt
        assert len(prompt.split()) == max(4, words)


def test_lengths_are_distributed() -> None:
    uniform = traffic_class(answer_tokens={"distribution": "uniform", "min": 3, "max": 5})
    assert {build_request(uniform, "m", 1, number).max_tokens for number in range(100)} == {3, 4, 5}
    skewed = traffic_class(
        answer_tokens={"distribution": "lognormal", "median": 40, "sigma": 0.6, "max": 100}
    )
    lengths = sorted(build_request(skewed, "m", 1, number).max_tokens for number in range(1000))
    assert 36 <= lengths[500] <= 44
    assert lengths[-1] == 100
    assert lengths[0] >= 1


def test_a_share_of_the_clients_disconnects() -> None:
    cancelling = traffic_class(cancel={"share": 0.3, "after_seconds": 1})
    assert 250 < sum(should_cancel(cancelling, 1, number) for number in range(1000)) < 350

    assert not should_cancel(traffic_class(), 1, 0)
