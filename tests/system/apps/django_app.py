"""Django's ASGI handler with models on SQLite; ``python django_app.py`` makes the tables."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from version import VERSION

DIRECTORY = Path(__file__).parent
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not a secret",
    USE_TZ=True,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DIRECTORY / "database.sqlite3",
            "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
        }
    },
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


class Author(models.Model):
    name: Any = models.CharField(max_length=100)

    class Meta:
        app_label = "library"


class Book(models.Model):
    title: Any = models.CharField(max_length=100)
    author: Any = models.ForeignKey(Author, on_delete=models.CASCADE, related_name="books")

    class Meta:
        app_label = "library"


async def create(request: HttpRequest) -> JsonResponse:
    facts = json.loads(request.body)
    author, _ = await Author.objects.aget_or_create(name=facts["author"])
    book = await Book.objects.acreate(title=facts["title"], author=author)
    return JsonResponse({"id": book.pk, "version": VERSION}, status=201)


async def read(request: HttpRequest, number: int) -> JsonResponse:
    book = await Book.objects.select_related("author").aget(pk=number)
    return JsonResponse({"title": book.title, "author": book.author.name, "version": VERSION})


def count(request: HttpRequest, author: str) -> JsonResponse:
    return JsonResponse({"count": Book.objects.filter(author__name=author).count()})


async def stream(request: HttpRequest, lines: int) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(lines):
            yield b"line %d\n" % number

    return StreamingHttpResponse(parts(), content_type="text/plain")


urlpatterns = [
    path("books", create),
    path("books/<int:number>", read),
    path("authors/<str:author>", count),
    path("stream/<int:lines>", stream),
]
app = get_asgi_application()

if __name__ == "__main__":
    with connection.schema_editor() as editor:
        editor.create_model(Author)
        editor.create_model(Book)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
