"""The load generators under test: the command line of each, and the medians in its report."""

import json
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.servers import environment

HERE = Path(__file__).resolve().parent
PROMPT = "amber anchor apple arrow autumn basil basket beacon birch bottle branch bread"


@dataclass(frozen=True)
class Load:
    """`count` requests for `tokens` each, sent at `rate` per second or by `concurrency` clients."""

    count: int
    tokens: int
    rate: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Medians:
    """Median times, in seconds."""

    first_token: float
    end_to_end: float


@dataclass(frozen=True)
class Command:
    """A command line and its environment."""

    argv: list[str]
    environ: Mapping[str, str]


class Tool(Protocol):
    """One load generator."""

    name: str

    def command(self, url: str, load: Load, folder: Path) -> Command:
        """Return the command that sends the load; `url` has no /v1, `folder` is empty."""

    def read_medians(self, folder: Path) -> Medians:
        """Return the medians in its report."""


class Traffic:
    """This repository's, with its locked dependencies."""

    name = "traffic"

    def command(self, url: str, load: Load, folder: Path) -> Command:
        """Return the command."""
        argv = [str(environment("traffic")), "-m", "bedplate_traffic", "run", f"--url={url}/v1", "--key=none"]
        argv += [f"--json={folder / 'report.json'}", f"--max-tokens={load.tokens}"]
        if load.rate:
            argv += [f"--rate={load.rate}", f"--seconds={load.count / load.rate}"]
        else:
            argv += [f"--concurrency={load.concurrency}", f"--requests={load.count}"]
        return Command(argv, {})

    def read_medians(self, folder: Path) -> Medians:
        """Return the medians in its report."""
        (report,) = json.loads((folder / "report.json").read_text())["classes"]
        return Medians(report["first_token"]["p50"], report["end_to_end"]["p50"])


def _tokenizer(folder: Path) -> Path:
    """Make a tokenizer of words: other tools need one even where the server counts the tokens."""
    program = (
        "import sys\n"
        "from tokenizers import Tokenizer, models, pre_tokenizers\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "tokenizer = Tokenizer(models.WordLevel({'[UNK]': 0, '<s>': 1}, unk_token='[UNK]'))\n"
        "tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()\n"
        "fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='[UNK]', bos_token='<s>', "
        "eos_token='<s>', pad_token='<s>')\n"
        "fast.chat_template = \"{% for message in messages %}{{ message['content'] }}{% endfor %}\"\n"
        "fast.save_pretrained(sys.argv[1])\n"
    )
    target = folder / "tokenizer"
    python = str(environment("aiperf"))
    subprocess.run([python, "-c", program, str(target)], check=True, capture_output=True)
    return target


def _prompts(folder: Path, count: int, **more: object) -> Path:
    """Write `count` prompts, one line of JSON each."""
    words = PROMPT.split()
    key = "prompt" if more else "text"
    lines = [
        json.dumps({key: " ".join(words[number % len(words) :] + words[: number % len(words)]), **more})
        for number in range(count)
    ]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


class AIPerf:
    """NVIDIA's aiperf."""

    name = "aiperf"

    def command(self, url: str, load: Load, folder: Path) -> Command:
        """Return the command."""
        argv = [str(environment("aiperf").parent / "aiperf"), "profile", "--model=fake", f"--url={url}"]
        argv += ["--endpoint-type=chat", "--streaming", "--use-server-token-count", "--ui=none"]
        argv += [f"--input-file={_prompts(folder, load.count)}", "--custom-dataset-type=single_turn"]
        argv += [f"--tokenizer={_tokenizer(folder)}", f"--artifact-dir={folder / 'out'}"]
        argv += [f"--extra-inputs=max_tokens:{load.tokens}", "--export-level=summary"]
        argv += [f"--request-count={load.count}"]
        if load.rate:
            argv += [f"--request-rate={load.rate}", "--arrival-pattern=constant"]
        else:
            argv += [f"--concurrency={load.concurrency}"]
        return Command(argv, {})

    def read_medians(self, folder: Path) -> Medians:
        """Return the medians in its report."""
        report = json.loads((folder / "out/profile_export_aiperf.json").read_text())
        return Medians(report["time_to_first_token"]["p50"] / 1000, report["request_latency"]["p50"] / 1000)


class GuideLLM:
    """The vLLM project's guidellm."""

    name = "guidellm"

    def command(self, url: str, load: Load, folder: Path) -> Command:
        """Return the command."""
        shape = (
            f"kind=constant,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.concurrency}"
        )
        argv = [str(environment("guidellm").parent / "guidellm"), "run"]
        argv += ["--backend", f"kind=openai_http,target={url},model=fake,validate_backend=false"]
        argv += ["--profile", shape, "--constraint", f"kind=max_requests,count={load.count}"]
        argv += ["--tokenizer", f"kind=hf_auto,model={_tokenizer(folder)}"]
        prompts = _prompts(folder, load.count, output_tokens_count=load.tokens)
        argv += ["--data", f"kind=json_file,path={prompts}"]
        argv += ["--output", f"kind=json,path={folder / 'out.json'}", "--disable-console"]
        return Command(argv, {"HF_HUB_OFFLINE": "1"})

    def read_medians(self, folder: Path) -> Medians:
        """Return the medians in its report."""
        metrics = json.loads((folder / "out.json").read_text())["benchmarks"][0]["metrics"]
        return Medians(
            metrics["time_to_first_token_ms"]["successful"]["median"] / 1000,
            metrics["request_latency"]["successful"]["median"],
        )


class Locust:
    """Locust, with locustfile.py."""

    name = "locust"

    def command(self, url: str, load: Load, folder: Path) -> Command:
        """Return the command."""
        users = load.rate or load.concurrency
        argv = [str(environment("locust").parent / "locust"), "--headless", "--only-summary"]
        argv += [f"--locustfile={HERE / 'locustfile.py'}", f"--host={url}", f"--users={users}"]
        argv += [f"--spawn-rate={users}"]
        environ = {"COUNT": str(load.count), "TOKENS": str(load.tokens), "PROMPT": PROMPT}
        environ |= {"TIMES": str(folder / "times.json"), "RATE": str(load.rate or "")}
        return Command(argv, environ)

    def read_medians(self, folder: Path) -> Medians:
        """Return the medians in its report."""
        times = json.loads((folder / "times.json").read_text())
        return Medians(
            statistics.median(first_token for first_token, _ in times),
            statistics.median(end_to_end for _, end_to_end in times),
        )


TOOLS: tuple[Tool, ...] = (Traffic(), Locust(), AIPerf(), GuideLLM())
