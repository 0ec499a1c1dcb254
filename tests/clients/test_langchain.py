"""LangChain's OpenAI classes against the gateway."""

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import BadRequestError, RateLimitError
from pydantic import SecretStr

from tests.clients.endpoints import Endpoint, Faulty


@pytest.fixture
def chat(endpoint: Endpoint) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=endpoint.url,
        api_key=SecretStr(endpoint.key),
        model=endpoint.model,
        max_completion_tokens=60,
        temperature=0,
        max_retries=0,
        stream_usage=True,
    )


def test_invoke(chat: ChatOpenAI) -> None:
    answer = chat.invoke([HumanMessage("Say hello.")])
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream(chat: ChatOpenAI) -> None:
    chunks = list(chat.stream("Say hello."))
    assert "".join(str(chunk.content) for chunk in chunks)
    assert any(chunk.usage_metadata for chunk in chunks)


def test_tools(chat: ChatOpenAI, endpoint: Endpoint) -> None:
    @tool  # type: ignore[untyped-decorator]
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    chat_with_tools = chat.bind_tools([get_weather])
    if not endpoint.tools:
        with pytest.raises(BadRequestError, match="tool"):
            chat_with_tools.invoke("What is the weather in Paris?")
        return
    answer = chat_with_tools.invoke("What is the weather in Paris?")
    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]


def test_responses(endpoint: Endpoint) -> None:
    chat = ChatOpenAI(
        base_url=endpoint.url,
        api_key=SecretStr(endpoint.key),
        model=endpoint.model,
        use_responses_api=True,
        max_completion_tokens=16,
    )
    assert chat.invoke("Say hello.").text


def test_embeddings(endpoint: Endpoint) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=endpoint.url,
        api_key=SecretStr(endpoint.key),
        model=endpoint.model,
        check_embedding_ctx_length=False,
    )
    first, second = embeddings.embed_documents(["one", "two"])
    assert len(first) == len(second) > 2


def test_an_exceeded_limit_raises_openais_error(faulty: Faulty) -> None:
    chat = ChatOpenAI(
        base_url=faulty.url, api_key=SecretStr(faulty.keys["once-langchain"]), model="good", max_retries=0
    )
    errors = []
    for _ in range(2):
        try:
            chat.invoke("hello")
        except RateLimitError as error:
            errors.append(error)
    assert errors
