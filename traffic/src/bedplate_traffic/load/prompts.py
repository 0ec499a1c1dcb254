"""Builds the requests: words drawn with the seed, so that a run repeats byte for byte."""

import math
import random
from importlib.resources import files

from bedplate_traffic.load.client import ChatRequest
from bedplate_traffic.load.profile import Length, Lognormal, TrafficClass, Uniform

WORDS = (files("bedplate_traffic.load") / "words.txt").read_text(encoding="utf-8").split()
OPENING = "Say something about"


def build_request(traffic_class: TrafficClass, model: str, seed: int, number: int) -> ChatRequest:
    """Return the request of one slot; the same arguments always give the same request."""
    # Of Random's methods only random() is guaranteed to give the same numbers in every Python version.
    generator = random.Random(f"{seed}/{traffic_class.name}/{number}")  # noqa: S311 - not a secret
    draw = generator.random
    length = _draw_length(traffic_class.prompt_words, generator)
    tokens = _draw_length(traffic_class.answer_tokens, generator)
    words = " ".join([WORDS[int(draw() * len(WORDS))] for _ in range(max(1, length - 3))])
    return ChatRequest(
        model=model, prompt=f"{OPENING} {words}.", max_tokens=tokens, stream=traffic_class.stream
    )


def should_cancel(traffic_class: TrafficClass, seed: int, number: int) -> bool:
    """Return whether the client of this slot disconnects before the answer is complete."""
    cancel = traffic_class.cancel
    if cancel is None:
        return False
    # The word "leaves" is part of the seed: another word would cancel other requests with the same seed.
    return random.Random(f"{seed}/{traffic_class.name}/{number}/leaves").random() < cancel.share  # noqa: S311 - not a secret


def _draw_length(length: Length, generator: random.Random) -> int:
    if isinstance(length, Uniform):
        return length.min + int(generator.random() * (length.max - length.min + 1))
    if isinstance(length, Lognormal):
        # The Box-Muller transform makes one normal number from two uniform ones.
        normal = math.sqrt(-2 * math.log(1.0 - generator.random())) * math.cos(
            2 * math.pi * generator.random()
        )
        return max(1, min(length.max, round(length.median * math.exp(length.sigma * normal))))
    return length
