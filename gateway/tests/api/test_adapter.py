import json

import pytest
from bedplate_gateway.api.adapter import PassThrough
from bedplate_gateway.errors import ApiError


def test_an_endpoint_of_the_engines_checks_the_request_and_passes_the_answer_on() -> None:
    adapter = PassThrough("/v1/completions", lambda _: 7)
    request = adapter.decode_request(json.dumps({"model": "m", "prompt": "hi"}).encode())
    assert (request.path, request.body["max_tokens"]) == ("/v1/completions", 7)
    assert adapter.encode_response(b"answer") == b"answer"
    with pytest.raises(ApiError):
        adapter.decode_request(b"{}")
