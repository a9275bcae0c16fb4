"""ParkedMessageService: what `server.dispatch.parked` has, for operators."""

import base64

from atlas.deliveries.v1 import parked_messages_service_pb2 as pb
from atlas.deliveries.v1 import parked_messages_service_pb2_grpc
from server.dispatch.parked_messages import ParkedMessage, ParkedMessages
from server.rpc.boundary import Context
from server.rpc.values import timestamp


class ParkedMessageService(parked_messages_service_pb2_grpc.ParkedMessageServiceServicer):
    def __init__(self, messages: ParkedMessages) -> None:
        self._messages = messages

    async def ListParkedMessages(
        self, request: pb.ListParkedMessagesRequest, context: Context
    ) -> pb.ListParkedMessagesResponse:
        page = await self._messages.list(request.page_size, request.page_token)
        return pb.ListParkedMessagesResponse(
            messages=[message_of(item) for item in page.items], next_page_token=page.next_page_token
        )


def message_of(parked: ParkedMessage) -> pb.ParkedMessage:
    text = parked.text
    return pb.ParkedMessage(
        sequence=parked.sequence,
        subject=parked.subject,
        reason=parked.reason,
        body=base64.b64encode(parked.body).decode() if text is None else text,
        encoding="base64" if text is None else "utf-8",
        body_bytes=parked.body_bytes,
        parked_at=timestamp(parked.parked_at),
    )
