"""A real model for tests of coding agents: it has a long context, and calls the agent's tool once."""

import hashlib
import json
import struct
import sys
import urllib.request
from pathlib import Path
from typing import Any

NAME = "agent:135m"
CONTEXT = 32768
CALLED = "called"
"""The file that an agent makes if it does what the model calls."""
_COMMAND = f"touch {CALLED}"
# The tool of each agent that runs a command, and its arguments.
_CALLS: dict[str, dict[str, Any]] = {
    "Bash": {"command": _COMMAND, "description": "Make a file"},
    "bash": {"command": _COMMAND, "description": "Make a file"},
    "exec_command": {"cmd": _COMMAND},
}
_SHOT = """<|im_start|>user
Make the file.<|im_end|>
<|im_start|>assistant
{{"name": "{}", "arguments": {}}}<|im_end|>
"""
_SHOTS = "".join(
    f'{{{{- if eq .Function.Name "{name}" }}}}{3 * _SHOT.format(name, json.dumps(call))}{{{{- end }}}}'
    for name, call in _CALLS.items()
)
_CALL = '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}'
_IS_LAST_QUESTION = '(and (eq (len (slice $.Messages $index)) 1) (eq .Role "user"))'
# Before a question the model sees three calls, and repeats them. After a tool's result its answer is begun.
TEMPLATE = f"""{{{{- $last := "" }}}}{{{{- range .Messages }}}}{{{{- $last = .Role }}}}{{{{- end }}}}
{{{{- if .Tools }}}}<|im_start|>system
Functions: {{{{ .Tools }}}}<|im_end|>
{{{{ end }}}}
{{{{- range $index, $message := .Messages }}}}
{{{{- if {_IS_LAST_QUESTION} }}}}{{{{- range $.Tools }}}}{_SHOTS}{{{{- end }}}}{{{{- end -}}}}
<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}{{{{ range .ToolCalls }}}}{_CALL}{{{{ end }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
{{{{ if eq $last "tool" }}}}It is {{{{ end }}}}"""
# Without chance and penalties it repeats what it has read.
PARAMETERS = {
    "num_ctx": CONTEXT,
    "num_thread": 1,
    "top_k": 1,
    "repeat_penalty": 1.0,
    "stop": ["<|im_start|>", "<|im_end|>"],
}


def with_context(gguf: bytes) -> bytes:
    """Return a model's file that claims a longer context; Ollama gives none that the file does not claim.

    The model was not trained on it, so its answers make no sense.
    """
    key = b"llama.context_length" + struct.pack("<I", 4)
    start = gguf.index(key) + len(key)
    return gguf[:start] + struct.pack("<I", CONTEXT) + gguf[start + 4 :]


def create(engine_url: str, gguf: Path) -> None:
    """Create the model in an Ollama from the lab's model."""
    content = with_context(gguf.read_bytes())
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    _post(f"{engine_url}/api/blobs/{digest}", content)
    model = {"model": NAME, "files": {gguf.name: digest}, "template": TEMPLATE, "parameters": PARAMETERS}
    _post(f"{engine_url}/api/create", json.dumps(model | {"stream": False}).encode())


def _post(url: str, data: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=120) as response:
        response.read()


if __name__ == "__main__":
    # Writes the model's file, and prints its entry of ollama_models for a lab host.
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(with_context(source.read_bytes()))
    checksum = f"sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}"
    entry = {"name": NAME, "gguf": str(target), "checksum": checksum, "template": TEMPLATE}
    print(json.dumps(entry | {"parameters": PARAMETERS}))
