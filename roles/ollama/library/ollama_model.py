#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes one declared model present in Ollama; what is present is read from its models folder."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: ollama_model
short_description: Make a model present in Ollama
description:
  - Runs on the inference host. Reads the manifests in the models folder to tell whether the model is right,
    so that check mode needs no running engine. Asks the engine only to make what is missing.
  - A model from a GGUF file is right when its weights have the checksum and its parameters equal the declared
    ones. Undeclared C(stop) words are left alone, since Ollama adds those of the template it detects.
  - A pulled model is right when it is there and has the declared digest, if one is declared.
  - What was there stays until the new model is complete. Files of the model that a power cut left short are
    removed, so that they are fetched again.
options:
  url:
    description: Address of the engine.
    type: str
    default: http://127.0.0.1:11434
  models_dir:
    description: The engine's models folder (its OLLAMA_MODELS).
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
    description: Prompt template of a model from a GGUF file. Ollama detects one where it is not given.
    type: str
  pull:
    description:
      - Reference to pull, such as llama3.2:3b. One that begins with http:// is pulled without TLS. Where it
        is not the model's name, the model is copied to its name and the reference removed.
    type: str
  digest:
    description: Digest that a pulled model must have, as the engine's /api/tags shows it.
    type: str
author: Bedplate
"""

EXAMPLES = r"""
- name: Make a model from a file
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
  description: Why the model was not right; null where it was.
  returned: success
  type: str
digest:
  description: Digest of the model, sha256 and a colon first; null in check mode where it is to be made.
  returned: success
  type: str
"""

MODEL_LAYER = "application/vnd.ollama.image.model"
PARAMS_LAYER = "application/vnd.ollama.image.params"
TEMPLATE_LAYER = "application/vnd.ollama.image.template"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[0-9]+)?")
SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
# What Ollama reads; it stores other names without a word and never uses them.
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
ASK_SECONDS = 30
# Checking the sum of a very large file goes on without a word for minutes.
SILENCE_SECONDS = 1800


class ModelError(Exception):
    """A failure; its text is one sentence for the user."""


class NotFoundError(ModelError):
    """The engine answered 404."""


class Name(NamedTuple):
    """A model's full name as Ollama stores it."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def path(self) -> Path:
        """Path of the manifest inside the models folder."""
        return Path("manifests", *self)


def parse_name(text: str) -> Name:
    """Read a name or reference, its scheme left out; raises ModelError where it is none."""
    bare = re.sub(r"^https?://", "", text)
    repository, colon, tag = bare.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = bare, "latest"
    given = repository.split("/")
    parts = [*["registry.ollama.ai", "library"][: max(0, 3 - len(given))], *given, tag]
    if len(parts) != 4 or not HOST.fullmatch(parts[0]) or not all(PART.fullmatch(part) for part in parts[1:]):
        raise ModelError(
            f"{text!r} is not a model's name; write it like llama3.2:3b or HOST/NAMESPACE/MODEL:TAG."
        )
    return Name(*parts)


def parse_sha256(text: str, setting: str) -> str:
    """Return `sha256:` and 64 digits; raises ModelError naming the setting where that is not given."""
    match = SHA256.fullmatch(text.lower())
    if not match:
        raise ModelError(f"{setting} is {text!r}; give sha256: and 64 hexadecimal digits.")
    return f"sha256:{match[1]}"


def parameter(name: str, value: Any) -> Any:
    """Return a parameter as Ollama needs it: a number that came as text becomes one, `stop` is a list."""
    if name == "stop":
        words = [value] if isinstance(value, str) else value
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
        raise ModelError(f"parameter stop is {value!r}; give a list of words.")
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value.lower())
        except ValueError:
            found = None
    if not isinstance(found, int | float):
        raise ModelError(f"parameter {name} is {value!r}; give a number, true or false.")
    return found


def parameters_differ(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters that differ, sorted; an undeclared `stop` may be the template's."""
    names = (wanted.keys() | found.keys()) - ({"stop"} - wanted.keys())
    return sorted(
        name for name in names if name not in wanted or name not in found or wanted[name] != found[name]
    )


class Stored(NamedTuple):
    """A model as it lies in the models folder."""

    digest: str
    layers: dict[str, str]
    parameters: dict[str, Any]
    sizes: dict[str, int]


def blob_path(models_dir: Path, digest: str) -> Path:
    """Return where Ollama keeps the content with this digest."""
    return models_dir / "blobs" / digest.replace(":", "-")


def read_model(models_dir: Path, name: Name) -> tuple[Stored | None, str]:
    """Return the stored model, or None and the reason: absent, or its manifest or parameters are damaged."""
    path = models_dir / name.path
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
        layers = {str(layer["mediaType"]): str(layer["digest"]) for layer in manifest["layers"]}
        sizes = {str(part["digest"]): int(part["size"]) for part in [manifest["config"], *manifest["layers"]]}
        parameters = {}
        if PARAMS_LAYER in layers:
            parameters = dict(json.loads(blob_path(models_dir, layers[PARAMS_LAYER]).read_bytes()))
    except FileNotFoundError as error:
        return None, "it is not there" if error.filename == str(path) else "its parameters are missing"
    except (ValueError, KeyError, TypeError):
        return None, "its manifest is damaged"
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); run as root or as ollama.") from None
    return Stored(f"sha256:{hashlib.sha256(raw).hexdigest()}", layers, parameters, sizes), ""


def short_blobs(models_dir: Path, sizes: Mapping[str, int]) -> list[Path]:
    """Return the files of these digests that lie there with another size."""
    paths = {blob_path(models_dir, digest): size for digest, size in sizes.items()}
    return [path for path, size in paths.items() if path.exists() and path.stat().st_size != size]


class Wanted(NamedTuple):
    """A declared model: from a GGUF file (`checksum` set) or pulled (`pull` set)."""

    name: Name
    gguf: Path | None
    checksum: str | None
    parameters: dict[str, Any]
    template: str | None
    pull: str | None
    digest: str | None

    @classmethod
    def declared(cls, params: Mapping[str, Any]) -> Wanted:
        """Read the module's parameters; raises ModelError for bad ones."""
        if not params["pull"] and not (params["gguf"] and params["checksum"]):
            raise ModelError(f"{params['name']} has no source; give gguf with its checksum, or pull.")
        if params["pull"] and (params["parameters"] or params["template"]):
            raise ModelError(
                f"{params['name']}: parameters and template belong to a model from a gguf file, not to pull."
            )
        if params["pull"]:
            parse_name(params["pull"])
        return cls(
            name=parse_name(params["name"]),
            gguf=Path(params["gguf"]) if params["gguf"] else None,
            checksum=parse_sha256(params["checksum"], "checksum") if params["checksum"] else None,
            parameters={key: parameter(key, value) for key, value in (params["parameters"] or {}).items()},
            template=params["template"],
            pull=params["pull"],
            digest=parse_sha256(params["digest"], "digest") if params["digest"] else None,
        )

    def shown(self) -> dict[str, Any]:
        """What a diff shows as the state to come."""
        if self.pull:
            return {"pull": self.pull, "digest": self.digest or "any"}
        return {"model": self.checksum, "parameters": self.parameters}


def why_other(stored: Stored, wanted: Wanted) -> str:
    """Return what sets the stored model apart from the declared one, or nothing."""
    if wanted.digest and stored.digest != wanted.digest:
        return f"its digest is {stored.digest}, not {wanted.digest}"
    if not wanted.checksum:
        return ""
    if stored.layers.get(MODEL_LAYER) != wanted.checksum:
        return f"its weights are {stored.layers.get(MODEL_LAYER)}, not {wanted.checksum}"
    if names := parameters_differ(wanted.parameters, stored.parameters):
        return f"its parameters differ: {', '.join(names)}"
    if wanted.template is not None:
        template = f"sha256:{hashlib.sha256(wanted.template.encode()).hexdigest()}"
        return "" if stored.layers.get(TEMPLATE_LAYER) == template else "its template differs"
    return ""


def why_not_present(models_dir: Path, wanted: Wanted) -> str:
    """Return why the declared model is not there, whole and as declared, or nothing where it is."""
    stored, reason = read_model(models_dir, wanted.name)
    if stored is None:
        return reason
    if reason := why_other(stored, wanted):
        return reason
    if not all(blob_path(models_dir, digest).exists() for digest in stored.sizes):
        return "a file of it is missing"
    return "a file of it was cut short" if short_blobs(models_dir, stored.sizes) else ""


class Engine:
    """The few calls of Ollama's API that make a model; every failure is a ModelError."""

    def __init__(self, url: str) -> None:
        """Take the engine's address; asks nothing yet."""
        self.url = url.rstrip("/")
        # The engine is on this host: a proxy of the environment must not get in between.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(
        self, method: str, path: str, body: Any = None, timeout: float = ASK_SECONDS
    ) -> http.client.HTTPResponse:
        """Send one request (a file as it is, anything else as JSON) and return the answer."""
        request = urllib.request.Request(f"{self.url}{path}", method=method)
        if hasattr(body, "read"):
            request.data = body  # drops a length set before it
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
                f"Ollama refused {method} {path}: {field_in(text, 'error') or text or error.code}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, BrokenPipeError | ConnectionResetError):
                raise ModelError(
                    f"Ollama broke off {method} {path} ({cause}); look for the cause: journalctl -u ollama"
                ) from None
            raise ModelError(
                f"Ollama does not answer at {self.url} ({cause}); run: systemctl status ollama"
            ) from None
        return response

    def stream(self, path: str, body: Mapping[str, Any], what: str) -> None:
        """Send one request whose answer is a stream of states that must end with success."""
        last = ""
        with self.call("POST", path, body, timeout=SILENCE_SECONDS) as response:
            for line in lines_of(response, what):
                if error := field_in(line, "error"):
                    raise ModelError(f"{what} failed: {error}")
                last = field_in(line, "status") or last
        if last != "success":
            raise ModelError(
                f"{what} ended early, after {last or 'nothing'!r}; run the same again, it goes on from there."
            )

    def has_blob(self, digest: str) -> bool:
        """Return whether the engine holds this content."""
        try:
            self.call("HEAD", f"/api/blobs/{digest}").close()
        except NotFoundError:
            return False
        return True

    def upload(self, digest: str, file: BinaryIO) -> None:
        """Hand over content; the engine checks the digest."""
        self.call("POST", f"/api/blobs/{digest}", file, timeout=SILENCE_SECONDS).close()


def lines_of(response: http.client.HTTPResponse, what: str) -> Iterator[str]:
    """Yield the lines of an answer; raises ModelError where it breaks off."""
    try:
        for line in response:
            yield line.decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise ModelError(f"{what} broke off ({error}); run the same again, it goes on from there.") from None


def field_in(text: str, field: str) -> str | None:
    """Return a field of the JSON object that a line or body of the engine is, or None."""
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return str(data[field]) if isinstance(data, dict) and data.get(field) else None


def make_from_gguf(engine: Engine, models_dir: Path, name: str, wanted: Wanted) -> None:
    """Upload the file, unless the engine holds its content already, and create the model."""
    if wanted.checksum is None or wanted.gguf is None:
        raise ModelError(f"{name}: gguf needs its checksum.")
    if wanted.gguf.exists():
        for path in short_blobs(models_dir, {wanted.checksum: wanted.gguf.stat().st_size}):
            path.unlink()
    if not engine.has_blob(wanted.checksum):
        try:
            with wanted.gguf.open("rb") as file:
                found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
                if found != wanted.checksum:
                    raise ModelError(
                        f"{name}: {wanted.gguf} has the checksum {found}, not {wanted.checksum}; "
                        "fetch the file again or correct the checksum."
                    )
                check_room(models_dir, file)
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
    engine.stream("/api/create", body, f"making {name}")


def check_room(models_dir: Path, file: BinaryIO) -> None:
    """Raise ModelError where the models folder has no room for the file."""
    if not models_dir.exists():
        return  # the engine makes it
    size = os.fstat(file.fileno()).st_size
    stats = os.statvfs(models_dir)
    free = stats.f_bavail * stats.f_frsize
    if free < size:
        raise ModelError(
            f"{models_dir} has {free // 10**6} MB free, but the model needs {size // 10**6} MB; "
            "make room or set ollama_models_dir to another disk."
        )


def make_by_pull(engine: Engine, models_dir: Path, name: str, wanted: Wanted) -> None:
    """Pull the reference; where it is another name, check its digest, copy it and remove the reference."""
    reference = wanted.pull or ""
    source = parse_name(reference)
    plain = re.sub(r"^https?://", "", reference)
    # Somebody may use the reference as a model's name; one with a scheme is only our way in.
    was_there = plain == reference and (models_dir / source.path).exists()
    body = {"model": reference, "insecure": reference.startswith("http://")}
    engine.stream("/api/pull", body, f"pulling {reference}")
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


def make(engine: Engine, models_dir: Path, name: str, wanted: Wanted) -> None:
    """Make the model and check that it is the declared one; raises ModelError where it is not."""
    stored, _ = read_model(models_dir, wanted.name)
    for path in short_blobs(models_dir, stored.sizes) if stored else []:
        path.unlink()
    (make_by_pull if wanted.pull else make_from_gguf)(engine, models_dir, name, wanted)
    if reason := why_not_present(models_dir, wanted):
        raise ModelError(
            f"{name}: Ollama says it is made, but {reason}; "
            f"check that OLLAMA_MODELS of the service is {models_dir}."
        )


def run(module: AnsibleModule) -> dict[str, Any]:
    """Return the module's result; raises ModelError."""
    wanted = Wanted.declared(module.params)
    models_dir, name = Path(module.params["models_dir"]), module.params["name"]
    for parameter in sorted(wanted.parameters.keys() - PARAMETERS):
        module.warn(f"{name}: Ollama is not known to use the parameter {parameter}; check its spelling.")
    reason = why_not_present(models_dir, wanted)
    before, _ = read_model(models_dir, wanted.name)
    if not reason:
        return {"changed": False, "reason": None, "digest": before.digest if before else None}
    after = None
    if not module.check_mode:
        make(Engine(module.params["url"]), models_dir, name, wanted)
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
            "after": f"{json.dumps(wanted.shown(), indent=2)}\n",
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
        },
        mutually_exclusive=[("gguf", "pull"), ("checksum", "pull"), ("gguf", "digest")],
        required_one_of=[("gguf", "pull")],
        required_by={"gguf": "checksum", "digest": "pull"},
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except ModelError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
