"""StorageService: typed for gRPC clients, HttpBody for REST. Both end in the same Storage; the rules live there."""

from google.api import httpbody_pb2
from google.protobuf import struct_pb2
from google.protobuf.empty_pb2 import Empty

from atlas.storage.v1 import storage_pb2, storage_service_pb2_grpc
from atlas.storage.v1 import storage_service_pb2 as pb
from server.errors import InvalidArgument
from server.rpc.access import principal
from server.rpc.boundary import Context, headers
from server.rpc.storage_http import (
    LENGTH_HEADER,
    Headers,
    NotModified,
    OutOfRange,
    answer_headers,
    is_head,
    may_replace,
    metadata_of,
    out_of_range,
    part_of,
    path_of,
    require_modified,
)
from server.rpc.values import fill_from_json, timestamp, to_json
from server.storage.buckets import Buckets
from server.storage.records import Bucket, Slice, StoredObject
from server.storage.storage import Part, Storage


class StorageService(storage_service_pb2_grpc.StorageServiceServicer):
    def __init__(self, storage: Storage, buckets: Buckets) -> None:
        self._storage = storage
        self._buckets = buckets

    async def CreateBucket(self, request: pb.CreateBucketRequest, context: Context) -> storage_pb2.Bucket:
        return _bucket(await self._buckets.create(principal().project_id, request.name, public=request.public))

    async def ListBuckets(self, request: pb.ListBucketsRequest, context: Context) -> pb.ListBucketsResponse:
        return pb.ListBucketsResponse(buckets=map(_bucket, await self._buckets.list(principal().project_id)))

    async def GetBucket(self, request: pb.GetBucketRequest, context: Context) -> storage_pb2.Bucket:
        return _bucket(await self._buckets.get(principal().project_id, request.bucket))

    async def UpdateBucket(self, request: pb.UpdateBucketRequest, context: Context) -> storage_pb2.Bucket:
        if not request.HasField("public"):
            raise InvalidArgument("public", "public is missing; it must be true or false")
        return _bucket(await self._buckets.update(principal().project_id, request.bucket, public=request.public))

    async def DeleteBucket(self, request: pb.DeleteBucketRequest, context: Context) -> Empty:
        await self._buckets.delete(principal().project_id, request.bucket)
        return Empty()

    async def PutObject(self, request: pb.PutObjectRequest, context: Context) -> storage_pb2.StoredObject:
        stored = await self._storage.put(
            principal().project_id,
            request.bucket,
            request.path,
            request.content,
            content_type=request.content_type,
            metadata=to_json(struct_pb2.Value(struct_value=request.metadata), field="metadata"),
            overwrite=not request.create_only,
        )
        return _object(stored)

    async def PutObjectHttp(self, request: pb.PutObjectHttpRequest, context: Context) -> storage_pb2.StoredObject:
        sent = headers()
        stored = await self._storage.put(
            principal().project_id,
            request.bucket,
            path_of(sent, request.path),
            request.body.data,
            content_type=request.body.content_type,
            metadata=metadata_of(sent),
            overwrite=may_replace(sent),
        )
        return _object(stored)

    async def GetObject(self, request: pb.GetObjectRequest, context: Context) -> pb.GetObjectResponse:
        found = await self._storage.get(
            principal().project_id, request.bucket, request.path, _part(request), public_only=_public_only()
        )
        return pb.GetObjectResponse(object=_object(found.object), content=found.content)

    async def GetObjectHttp(self, request: pb.GetObjectHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        sent = headers()
        try:
            if is_head(sent):
                return await self._head(request, sent, context)
            found = await self._storage.get(
                principal().project_id,
                request.bucket,
                path_of(sent, request.path),
                lambda stored: part_of(sent, stored),
                public_only=_public_only(),
            )
        except NotModified as known:
            await context.send_initial_metadata(answer_headers(known.stored, status=304))
            return httpbody_pb2.HttpBody(content_type=known.stored.content_type)
        except OutOfRange as asked:
            metadata, body = out_of_range(asked.stored)
            await context.send_initial_metadata(metadata)
            return httpbody_pb2.HttpBody(content_type="application/json", data=body)
        await context.send_initial_metadata(answer_headers(found.object, found.part))
        return httpbody_pb2.HttpBody(content_type=found.object.content_type, data=found.content)

    async def _head(self, request: pb.GetObjectHttpRequest, sent: Headers, context: Context) -> httpbody_pb2.HttpBody:
        """NotModified."""
        path = path_of(sent, request.path)
        stored = await self._storage.info(principal().project_id, request.bucket, path, public_only=_public_only())
        require_modified(sent, stored)
        length = (LENGTH_HEADER, str(stored.size_bytes))
        await context.send_initial_metadata((*answer_headers(stored), length))
        return httpbody_pb2.HttpBody(content_type=stored.content_type)

    async def GetObjectInfo(self, request: pb.GetObjectInfoRequest, context: Context) -> storage_pb2.StoredObject:
        path = path_of(headers(), request.path)
        return _object(
            await self._storage.info(principal().project_id, request.bucket, path, public_only=_public_only())
        )

    async def ListObjects(self, request: pb.ListObjectsRequest, context: Context) -> pb.ListObjectsResponse:
        page = await self._storage.list(
            principal().project_id,
            request.bucket,
            prefix=request.prefix,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ListObjectsResponse(objects=map(_object, page.objects), next_page_token=page.next_page_token)

    async def DeleteObject(self, request: pb.DeleteObjectRequest, context: Context) -> Empty:
        await self._storage.delete(principal().project_id, request.bucket, path_of(headers(), request.path))
        return Empty()


def _public_only() -> bool:
    return principal().role != "service"


def _part(request: pb.GetObjectRequest) -> Part | None:
    for field in ("offset", "length"):
        if (value := getattr(request, field)) < 0:
            raise InvalidArgument(field, f"{field} is {value}; it must be 0 or more", value=str(value))
    if not request.offset and not request.length:
        return None
    return lambda stored: Slice(request.offset, request.length or stored.size_bytes).within(stored.size_bytes)


def _bucket(bucket: Bucket) -> storage_pb2.Bucket:
    return storage_pb2.Bucket(
        name=bucket.name,
        public=bucket.public,
        created_at=timestamp(bucket.created_at),
        updated_at=timestamp(bucket.updated_at),
    )


def _object(stored: StoredObject) -> storage_pb2.StoredObject:
    metadata = struct_pb2.Value()
    fill_from_json(metadata, stored.metadata.text.encode())
    return storage_pb2.StoredObject(
        bucket=stored.bucket,
        path=stored.path,
        size=stored.size_bytes,
        content_type=stored.content_type,
        checksum=stored.checksum,
        etag=stored.etag,
        metadata=metadata.struct_value,
        created_at=timestamp(stored.created_at),
        updated_at=timestamp(stored.updated_at),
    )
