"""What is asked repeats byte for byte."""

import hashlib
from typing import Any

from traffic.profile import Profile, TrafficClass
from traffic.prompts import leaves, question


def traffic_class(**settings: Any) -> TrafficClass:
    load = {"shape": "burst", "size": 1}
    return Profile.model_validate(
        {"max_seconds": 1, "classes": [{"name": "a", "load": load, **settings}]}
    ).classes[0]


def test_the_same_seed_gives_the_same_bytes() -> None:
    one = traffic_class(prompt_words=20)
    bodies = [question(one, "m", 7, number).body() for number in range(100)]
    assert bodies == [question(one, "m", 7, number).body() for number in range(100)]
    assert len(set(bodies)) == 100
    assert bodies[0] != question(one, "m", 8, 0).body()


def test_the_bytes_stay_the_same_for_ever() -> None:
    one = traffic_class(
        prompt_words={"distribution": "lognormal", "median": 30, "sigma": 0.8, "max": 400},
        answer_tokens={"distribution": "uniform", "min": 4, "max": 9},
    )
    bodies = b"\n".join(question(one, "m", 1, number).body() for number in range(50))
    assert hashlib.sha256(bodies).hexdigest() == KEPT


KEPT = "2337a4382c8c2416761146fcfd406553bd02ea2cd3745dee2ce91f05fc211604"


def test_a_prompt_has_its_words() -> None:
    for words in (1, 4, 12, 100):
        found = question(traffic_class(prompt_words=words), "m", 1, 0).prompt.split()
        assert len(found) == max(4, words)


def test_lengths_are_distributed() -> None:
    uniform = traffic_class(answer_tokens={"distribution": "uniform", "min": 3, "max": 5})
    assert {question(uniform, "m", 1, number).max_tokens for number in range(100)} == {3, 4, 5}
    skewed = traffic_class(
        answer_tokens={"distribution": "lognormal", "median": 40, "sigma": 0.6, "max": 100}
    )
    found = sorted(question(skewed, "m", 1, number).max_tokens for number in range(1000))
    assert 36 <= found[500] <= 44
    assert found[-1] == 100
    assert found[0] >= 1


def test_a_share_of_the_clients_leaves() -> None:
    one = traffic_class(cancel={"share": 0.3, "after_seconds": 1})
    assert 250 < sum(leaves(one, 1, number) for number in range(1000)) < 350
    assert not leaves(traffic_class(), 1, 0)
