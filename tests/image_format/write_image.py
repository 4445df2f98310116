#!/usr/bin/env python3
"""Writes an image file, by docs/image-format.md and nothing else.

  write_image.py RAW IMAGE [NAME]

RAW is what the memory holds, from its first byte to its last.
"""

import hashlib
import os
import struct
import sys

PAGE = 4096
MIN_BLOCK = 256
MAX_BLOCKS = 64
HEADER = 128


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def number_field(field, number):
    return varint(field << 3) + varint(number)


def bytes_field(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def words(numbers):
    return b"".join(struct.pack("<Q", number) for number in numbers)


def extents(memory):
    """(first page, bytes) of each."""
    pages = (len(memory) + PAGE - 1) // PAGE
    block = MIN_BLOCK
    while pages > block * MAX_BLOCKS:
        block *= 2
    found, run = [], None
    for page in range(pages):
        data = memory[page * PAGE : (page + 1) * PAGE].ljust(PAGE, b"\0")
        if not any(data):
            run = None
            continue
        if run is None or page % block == 0:
            run = (page, bytearray())
            found.append(run)
        run[1].extend(data)
    return found


def image(memory, name):
    """The bytes in front of the data, where they begin, and the extents."""
    stored = extents(memory)
    first = [page for page, _ in stored]
    pages = [len(data) // PAGE for _, data in stored]
    digests = [hashlib.sha256(data).digest() for _, data in stored]

    content = hashlib.sha256(b"firsttouch-image-1\n" + words([len(memory)]))
    for row in zip(first, pages, digests):
        content.update(words(row[:2]) + row[2])

    manifest = (
        number_field(1, 1)
        + number_field(2, PAGE)
        + number_field(3, len(memory))
        + bytes_field(4, name.encode())
        + bytes_field(5, words(first))
        + bytes_field(6, words(pages))
        + bytes_field(7, b"".join(digests))
        + bytes_field(8, content.digest())
        + bytes_field(14, bytes_field(1, b"write_image.py"))
    )
    data_offset = (HEADER + len(manifest) + PAGE - 1) // PAGE * PAGE
    data_bytes = (len(memory) + PAGE - 1) // PAGE * PAGE
    header = b"\x89FTIMG\r\n" + struct.pack(
        "<IIQQ32sQQQQ",
        1,
        HEADER,
        HEADER,
        len(manifest),
        hashlib.sha256(manifest).digest(),
        data_offset,
        data_bytes,
        data_offset + data_bytes,
        0,
    )
    header += hashlib.sha256(header).digest()
    return header + manifest, data_offset, data_bytes, stored


def main():
    raw, path, *name = sys.argv[1:]
    with open(raw, "rb") as file:
        memory = file.read()
    head, data_offset, data_bytes, stored = image(memory, *(name or [os.path.basename(raw)]))
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "xb") as file:
        file.truncate(data_offset + data_bytes)
        file.write(head)
        for page, data in stored:
            file.seek(data_offset + page * PAGE)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


if __name__ == "__main__":
    main()
