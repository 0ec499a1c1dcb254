#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes one declared model present in Ollama; reads the present models from its models directory."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.models import (
    MODEL_LAYER,
    ModelError,
    Wanted,
    missing_reason,
    parse_name,
    read_model,
    truncated_blobs,
)

DOCUMENTATION = r"""
module: ollama_model
short_description: Make a model present in Ollama
description:
  - Runs on the inference host. Reads the manifests in the models directory to check whether the model is as
    declared, so that check mode needs no running engine. Calls the engine only to create a model.
  - A model from a GGUF file is as declared if its weights have the checksum and its parameters are equal.
    Undeclared C(stop) words are ignored, because Ollama adds those of the template it detects.
  - A pulled model is as declared if it is present and has the declared digest, if any.
  - The old model stays until the new one is complete. Files that a power cut truncated are removed, so that
    they are downloaded again.
options:
  url:
    description: URL of the engine.
    type: str
    default: http://127.0.0.1:11434
  models_dir:
    description: The engine's models directory (its OLLAMA_MODELS).
    type: path
    required: true
  name:
    description: Name of the model, such as smollm2:135m.
    type: str
    required: true
  gguf:
    description: GGUF file on the host. Read only when the engine lacks its content.
    type: path
  checksum:
    description: Checksum of the GGUF file, sha256 and its 64 hexadecimal digits joined by a colon.
    type: str
  parameters:
    description: Parameters of a model from a GGUF file, such as num_ctx.
    type: dict
  template:
    description: Prompt template of a model from a GGUF file. Ollama detects one where absent.
    type: str
  pull:
    description:
      - Reference to pull, such as llama3.2:3b. One with http:// is pulled without TLS. If it differs from the
        model's name, the model is copied to its name and the reference removed.
    type: str
  digest:
    description: Digest that a pulled model must have, as the engine's /api/tags shows it.
    type: str
  progress:
    description:
      - File with the progress of a pull while it runs. Its folder must exist. The action plugin of this name
        runs the module in the background then, and prints the progress every five seconds.
    type: path
author: Bedplate
"""

EXAMPLES = r"""
- name: Create a model from a file
  ollama_model:
    models_dir: /var/lib/ollama/models
    name: smollm2:135m
    gguf: /var/lib/ollama/import/smollm2.gguf
    checksum: sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    parameters: {num_ctx: 4096, num_thread: 1}

- name: Pull a model from a registry in the rack
  ollama_model:
    models_dir: /var/lib/ollama/models
    name: smollm2:135m
    pull: http://10.1.2.3:5000/library/smollm2:135m
"""

RETURN = r"""
reason:
  description: Why the model was not as declared; null if it was.
  returned: success
  type: str
digest:
  description: Digest of the model, with the prefix sha256 and a colon; null in check mode if not yet created.
  returned: success
  type: str
"""

# The parameters that Ollama uses. It stores other names without a warning and ignores them.
PARAMETERS = {
    "frequency_penalty",
    "main_gpu",
    "min_p",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_predict",
    "num_thread",
    "presence_penalty",
    "repeat_last_n",
    "repeat_penalty",
    "seed",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_mmap",
}
REQUEST_SECONDS = 30
# Verifying the checksum of a very large file takes minutes without any output.
SILENCE_SECONDS = 1800
WRITE_SECONDS = 1.0


class NotFoundError(ModelError):  # type: ignore[misc]  # ansible has no types, its module_utils neither
    """The engine returned 404."""


class Engine:
    """Client of Ollama's API for creating models; every failure raises ModelError."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # The engine is on this host, so ignore the environment's proxy settings.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(
        self, method: str, path: str, body: Any = None, timeout: float = REQUEST_SECONDS
    ) -> http.client.HTTPResponse:
        """Send one request (a file as it is, anything else as JSON) and return the response."""
        request = urllib.request.Request(f"{self.url}{path}", method=method)
        if hasattr(body, "read"):
            request.data = body  # setting it removes an earlier Content-Length
            request.add_header("Content-Length", str(os.fstat(body.fileno()).st_size))
        elif body is not None:
            request.add_header("Content-Type", "application/json")
            request.data = json.dumps(body).encode()
        try:
            response: http.client.HTTPResponse = self.opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            kind = NotFoundError if error.code == 404 else ModelError
            text = error.read().decode(errors="replace")
            raise kind(
                f"Ollama refused {method} {path}: {json_field(text, 'error') or text or error.code}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, BrokenPipeError | ConnectionResetError):
                raise ModelError(
                    f"Ollama closed the connection at {method} {path} ({cause}); run: journalctl -u ollama"
                ) from None
            raise ModelError(
                f"Ollama does not respond at {self.url} ({cause}); run: systemctl status ollama"
            ) from None
        return response

    def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        action: str,
        on_state: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Send one request and read its stream of states until success; `action` is named in errors."""
        last = ""
        with self.call("POST", path, body, timeout=SILENCE_SECONDS) as response:
            for line in read_lines(response, action):
                if error := json_field(line, "error"):
                    raise ModelError(f"{action} failed: {error}")
                last = json_field(line, "status") or last
                on_state(line)
        if last != "success":
            raise ModelError(
                f"{action} ended early, after {last or 'nothing'!r}; run the playbook again to resume."
            )

    def has_blob(self, digest: str) -> bool:
        """Return whether the engine has the content with this digest."""
        try:
            self.call("HEAD", f"/api/blobs/{digest}").close()
        except NotFoundError:
            return False
        return True

    def upload(self, digest: str, file: BinaryIO) -> None:
        """Upload content; the engine verifies the digest."""
        self.call("POST", f"/api/blobs/{digest}", file, timeout=SILENCE_SECONDS).close()


class Progress:
    """Writes the progress of a pull into a file, at most once a second."""

    def __init__(self, path: Path | None, name: str) -> None:
        self.path = path
        self.name = name
        self.layers: dict[str, tuple[int, int]] = {}
        self.written = 0.0
        self.first: tuple[float, int] | None = None

    def take(self, state: str) -> None:
        """Add one state of the engine's stream. What an earlier run had pulled does not count as speed."""
        digest = json_field(state, "digest")
        if self.path is None or digest is None:
            return
        done, total = (int(json_field(state, field) or 0) for field in ("completed", "total"))
        self.layers[digest] = done, total
        now = time.monotonic()
        if now - self.written < WRITE_SECONDS:
            return
        self.written = now
        done, total = (sum(counts) for counts in zip(*self.layers.values(), strict=True))
        since, before = self.first = self.first or (now, done)
        speed = (done - before) / (now - since) if now > since else 0
        document = {"model": self.name, "done": done, "total": total, "per_second": round(speed)}
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(document))
        new.replace(self.path)

    def end(self) -> None:
        """Remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def read_lines(response: http.client.HTTPResponse, action: str) -> Iterator[str]:
    """Yield the lines of a response; raises ModelError if the connection breaks."""
    try:
        for line in response:
            yield line.decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise ModelError(f"{action} was interrupted ({error}); run the playbook again to resume.") from None


def json_field(text: str, field: str) -> str | None:
    """Return a field of the JSON object in `text`, or None."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return str(data[field]) if isinstance(data, dict) and data.get(field) else None


def create_from_gguf(engine: Engine, models_dir: Path, name: str, wanted: Wanted) -> None:
    """Create the model from its GGUF file; uploads the file unless the engine already has it."""
    if wanted.checksum is None or wanted.gguf is None:
        raise ModelError(f"{name}: gguf needs its checksum.")
    if wanted.gguf.exists():
        for path in truncated_blobs(models_dir, {wanted.checksum: wanted.gguf.stat().st_size}):
            path.unlink()
    if not engine.has_blob(wanted.checksum):
        try:
            with wanted.gguf.open("rb") as file:
                actual = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
                if actual != wanted.checksum:
                    raise ModelError(
                        f"{name}: {wanted.gguf} has the checksum {actual}, not {wanted.checksum}; "
                        "download the file again or correct the checksum."
                    )
                check_free_space(models_dir, file)
                file.seek(0)
                engine.upload(wanted.checksum, file)
        except OSError as error:
            raise ModelError(
                f"{name}: {wanted.gguf} cannot be read ({error.strerror}); check gguf."
            ) from None
    body: dict[str, Any] = {
        "model": name,
        "files": {"model.gguf": wanted.checksum},
        "parameters": wanted.parameters,
    }
    if wanted.template is not None:
        body["template"] = wanted.template
    engine.stream("/api/create", body, f"creating {name}")


def check_free_space(models_dir: Path, file: BinaryIO) -> None:
    """Raise ModelError if the models directory's disk has no space for the file."""
    if not models_dir.exists():
        return  # the engine creates it
    size = os.fstat(file.fileno()).st_size
    stats = os.statvfs(models_dir)
    free = stats.f_bavail * stats.f_frsize
    if free < size:
        raise ModelError(
            f"{models_dir} has {free // 10**6} MB free, but the model needs {size // 10**6} MB; "
            "free some space or set ollama_models_dir to another disk."
        )


def pull_model(engine: Engine, models_dir: Path, name: str, wanted: Wanted, file: Path | None = None) -> None:
    """Pull the reference and check its digest; copy the model to its name if that is another one."""
    reference = wanted.pull or ""
    source = parse_name(reference)
    plain = re.sub(r"^https?://", "", reference)
    # A model under a reference without a scheme may be in use; one with a scheme exists only for this pull.
    was_there = plain == reference and (models_dir / source.path).exists()
    body = {"model": reference, "insecure": reference.startswith("http://")}
    progress = Progress(file, name)
    try:
        engine.stream("/api/pull", body, f"pulling {reference}", progress.take)
    finally:
        progress.end()
    try:
        stored, _ = read_model(models_dir, source)
        if stored and wanted.digest and stored.digest != wanted.digest:
            raise ModelError(
                f"{name}: {reference} has the digest {stored.digest}, not {wanted.digest}; "
                "correct digest if the change is wanted."
            )
        if source != wanted.name:
            engine.call("POST", "/api/copy", {"source": plain, "destination": name}).close()
    finally:
        if source != wanted.name and not was_there:
            engine.call("DELETE", "/api/delete", {"model": plain}).close()


def create(engine: Engine, models_dir: Path, name: str, wanted: Wanted, progress: Path | None = None) -> None:
    """Create the model and check that it is as declared; raises ModelError if it is not."""
    stored, _ = read_model(models_dir, wanted.name)
    for path in truncated_blobs(models_dir, stored.sizes) if stored else []:
        path.unlink()
    if wanted.pull:
        pull_model(engine, models_dir, name, wanted, progress)
    else:
        create_from_gguf(engine, models_dir, name, wanted)
    if reason := missing_reason(models_dir, wanted):
        raise ModelError(
            f"{name}: Ollama reports success, but {reason}; "
            f"check that OLLAMA_MODELS of the service is {models_dir}."
        )


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; raises ModelError."""
    wanted = Wanted.declared(module.params)
    models_dir, name = Path(module.params["models_dir"]), module.params["name"]
    for parameter in sorted(wanted.parameters.keys() - PARAMETERS):
        module.warn(f"{name}: Ollama is not known to use the parameter {parameter}; check its spelling.")
    reason = missing_reason(models_dir, wanted)
    before, _ = read_model(models_dir, wanted.name)
    if not reason:
        return {"changed": False, "reason": None, "digest": before.digest if before else None}
    after = None
    if not module.check_mode:
        progress = module.params["progress"]
        create(Engine(module.params["url"]), models_dir, name, wanted, Path(progress) if progress else None)
        after, _ = read_model(models_dir, wanted.name)
    shown: dict[str, Any] = {}
    if before and wanted.pull:
        shown = {"digest": before.digest}
    elif before:
        compared = before.parameters.keys() - ({"stop"} - wanted.parameters.keys())
        parameters = {key: value for key, value in before.parameters.items() if key in compared}
        shown = {"model": before.layers.get(MODEL_LAYER), "parameters": parameters}
    return {
        "changed": True,
        "reason": reason,
        "digest": after.digest if after else None,
        "diff": {
            "before_header": name,
            "after_header": name,
            "before": f"{json.dumps(shown, indent=2)}\n" if before else "",
            "after": f"{json.dumps(wanted.for_diff(), indent=2)}\n",
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:11434"},
            "models_dir": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "gguf": {"type": "path"},
            "checksum": {"type": "str"},
            "parameters": {"type": "dict"},
            "template": {"type": "str"},
            "pull": {"type": "str"},
            "digest": {"type": "str"},
            "progress": {"type": "path"},
        },
        mutually_exclusive=[("gguf", "pull"), ("checksum", "pull"), ("gguf", "digest")],
        required_one_of=[("gguf", "pull")],
        required_by={"gguf": "checksum", "digest": "pull", "progress": "pull"},
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except ModelError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
