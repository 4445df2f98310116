#!/usr/bin/env python3
"""Reads the pools of a process, by docs/control-block.md and nothing else.

  read_pools.py PID

A line for each pool, and for each of its slots that somebody has.
"""

import os
import struct
import sys


def text(data):
    return data.split(b"\0")[0].decode(errors="replace")


class Block:
    def __init__(self, path):
        self.file = open(path, "rb", buffering=0)

    def read(self, offset, count):
        return os.pread(self.file.fileno(), count, offset)

    def number(self, offset, size=8):
        return int.from_bytes(self.read(offset, size), "little")

    def section(self, offset):
        return struct.unpack("<QQQ", self.read(offset, 24))

    def records(self, offset):
        at, size, count = self.section(offset)
        return [self.read(at + i * size, size) for i in range(count)]


def slot_fields(record, fields):
    return {name: int.from_bytes(record[at:at + size], "little")
            for name, (at, size) in fields.items()}


def read_whole(block, slot, fields):
    """A slot's fields and its image, of one moment."""
    at, size, _ = block.section(424)
    images_at, image_size, _ = block.section(448)

    def version():
        sequence = block.number(images_at + slot * image_size)
        values = slot_fields(block.read(at + slot * size, size), fields)
        return sequence, values["handovers"], values["state"]

    while True:
        before = version()
        record = block.read(at + slot * size, size)
        image = block.read(images_at + slot * image_size, image_size)
        if before == version() and before[0] % 2 == 0:
            return slot_fields(record, fields), image


def open_pages(block, slot):
    """How many pages of a slot have been written to."""
    at, size, _ = block.section(472)
    first, group_size, groups = block.section(496)
    plane = block.number(496 + 24 + 2 * 4, 4)
    count = 0
    for group in range(groups):
        count += bin(block.number(
            at + slot * size + first + group * group_size + plane)).count("1")
    return count


def show(block):
    print("pool", text(block.read(224, 128)), "pid", block.number(40, 4),
          "at", hex(block.number(56)))
    fields = {}
    for record in block.records(352):
        offset, size = struct.unpack("<II", record[24:32])
        fields[text(record[:24])] = (offset, size)
    states = [text(record) for record in block.records(376)]
    for slot in range(block.section(424)[2]):
        values, image = read_whole(block, slot, fields)
        if states[values["state"]] != "leased":
            continue
        name = text(image[80:208]) if struct.unpack("<Q", image[8:16])[0] else "-"
        print("slot", slot, "size", values["size_bytes"], "image", name,
              "handovers", values["handovers"], "written", open_pages(block, slot))


def main(pid):
    folder = f"/proc/{pid}/fd"
    for fd in sorted(os.listdir(folder), key=int):
        try:
            link = os.readlink(f"{folder}/{fd}")
        except OSError:
            continue
        if not link.startswith("/memfd:firsttouch-pool:"):
            continue
        block = Block(f"{folder}/{fd}")
        if block.read(0, 8) != b"FTPOOL\r\n" or block.number(24) != 1:
            continue
        if block.number(8, 4) != 1:
            sys.exit(f"version {block.number(8, 4)}")
        show(block)


main(sys.argv[1])
