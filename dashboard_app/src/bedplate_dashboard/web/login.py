"""Optional basic authentication for the whole dashboard."""

import hmac

from flask import Flask, Response, request

OPEN_PATHS = frozenset({"/healthz", "/metrics"})
"""systemd and Prometheus read these without a login; they show that the process runs and a few numbers."""


def register(app: Flask, login: str, realm: str) -> None:
    """Require `login`, which is user:password, for every path but `OPEN_PATHS`."""
    user, _, password = login.partition(":")

    @app.before_request
    def check_login() -> Response | None:
        if request.path in OPEN_PATHS:
            return None
        given = request.authorization
        same_user = hmac.compare_digest(((given and given.username) or "").encode(), user.encode())
        same_password = hmac.compare_digest(((given and given.password) or "").encode(), password.encode())
        if same_user and same_password:
            return None
        response = Response(
            "This dashboard requires a user name and a password; "
            "dashboard_user in the inventory is the user name.\n",
            401,
            mimetype="text/plain",
        )
        response.headers["WWW-Authenticate"] = f'Basic realm="{realm}", charset="UTF-8"'
        return response
