"""What is said on the store lane: a chunk of a described model's file is asked for, and told or refused.

    ask:    [version, fields] in one msgpack frame
    answer: [version, "told" | "refused", fields], and after "told" the chunk as a raw frame

Every question stands alone and bears the join token: whoever answers keeps nothing between two of them, so an asker
that vanishes costs nothing, and one whose server restarted goes on at the same byte. A file is named by the model's
fingerprint and a plain file name; there is no way to say a path. Sizes are checked before anything is allocated.
"""

from typing import Any, TypeAlias

import attrs
from attrs.validators import and_, ge, le, max_len

from hydra.protocol.blob import Buffer, Frames
from hydra.protocol.codec import converter, pack, unpack
from hydra.protocol.faults import TheyBrokeTheRules
from hydra.protocol.refusal import Refusal

STORE_VERSION = 1
CHUNK_BYTES_MAX = 4 << 20
ASK_BYTES_MAX = 16 << 10
ANSWER_BYTES_MAX = CHUNK_BYTES_MAX + (64 << 10)
FILE_NAME_LENGTH_MAX = 255
AUTH_LENGTH_MAX = 4096
REFUSAL_LENGTH_MAX = 2000  # of a refusal: it fits its frame whatever it quotes
OFFSET_MAX = 1 << 62

_size = and_(ge(0), le(OFFSET_MAX))


@attrs.frozen(kw_only=True)
class ChunkRequest:
    """Bytes [offset, offset + length) of one file. `number` pairs the answer with it, within one connection."""

    number: int = attrs.field(validator=_size)
    auth: str = attrs.field(validator=max_len(AUTH_LENGTH_MAX), repr=False)  # the join token; empty on loopback
    fingerprint: str = attrs.field(validator=max_len(FILE_NAME_LENGTH_MAX))
    file: str = attrs.field(validator=max_len(FILE_NAME_LENGTH_MAX))
    offset: int = attrs.field(validator=_size)
    length: int = attrs.field(validator=and_(ge(0), le(CHUNK_BYTES_MAX)))


@attrs.frozen(kw_only=True)
class ChunkReply:
    """The bytes that were asked for, all of them, and how long their file is."""

    number: int = attrs.field(validator=_size)
    file_bytes: int = attrs.field(validator=_size)
    data: Buffer = attrs.field(eq=bytes, repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen(kw_only=True)
class ChunkRefused:
    """These bytes do not come from here. SPEC.md says which codes there are, and what each means."""

    number: int = attrs.field(validator=_size)
    refusal: Refusal


ChunkAnswer: TypeAlias = ChunkReply | ChunkRefused


@attrs.frozen(kw_only=True)
class _ToldHead:
    """A ChunkReply without its bytes."""

    number: int = attrs.field(validator=_size)
    file_bytes: int = attrs.field(validator=_size)


def encode_ask(ask: ChunkRequest) -> list[Buffer]:
    return [pack((STORE_VERSION, converter.unstructure(ask)))]


def decode_ask(frames: Frames) -> ChunkRequest:
    """Raises TheyBrokeTheRules and nothing else."""
    try:
        (frame,) = frames
        if len(frame) > ASK_BYTES_MAX:
            raise ValueError(f"{len(frame)} bytes are too many")
        version, fields = unpack(frame)
        asked: ChunkRequest = _structured(version, fields, ChunkRequest)
    except Exception as error:
        raise TheyBrokeTheRules(f"no question of the store lane: {error!r:.200}") from error
    return asked


def encode_answer(answer: ChunkAnswer) -> list[Buffer]:
    """The chunk's frame is the answer's own buffer. A ValueError here is a bug of ours."""
    if isinstance(answer, ChunkReply):
        if len(answer.data) > CHUNK_BYTES_MAX:
            raise ValueError(f"a chunk of {len(answer.data)} bytes")
        head = _ToldHead(number=answer.number, file_bytes=answer.file_bytes)
        return [pack((STORE_VERSION, "told", converter.unstructure(head))), answer.data]
    short = attrs.evolve(answer.refusal, message=answer.refusal.message[:REFUSAL_LENGTH_MAX])
    fields = converter.unstructure(attrs.evolve(answer, refusal=short))
    return [pack((STORE_VERSION, "refused", fields))]


def decode_answer(frames: Frames) -> ChunkAnswer:
    """The chunk looks into the received buffer. Raises TheyBrokeTheRules and nothing else."""
    try:
        if len(frames[0]) > ASK_BYTES_MAX:
            raise ValueError(f"a head of {len(frames[0])} bytes")
        version, kind, fields = unpack(frames[0])
        if kind == "refused" and len(frames) == 1:
            refused: ChunkRefused = _structured(version, fields, ChunkRefused)
            return refused
        if kind != "told" or len(frames) != 2 or len(frames[1]) > CHUNK_BYTES_MAX:
            raise ValueError(f"{kind!r:.40} in {len(frames)} frames")
        head = _structured(version, fields, _ToldHead)
        return ChunkReply(number=head.number, file_bytes=head.file_bytes, data=frames[1])
    except Exception as error:
        raise TheyBrokeTheRules(f"no answer of the store lane: {error!r:.200}") from error


def _structured(version: object, fields: object, kind: Any) -> Any:
    if version != STORE_VERSION or type(version) is not int or type(fields) is not dict:
        raise ValueError(f"version {version!r:.40}, expected {STORE_VERSION}")
    return converter.structure(fields, kind)
