"""A Django site in one file. In a project, create `client` in the module of your views.

python django_service.py prepare
python django_service.py runserver
curl "localhost:8000/ask?question=Why+is+the+sky+blue?"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path

import greenroom

MODEL = os.environ.get("MODEL", "smollm2")

settings.configure(
    DEBUG=True,
    SECRET_KEY="for development only",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
)
client = greenroom.connect()  # starts nothing yet; each worker process may import this


View = Callable[[HttpRequest], HttpResponseBase]


def refusals_answered(view: View) -> View:
    def answer(request: HttpRequest) -> HttpResponseBase:
        try:
            return view(request)
        except greenroom.GreenroomError as error:
            status = 404 if error.kind == "not_found" else 503
            return JsonResponse({"error": error.sentence, "code": error.code}, status=status)

    return answer


@refusals_answered
def ask(request: HttpRequest) -> HttpResponseBase:
    answer = client.chat(MODEL, request.GET["question"], max_tokens=60)
    return JsonResponse({"answer": answer.text, "tokens": answer.answer_tokens, "worker": os.getpid()})


@refusals_answered
def tell(request: HttpRequest) -> HttpResponseBase:
    """The same, piece by piece. When the caller leaves, the model stops writing."""
    pieces = client.chat(MODEL, request.GET["question"], stream=True)
    return StreamingHttpResponse(pieces.begin(), content_type="text/plain")  # a refusal is raised here


urlpatterns = [path("ask", ask), path("tell", tell)]
application = get_wsgi_application()

if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        client.pull(MODEL, progress=print)
    else:
        execute_from_command_line(sys.argv)
