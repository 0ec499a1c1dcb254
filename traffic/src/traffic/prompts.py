"""What is asked: words drawn by the seed, so that a run repeats byte for byte."""

import math
import random
from importlib.resources import files

from traffic.client import Question
from traffic.profile import Length, Lognormal, TrafficClass, Uniform

WORDS = (files("traffic") / "words.txt").read_text(encoding="utf-8").split()
OPENING = "Say something about"


def question(traffic_class: TrafficClass, model: str, seed: int, number: int) -> Question:
    """Return the question of one slot; the same arguments give the same one."""
    # Of all of Random's methods only random() is promised to stay the same for ever.
    dice = random.Random(f"{seed}/{traffic_class.name}/{number}")  # noqa: S311 - dice, no secret
    draw = dice.random
    words = _length(traffic_class.prompt_words, dice)
    tokens = _length(traffic_class.answer_tokens, dice)
    drawn = " ".join([WORDS[int(draw() * len(WORDS))] for _ in range(max(1, words - 3))])
    return Question(model=model, prompt=f"{OPENING} {drawn}.", max_tokens=tokens, stream=traffic_class.stream)


def leaves(traffic_class: TrafficClass, seed: int, number: int) -> bool:
    """Say whether the client of this slot leaves before it is answered."""
    cancel = traffic_class.cancel
    if cancel is None:
        return False
    return random.Random(f"{seed}/{traffic_class.name}/{number}/leaves").random() < cancel.share  # noqa: S311 - dice


def _length(length: Length, dice: random.Random) -> int:
    if isinstance(length, Uniform):
        return length.min + int(dice.random() * (length.max - length.min + 1))
    if isinstance(length, Lognormal):
        # Box and Muller's way from two even numbers to a normal one.
        normal = math.sqrt(-2 * math.log(1.0 - dice.random())) * math.cos(2 * math.pi * dice.random())
        return max(1, min(length.max, round(length.median * math.exp(length.sigma * normal))))
    return length
