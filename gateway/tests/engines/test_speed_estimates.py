import pytest
from bedplate_gateway.engines.speed_estimates import LEARN_PROMPT_BYTES, LEARN_TOKENS, SpeedEstimate


def test_the_first_measurement_replaces_the_default_and_later_ones_fall_slowly_and_rise_at_once() -> None:
    speed = SpeedEstimate()
    speed.learn_first_byte(1000, 1.0)
    assert speed.prompt_seconds(2000) == pytest.approx(2.0)
    speed.learn_first_byte(1000, 0.0)
    assert speed.prompt_seconds(1000) == pytest.approx(0.9)
    speed.learn_first_byte(1000, 5.0)
    assert speed.prompt_seconds(1000) == pytest.approx(5.0)


def test_short_prompts_and_answers_teach_nothing() -> None:
    speed = SpeedEstimate()
    speed.learn_first_byte(LEARN_PROMPT_BYTES - 1, 99.0)
    speed.learn_tokens(10, LEARN_TOKENS - 1)
    speed.learn_generation(LEARN_TOKENS - 1, 99.0)
    assert speed == SpeedEstimate()


def test_tokens_are_averages() -> None:
    speed = SpeedEstimate()
    speed.learn_tokens(300, 100)
    assert speed.bytes_per_token == pytest.approx(3.9)
    assert speed.tokens(39) == 10
    speed.learn_generation(100, 12.0)
    assert speed.seconds_per_token == pytest.approx(0.03)
    assert speed.generated_tokens(3.0) == 100
    assert speed.generated_tokens(-1.0) == 0


def test_a_whole_answer_teaches_the_generation_or_the_prompt() -> None:
    speed = SpeedEstimate()
    speed.learn_whole(10, 100, 12.0)
    assert speed.seconds_per_token == pytest.approx(0.03)
    assert not speed.measured
    speed.learn_whole(2000, 100, 5.0)
    assert speed.prompt_seconds(2000) == pytest.approx(2.0)
