"""The routes of the front door: one table, in the order in which they are tried.

A name of a model may hold slashes, so `{reference:.+}` comes after the paths that it would swallow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from greenroom.runner.http.anthropic.fields import MESSAGES, TOKEN_COUNT
from greenroom.runner.http.anthropic.messages import MessageTokens, MessageTranslation
from greenroom.runner.http.backends import Backends
from greenroom.runner.http.completion_fields import COMPLETION, EMBEDDING
from greenroom.runner.http.configuring import Configuring
from greenroom.runner.http.context import Context
from greenroom.runner.http.conversations import Conversations
from greenroom.runner.http.daemon import DaemonRoutes
from greenroom.runner.http.docker_requests import DockerRequests
from greenroom.runner.http.embedding_dimensions import shortened_if_asked
from greenroom.runner.http.engine_metrics import EngineMetrics
from greenroom.runner.http.engine_requests import Kind
from greenroom.runner.http.engine_slots import EngineSlots
from greenroom.runner.http.engines import Engines
from greenroom.runner.http.fields import CHAT
from greenroom.runner.http.inference import inference
from greenroom.runner.http.journal import JournalRoutes
from greenroom.runner.http.llama_server import KINDS, LlamaServer
from greenroom.runner.http.logs import Logs
from greenroom.runner.http.models import Listing, Models
from greenroom.runner.http.not_served import NOT_SERVED, not_served
from greenroom.runner.http.ollama.blobs import Blobs
from greenroom.runner.http.ollama.create import OllamaCreation
from greenroom.runner.http.ollama.inference import OllamaInference
from greenroom.runner.http.ollama.models import OllamaModels
from greenroom.runner.http.ollama.transfers import OllamaTransfers
from greenroom.runner.http.openapi.routes import ApiDescription
from greenroom.runner.http.port import AnyResponse, Handler, Request, Route
from greenroom.runner.http.ranking import RERANK, native, scoring
from greenroom.runner.http.ranking_fields import RERANKING
from greenroom.runner.http.remote_exchange import elsewhere
from greenroom.runner.http.requests import Requests
from greenroom.runner.http.responses.routes import Responses
from greenroom.runner.http.transfers import Transfers

_DONE = b"data: [DONE]"
INFERENCE = {
    "/v1/chat/completions": Kind("completion", "/v1/chat/completions", CHAT, end=_DONE),
    "/v1/completions": Kind("completion", "/v1/completions", COMPLETION, param="prompt", end=_DONE),
    "/v1/embeddings": Kind(
        "embedding", "/v1/embeddings", EMBEDDING, param="input", translate=shortened_if_asked
    ),
    "/rerank": Kind("reranking", "/rerank", RERANKING, param="documents", translate=native),
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
}
"""What may follow a prefix, and what it asks of an engine (which has them all at its root)."""

PREFIXES = ("", "/engines", "/engines/{backend}")
"""A path that names a backend is binding: no other serves it."""

ANTHROPIC = {
    "/v1/messages": Kind(
        "completion", "/v1/chat/completions", MESSAGES, "anthropic", end=_DONE, translate=MessageTranslation
    ),
    "/v1/messages/count_tokens": Kind(
        "completion", "/v1/chat/completions/input_tokens", TOKEN_COUNT, "anthropic", translate=MessageTokens
    ),
}


def all_routes(context: Context) -> Iterator[Route]:
    attended = context.clients.attended
    if context.greenroom.remotes:
        context.elsewhere = elsewhere(context.greenroom.remotes)
    for path, kind in INFERENCE.items():
        handler = inference(context, kind)
        for prefix in PREFIXES:
            yield Route("POST", prefix + path, handler, query=None)
    for path, kind in ANTHROPIC.items():
        handler = _with_request_id(inference(context, kind))
        for prefix in (*PREFIXES, "/anthropic"):
            yield Route("POST", prefix + path, handler, query=None)
    responses = Responses(context)
    for prefix in (*PREFIXES, "/responses", "/engines/responses"):
        # As Docker Model Runner has them, and without the version as well.
        whole = prefix if prefix.endswith("/responses") else f"{prefix}/v1/responses"
        yield from _responses(whole, responses, attended)
    score, llama_server = scoring(context), LlamaServer(context)
    for prefix in PREFIXES:
        yield Route("POST", f"{prefix}/score", score, query=None)
        for path, kind in KINDS.items():
            yield Route("POST", prefix + path, llama_server.posted(kind), query=None)
        yield _known("GET", f"{prefix}/props", llama_server.props, "model")
        yield _known("GET", f"{prefix}/health", llama_server.health, "model")
        for path in NOT_SERVED:
            yield Route("POST", prefix + path, not_served(path), query=None)
    listing = Listing(context)
    for prefix in (*PREFIXES, "/anthropic"):
        yield Route("GET", f"{prefix}/v1/models", listing.all)
        yield Route("GET", f"{prefix}/v1/models/{{name:.+}}", listing.one)

    yield from _ollama(context)

    yield _known("GET", "/logs", attended(Logs(context).logs), "follow", "no-engines", "tail")
    yield Route("GET", "/metrics", attended(EngineMetrics(context).metrics))
    recorded = attended(DockerRequests(context).requests)
    yield _known("GET", "/engines/requests", recorded, "model", "include_existing")
    record = Requests(context)
    listed = ("model", "status", "slow", "since", "last", "follow")
    yield _ours("GET", "/requests", attended(record.all), *listed)
    yield _ours("GET", "/requests/record", record.bodies_wanted)
    yield _ours("POST", "/requests/record", record.record_bodies)
    yield _ours("GET", "/requests/{id}", record.one)

    conversations = Conversations(context)
    yield _ours("GET", "/conversations", conversations.all, "model")
    yield _ours("DELETE", "/conversations", conversations.remove_all, "model")
    yield _ours("GET", "/conversations/{id}", conversations.one)
    yield _ours("DELETE", "/conversations/{id}", conversations.remove)

    engines, configuring = Engines(context), Configuring(context)
    yield Route("GET", "/engines/status", engines.status)
    yield _known("GET", "/engines/ps", engines.ps, "all")
    yield _ours("GET", "/engines/devices", engines.devices, "refresh")
    yield _ours("GET", "/engines/remotes", engines.remotes)
    yield _ours("GET", "/engines/ledger", engines.ledger)
    yield _ours("GET", "/engines/queue", engines.queue)
    yield Route("POST", "/engines/unload", engines.unload)
    yield _ours("POST", "/engines/slots", attended(EngineSlots(context).hold))
    for prefix in PREFIXES[1:]:
        yield Route("POST", f"{prefix}/_configure", configuring.configure)
        yield _known("GET", f"{prefix}/_configure", configuring.configurations, "model")

    backends = Backends(context)
    yield Route("POST", "/engines/install-backend", attended(backends.install_and_wait))
    yield Route("POST", "/engines/uninstall-backend", attended(backends.uninstall_and_wait))
    yield _ours("POST", "/engines/cancel-install", backends.cancel)

    transfers, models = Transfers(context), Models(context)
    yield Route("POST", "/models/create", attended(transfers.create))
    yield _ours("POST", "/models/adopt", attended(transfers.adopt))
    yield _ours("POST", "/models/cancel", transfers.cancel)
    yield Route("POST", "/models/load", attended(transfers.load))
    yield Route("POST", "/models/{reference:.+}/push", attended(transfers.push))
    yield Route("GET", "/models/{reference:.+}/export", attended(transfers.export))
    yield Route("GET", "/engines/df", models.df)
    yield _ours("POST", "/models/prune", models.prune)
    yield _ours("POST", "/models/{reference:.+}/verify", attended(models.verify))
    yield Route("GET", "/models", models.all)
    yield _known("POST", "/models/{reference:.+}/tag", models.tag, "repo", "tag")
    yield Route("POST", "/models/{reference:.+}/repackage", models.repackage)
    yield Route("POST", "/models/{reference:.+}/{action}", models.unknown_action)
    yield _known("GET", "/models/{reference:.+}", attended(models.one), "remote")
    yield _known("DELETE", "/models/purge", models.purge, "force")
    yield _known("DELETE", "/models/{reference:.+}", models.remove, "force")

    daemon = DaemonRoutes(context)
    for base in ("/", "/v1", "/engines/v1", "/engines/{backend}/v1", "/anthropic", "/api"):
        yield Route("GET", base, daemon.root)
    yield Route("GET", "/version", daemon.version)
    yield Route("GET", "/livez", daemon.livez)
    yield Route("GET", "/readyz", daemon.readyz)
    yield _ours("GET", "/jobs", daemon.jobs)
    yield _ours("POST", "/daemon/stop", daemon.stop)
    yield _ours("GET", "/why", daemon.why, "name")
    yield _ours("GET", "/why/{name:.+}", daemon.why)
    journal = JournalRoutes(context)
    wanted = ("about", "model", "backend", "engine", "stream", "cause", "kind", "problems", "since", "until")
    yield _ours("GET", "/log", attended(journal.log), *wanted, "last", "after", "follow")
    yield _ours("GET", "/log/summary", attended(journal.summary), "since", "until")
    yield _ours("GET", "/replay", attended(journal.replay), "at")
    yield _ours("GET", "/bundle", attended(journal.bundle))

    description = ApiDescription(lambda: all_routes(context))
    yield Route("GET", "/openapi.json", description.document)
    yield Route("GET", "/docs", description.page)

    yield _ours("GET", "/engines", backends.list)
    yield _ours("POST", "/engines", backends.install)
    yield _ours("POST", "/engines/activate-backend", backends.activate)
    yield _ours("POST", "/engines/verify-backend", attended(backends.verify))
    yield _ours("GET", "/engines/{name}", backends.inspect)
    yield _ours("DELETE", "/engines/{name}", backends.uninstall, "force", "version", "variant")


def _ollama(context: Context) -> Iterator[Route]:
    answers = OllamaInference(context)
    yield Route("POST", "/api/chat", answers.chat, query=None)
    yield Route("POST", "/api/generate", answers.generate, query=None)
    yield Route("POST", "/api/embed", answers.embed, query=None)
    yield Route("POST", "/api/embeddings", answers.embeddings, query=None)
    models, transfers, blobs = OllamaModels(context), OllamaTransfers(context), Blobs(context)
    attended = context.clients.attended
    yield Route("GET", "/api/version", models.version)
    yield Route("GET", "/api/tags", models.tags)
    yield Route("GET", "/api/ps", models.ps)
    yield Route("POST", "/api/show", attended(models.show))
    yield Route("POST", "/api/copy", models.copy)
    yield Route("DELETE", "/api/delete", models.delete)
    yield Route("POST", "/api/create", attended(OllamaCreation(context).create))
    yield Route("POST", "/api/pull", attended(transfers.pull))
    yield Route("POST", "/api/push", attended(transfers.push))
    yield Route("HEAD", "/api/blobs/{digest}", blobs.has)
    yield Route("POST", "/api/blobs/{digest}", attended(blobs.take))


def _with_request_id(handler: Handler) -> Handler:
    """Answers carry the request's id in Anthropic's header too."""

    async def serve(request: Request) -> AnyResponse:
        request.answer_headers["request-id"] = request.id
        return await handler(request)

    return serve


def _responses(path: str, responses: Responses, attended: Callable[[Handler], Handler]) -> Iterator[Route]:
    yield Route("POST", path, responses.create, query=None)
    yield Route("POST", f"{path}/input_tokens", responses.count, query=None)
    one = f"{path}/{{response}}"
    yield _known("GET", one, responses.one, "include", "include_obfuscation", "starting_after", "stream")
    yield Route("DELETE", one, attended(responses.remove))
    yield Route("POST", f"{one}/cancel", attended(responses.cancel))
    listed = ("after", "include", "limit", "order")
    yield _known("GET", f"{one}/input_items", attended(responses.input_items), *listed)


def _known(method: str, pattern: str, handler: Handler, *query: str) -> Route:
    return Route(method, pattern, handler, frozenset(query))


def _ours(method: str, pattern: str, handler: Handler, *query: str) -> Route:
    """A route that no other family of clients has: what it does not know is a mistake."""
    return Route(method, pattern, handler, frozenset(query), strict=True)
