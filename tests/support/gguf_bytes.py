"""GGUF and safetensors files byte by byte, so that a test can break any single field."""

import json
import struct

STRING, ARRAY, U32 = 8, 9, 4


def u64(value):
    return struct.pack("<Q", value)


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return u64(len(raw)) + raw


def key_value(key, type_number, raw):
    return text(key) + struct.pack("<I", type_number) + raw


def string_value(key, value):
    return key_value(key, STRING, text(value))


def u32_value(key, value):
    return key_value(key, U32, struct.pack("<I", value))


def array_value(key, element_type, count, raw=b""):
    return key_value(key, ARRAY, struct.pack("<IQ", element_type, count) + raw)


def tensor_info(name, dims, type_number=0, offset=0, *, num_dims=None):
    """dims innermost first, as in the file."""
    count = len(dims) if num_dims is None else num_dims
    return (text(name) + struct.pack("<I", count) + struct.pack(f"<{len(dims)}Q", *dims)
            + struct.pack("<IQ", type_number, offset))


def gguf_bytes(key_values=(), tensors=(), payload=b"", *, version=3, num_tensors=None, num_key_values=None,
               alignment=32):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if num_tensors is None else num_tensors,
                                 len(key_values) if num_key_values is None else num_key_values)
    head += b"".join(key_values) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + payload


def safetensors_bytes(header, payload=b"", *, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + payload
