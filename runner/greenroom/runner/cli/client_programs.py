"""The clients that `greenroom launch` starts, and how each is pointed here.

`python -m greenroom.runner.cli.client_programs docs/clients.md` writes the table of the page from this one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BEGIN = "<!-- made by greenroom.runner.cli.client_programs -->"
END = "<!-- end of clients -->"
_URL = "http://127.0.0.1:12400"
_MODEL = "MODEL"
_CODEX = 'model_providers.greenroom={ name="greenroom", base_url="{url}/v1", wire_api="responses" }'


@dataclass(frozen=True)
class LaunchedClient:
    """In texts `{url}` stands for the daemon's address and `{model}` for the model's name."""

    name: str
    title: str
    program: str
    install: str
    arguments: tuple[str, ...] = ()
    """Before those of the user."""
    environment: Mapping[str, str] = field(default_factory=dict)
    agent: bool = False
    """Its instructions take thousands of tokens."""
    serves: str = ""
    """Where it is opened once it runs."""


def _opencode() -> str:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Greenroom",
        "options": {"baseURL": "{url}/v1"},
        "models": {"{model}": {}},
    }
    return json.dumps({"provider": {"greenroom": provider}, "model": "greenroom/{model}"})


_OPENAI = {"OPENAI_API_KEY": "none"}

CLIENTS: Sequence[LaunchedClient] = (
    LaunchedClient(
        "codex",
        "Codex",
        "codex",
        "npm install -g @openai/codex",
        ("--config", 'model="{model}"', "--config", 'model_provider="greenroom"', "--config", _CODEX),
        agent=True,
    ),
    LaunchedClient(
        "claude",
        "Claude Code",
        "claude",
        "npm install -g @anthropic-ai/claude-code",
        ("--model", "{model}"),
        {
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "none",
            "ANTHROPIC_API_KEY": "",
            "ANTHROPIC_DEFAULT_OPUS_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_SONNET_MODEL": "{model}",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "{model}",
        },
        agent=True,
    ),
    LaunchedClient(
        "opencode",
        "opencode",
        "opencode",
        "npm install -g opencode-ai",
        environment={"OPENCODE_CONFIG_CONTENT": _opencode()},
        agent=True,
    ),
    LaunchedClient(
        "aider",
        "aider",
        "aider",
        "pip install aider-chat",
        ("--model", "openai/{model}"),
        {"OPENAI_API_BASE": "{url}/v1", **_OPENAI},
    ),
    LaunchedClient(
        "goose",
        "goose",
        "goose",
        "see https://github.com/block/goose",
        (),
        {"GOOSE_PROVIDER": "openai", "GOOSE_MODEL": "{model}", "OPENAI_HOST": "{url}", **_OPENAI},
        agent=True,
    ),
    LaunchedClient(
        "qwen",
        "Qwen Code",
        "qwen",
        "npm install -g @qwen-code/qwen-code",
        (),
        {"OPENAI_BASE_URL": "{url}/v1", "OPENAI_MODEL": "{model}", **_OPENAI},
        agent=True,
    ),
    LaunchedClient(
        "open-webui",
        "Open WebUI",
        "open-webui",
        "pip install open-webui",
        ("serve",),
        {
            "OPENAI_API_BASE_URL": "{url}/v1",
            "OPENAI_API_KEY": "none",
            "DEFAULT_MODELS": "{model}",
            "ENABLE_OLLAMA_API": "false",
        },
        serves="http://localhost:8080",
    ),
    LaunchedClient(
        "ollama",
        "Ollama's command line",
        "ollama",
        "see https://ollama.com/download",
        ("run", "{model}"),
        {"OLLAMA_HOST": "{url}"},
    ),
)


def find(name: str) -> LaunchedClient | None:
    return next((one for one in CLIENTS if one.name == name), None)


def filled(text: str, url: str, model: str) -> str:
    return text.replace("{url}", url).replace("{model}", model)


def render() -> str:
    """The table of the page."""
    rows = [
        (
            f"`{one.name}`",
            one.title,
            f"`{one.install}`" if one.install[:4] != "see " else one.install,
            _set(one),
        )
        for one in CLIENTS
    ]
    head = ("launch", "client", "to install it", "what is set")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def insert(page: str) -> str:
    """The page with its table made again. Raises ValueError when it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page needs {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


def _set(client: LaunchedClient) -> str:
    words = [f"{name}={filled(value, _URL, _MODEL)}" for name, value in client.environment.items()]
    words += [" ".join(filled(one, _URL, _MODEL) for one in client.arguments)] if client.arguments else []
    return ", ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    for file in sys.argv[1:]:
        Path(file).write_text(insert(Path(file).read_text("utf-8")), "utf-8")
