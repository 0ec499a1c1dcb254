"""Basic authentication for the whole page, where it is wanted."""

from __future__ import annotations

import hmac

from flask import Flask, Response, request

OPEN_PATHS = frozenset({"/healthz", "/metrics"})
"""They tell whether the process runs and a few numbers: systemd and Prometheus ask without a login."""


def register(app: Flask, login: str, realm: str) -> None:
    """Ask everybody for `login`, which is user:password."""
    user, _, password = login.partition(":")

    @app.before_request
    def ask() -> Response | None:
        if request.path in OPEN_PATHS:
            return None
        given = request.authorization
        same_user = hmac.compare_digest(((given and given.username) or "").encode(), user.encode())
        same_password = hmac.compare_digest(((given and given.password) or "").encode(), password.encode())
        if same_user and same_password:
            return None
        response = Response(
            "This dashboard wants a user and a password; dashboard_user in the inventory names the user.\n",
            401,
            mimetype="text/plain",
        )
        response.headers["WWW-Authenticate"] = f'Basic realm="{realm}", charset="UTF-8"'
        return response
