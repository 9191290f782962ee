"""TensorBoard's files read back record by record, as the TFRecord format has them."""

import struct


def masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    """Yield the events of a TensorBoard file, as the TFRecord format has them."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at < len(data):
        (length, length_crc) = struct.unpack_from("<QI", data, at)
        body = data[at + 12 : at + 12 + length]
        assert masked_crc32c(data[at : at + 8]) == length_crc
        assert masked_crc32c(body) == struct.unpack_from("<I", data, at + 12 + length)[0]
        yield Event.FromString(body)
        at += 16 + length
