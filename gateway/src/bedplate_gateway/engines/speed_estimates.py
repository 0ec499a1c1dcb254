"""How fast an engine is with a model, learned from its answers, to estimate what was not measured."""

from dataclasses import dataclass

LEARN_PROMPT_BYTES = 1000
"""A shorter prompt measures the network more than the engine."""
LEARN_TOKENS = 50
SHARE = 0.1
"""The weight of a new measurement in a moving average."""


@dataclass
class SpeedEstimate:
    """The speed of one model on one engine.

    It starts with the speed of a slow CPU: to hold one slot too long is better than to free it too early.
    """

    seconds_per_byte: float = 0.002
    """Of the prompt, from start to first token."""
    seconds_per_token: float = 0.02
    bytes_per_token: float = 4.0
    measured: bool = False

    def learn_first_byte(self, prompt_bytes: int, seconds: float) -> None:
        """Learn from the time in which a prompt was processed."""
        if prompt_bytes < LEARN_PROMPT_BYTES:
            return
        sample = seconds / prompt_bytes
        # A cached prompt says little about a new one: the estimate falls slowly and rises at once.
        if self.measured and sample < self.seconds_per_byte:
            sample = _moving_average(self.seconds_per_byte, sample)
        self.seconds_per_byte, self.measured = sample, True

    def learn_tokens(self, prompt_bytes: int, prompt_tokens: int) -> None:
        """Learn from the token count of a prompt that was not truncated."""
        if prompt_tokens >= LEARN_TOKENS:
            self.bytes_per_token = _moving_average(self.bytes_per_token, prompt_bytes / prompt_tokens)

    def learn_generation(self, tokens: int, seconds: float) -> None:
        """Learn from the time in which an answer was generated, without the time of its prompt."""
        if tokens >= LEARN_TOKENS and seconds > 0:
            self.seconds_per_token = _moving_average(self.seconds_per_token, seconds / tokens)

    def learn_whole(self, prompt_bytes: int, tokens: int, seconds: float) -> None:
        """Learn from the time of an answer that was not streamed."""
        if prompt_bytes < LEARN_PROMPT_BYTES:
            self.learn_generation(tokens, seconds)
        else:
            self.learn_first_byte(prompt_bytes, max(0.0, seconds - tokens * self.seconds_per_token))

    def prompt_seconds(self, prompt_bytes: int) -> float:
        """Estimate how long a prompt takes until the first token."""
        return prompt_bytes * self.seconds_per_byte

    def tokens(self, text_bytes: int) -> int:
        """Estimate the tokens of a text."""
        return round(text_bytes / self.bytes_per_token)

    def generated_tokens(self, seconds: float) -> int:
        """Estimate the tokens generated in the `seconds` since the prompt was processed."""
        return max(0, round(seconds / self.seconds_per_token))


def _moving_average(average: float, sample: float) -> float:
    return average + SHARE * (sample - average)
