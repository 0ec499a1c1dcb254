"""The command `bedplate-litellm`: LiteLLM's proxy with its master key taken from a systemd credential."""

import importlib
import os
import sys
from pathlib import Path

from bedplate_gateway.keys import KeysFileError, KeyStore, keys_file_from_environment

EXIT_CONFIGURATION = 78
"""sysexits' EX_CONFIG: what is wrong stays wrong until somebody mends it."""


class CredentialError(Exception):
    """The master key cannot be used; the message is one sentence that names the remedy."""


def read_master_key() -> str:
    """Return the text of the credential `master-key`; raises CredentialError when there is none."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise CredentialError(
            "CREDENTIALS_DIRECTORY is not set: start this as the litellm service, not by hand."
        )
    path = Path(directory) / "master-key"
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CredentialError(
            f"The credential {path} cannot be read ({error.strerror}): deploy again."
        ) from None
    except UnicodeDecodeError:
        raise CredentialError(f"The credential {path} is not UTF-8 text: deploy again.") from None
    if not key:
        raise CredentialError(f"The credential {path} is empty: deploy again.")
    return key


def main() -> None:
    """Check keys file and master key, then run LiteLLM with this command's arguments in this process."""
    try:
        # Only checked here, so that a broken file is one sentence and not a traceback at the first request.
        KeyStore(keys_file_from_environment())
        master_key = read_master_key()
    except (KeysFileError, CredentialError) as error:
        sys.stderr.write(f"bedplate-litellm: {error}\n")
        sys.exit(EXIT_CONFIGURATION)
    # Set in this process alone: a unit's Environment= would show it to every user of systemctl.
    os.environ["LITELLM_MASTER_KEY"] = master_key
    # Imported late: it takes seconds and must see the variable.
    importlib.import_module("litellm.proxy.proxy_cli").run_server()
