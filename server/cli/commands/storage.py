"""`atlas storage`: buckets, and the objects in them."""

import json
import mimetypes
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
from google.protobuf import json_format

from atlas.storage.v1 import storage_pb2 as pb
from atlas.storage.v1 import storage_service_pb2 as service
from server.cli.client import Client
from server.cli.files import write
from server.cli.json_input import json_object
from server.cli.output import plain, when
from server.cli.problems import USAGE, Problem
from server.cli.session import Session, options

PAGE: int = 200


@click.group()
def storage() -> None:
    """List, get, put and remove stored objects.

    \b
    atlas storage put photos/2026/cat.jpg cat.jpg
    atlas storage ls photos/2026/
    atlas storage get photos/2026/cat.jpg -o copy.jpg
    """


@storage.command()
@click.argument("place", metavar="[BUCKET[/PREFIX]]", required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=1_000, show_default=True, help="Of objects.")
@options
def ls(session: Session, place: str | None, limit: int) -> None:
    """List buckets; or objects of one by path, those alone that begin with PREFIX."""
    client = session.client
    if place is None:
        buckets = client.call(client.storage.ListBuckets, service.ListBucketsRequest()).buckets
        if session.out.json:
            return session.out.document({"buckets": [plain(item) for item in buckets]})
        rows = ((when(item.created_at), "public" if item.public else "private", item.name) for item in buckets)
        return session.out.table(("CREATED", "ACCESS", "BUCKET"), rows)
    bucket, _, prefix = place.partition("/")
    found = list(islice(_every(client, bucket, prefix, limit), limit))
    if session.out.json:
        return session.out.document({"objects": [plain(item) for item in found]})
    listed = ((when(item.updated_at), item.size, item.content_type, item.path) for item in found)
    return session.out.table(("UPDATED", "BYTES", "TYPE", "PATH"), listed)


@storage.command()
@click.argument("place", metavar="BUCKET/PATH")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; stdout when not given.")
@options
def get(session: Session, place: str, output: Path | None) -> None:
    """Get the content of an object; with --json and no file, what is known of it instead."""
    client = session.client
    bucket, path = _split(place)
    if session.out.json and output is None:
        asked = service.GetObjectInfoRequest(bucket=bucket, path=path)
        return session.out.document(plain(client.call(client.storage.GetObjectInfo, asked)))
    request = service.GetObjectRequest(bucket=bucket, path=path)
    return write(session.out, output, client.call(client.storage.GetObject, request).content)


@storage.command()
@click.argument("place", metavar="BUCKET/PATH")
@click.argument("file", metavar="FILE|-")
@click.option("--type", "content_type", default="", help="Media type. [by the ending of PATH]")
@click.option("--metadata", metavar="JSON|@FILE|-", help="What its owner says of it, an object.")
@click.option("--new", is_flag=True, help="Refuse to replace an object.")
@options
def put(session: Session, place: str, file: str, content_type: str, metadata: str | None, new: bool) -> None:
    """Store a file; a bucket that is not there is made, private."""
    if file == "-" == metadata:
        raise click.UsageError("Either the content or its metadata can come from stdin")
    bucket, path = _split(place)
    request = service.PutObjectRequest(
        bucket=bucket,
        path=path,
        content=_content(file),
        content_type=content_type or mimetypes.guess_type(path)[0] or "",
        create_only=new,
    )
    if metadata is not None:
        json_format.Parse(json.dumps(json_object(metadata, "--metadata")), request.metadata)
    client = session.client
    stored = client.call(client.storage.PutObject, request)
    if session.out.json:
        return session.out.document(plain(stored))
    return session.out.text(f"Stored {stored.bucket}/{stored.path}: {stored.size} bytes, {stored.content_type}")


@storage.command()
@click.argument("places", metavar="BUCKET/PATH...", nargs=-1, required=True)
@options
def rm(session: Session, places: tuple[str, ...]) -> None:
    """Delete objects for good, one after the other."""
    client = session.client
    for bucket, path in [_split(place) for place in places]:
        client.call(client.storage.DeleteObject, service.DeleteObjectRequest(bucket=bucket, path=path))
        if not session.out.json:
            session.out.text(f"Deleted {bucket}/{path}")
    if session.out.json:
        session.out.document({"deleted": list(places)})


def _every(client: Client, bucket: str, prefix: str, limit: int) -> Iterator[pb.StoredObject]:
    """By path, page by page as they are asked for."""
    request = service.ListObjectsRequest(bucket=bucket, prefix=prefix, page_size=min(limit, PAGE))
    while True:
        page = client.call(client.storage.ListObjects, request)
        yield from page.objects
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _split(place: str) -> tuple[str, str]:
    bucket, _, path = place.partition("/")
    if not bucket or not path:
        raise click.UsageError(f'"{place}" is not like BUCKET/PATH')
    return bucket, path


def _content(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as why:
        raise Problem(f"{file} cannot be read: {why.strerror}", USAGE) from why
