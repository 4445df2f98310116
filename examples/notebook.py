#!/usr/bin/env python3
"""Memories of firsttouch in Python, by ctypes: each cell of a notebook runs on a
memory that starts as an image, and leaves nothing behind.

  notebook.py [libfirsttouch.so.1]

A memory is a memoryview here, so whatever works on buffers works on it. Python's
faulthandler may be on, before the pool is made or later.
"""

import ctypes
import faulthandler
import json
import sys

from_c = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libfirsttouch.so.1")

# --- What of firsttouch.h is used here ----------------------------------------


class Handle(ctypes.Structure):
    _fields_ = [("entry", ctypes.c_uint64), ("serial", ctypes.c_uint64)]


class Struct(ctypes.Structure):
    """A struct that begins with its size. All else is zero, which is the default."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


def u64(*names):
    return [(name, ctypes.c_uint64) for name in names]


def i32(*names):
    return [(name, ctypes.c_int32) for name in names]


SIZE = [("struct_size", ctypes.c_size_t)]
CALLBACK = [("trap_callback", ctypes.c_void_p), ("trap_user", ctypes.c_void_p)]


class Error(Struct):
    _fields_ = SIZE + i32("status", "message_length") + [("message", ctypes.c_char * 2032)]


class LayoutOptions(Struct):
    _fields_ = SIZE + i32("instances", "memories_per_instance") + u64(
        "max_memory_bytes", "guard_before_bytes", "guard_after_bytes", "page_bytes", "fault_around_bytes")


class PoolOptions(Struct):
    _fields_ = SIZE + u64("flags") + [("name", ctypes.c_char_p), ("layout", ctypes.c_void_p)] + i32(
        "supply", "backing", "faults", "handler_threads", "kernel_faults", "tracking", "scan", "strategy", "signals",
        "retained_cycles") + u64("retained_pages_limit", "resident_budget_bytes") + CALLBACK


class ImageOptions(Struct):
    _fields_ = SIZE + [("name", ctypes.c_char_p)] + u64("size_bytes")


class MemoryOptions(Struct):
    _fields_ = SIZE + [("image", Handle)] + u64("size_bytes") + [("wait_ns", ctypes.c_int64)] + CALLBACK


error = Error()
FUNCTIONS = {
    # Without the error, which comes last.
    "ft_pool_create": (ctypes.POINTER(PoolOptions), ctypes.POINTER(Handle)),
    "ft_pool_destroy": (Handle,),
    "ft_pool_stats_json": (Handle, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)),
    "ft_image_from_bytes": (ctypes.POINTER(ImageOptions), ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(Handle)),
    "ft_image_release": (Handle,),
    "ft_memory_acquire": (Handle, ctypes.POINTER(MemoryOptions), ctypes.POINTER(Handle),
                          ctypes.POINTER(ctypes.c_void_p)),
    "ft_memory_release": (Handle,),
    "ft_memory_snapshot": (Handle, ctypes.c_char_p, ctypes.c_uint64, ctypes.POINTER(Handle)),
    "ft_signals_install": (),
    "ft_signals_uninstall": (),
}


def call(name, *arguments):
    """Calls a function of the library; its error is an exception."""
    function = getattr(from_c, name)
    function.argtypes = FUNCTIONS[name] + (ctypes.POINTER(Error),)
    if function(*arguments, ctypes.byref(error)) != 0:
        raise RuntimeError(error.message.decode())


# --- The library, as one would have it in Python -------------------------------


class Image:
    def __init__(self, handle):
        self.handle = handle

    @classmethod
    def of_bytes(cls, name, contents, size_bytes):
        handle = Handle()
        call("ft_image_from_bytes", ImageOptions(name=name.encode(), size_bytes=size_bytes), contents, len(contents),
             handle)
        return cls(handle)

    def release(self):
        call("ft_image_release", self.handle)


class Memory:
    """A lease; `view` has the bytes, and must not be used after the block."""

    def __init__(self, pool, image, size_bytes):
        self.handle, base = Handle(), ctypes.c_void_p()
        call("ft_memory_acquire", pool, MemoryOptions(image=image.handle, size_bytes=size_bytes), self.handle, base)
        self.view = memoryview((ctypes.c_ubyte * size_bytes).from_address(base.value)).cast("B")

    def snapshot(self, name):
        handle = Handle()
        call("ft_memory_snapshot", self.handle, name.encode(), 0, handle)
        return Image(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # So that no later use of it finds the next lease's bytes.
        self.view.release()
        call("ft_memory_release", self.handle)


class Pool:
    def __init__(self, name, instances, max_memory_bytes):
        layout = LayoutOptions(instances=instances, max_memory_bytes=max_memory_bytes,
                               guard_after_bytes=max_memory_bytes)
        self.handle = Handle()
        call("ft_pool_create", PoolOptions(name=name.encode(), layout=ctypes.addressof(layout)), self.handle)

    def acquire(self, image, size_bytes):
        return Memory(self.handle, image, size_bytes)

    def statistics(self):
        text, length = ctypes.create_string_buffer(8192), ctypes.c_size_t()
        call("ft_pool_stats_json", self.handle, text, len(text), length)
        return json.loads(text.value)

    def destroy(self):
        call("ft_pool_destroy", self.handle)


# --- A notebook -----------------------------------------------------------------

CELLS = 100
BYTES = 1 << 20


def main():
    # Whoever handles faults when the pool is made gets those that are not a pool's.
    faulthandler.enable()
    pool = Pool("notebook", instances=4, max_memory_bytes=BYTES)
    # Whoever comes later stands in front, and takes all of them for crashes. So the
    # library goes in front of it.
    faulthandler.disable()
    faulthandler.enable()
    call("ft_signals_install")

    data = Image.of_bytes("data", b"a,b\n1,2\n", BYTES)
    # One cell prepares what all later ones begin with.
    with pool.acquire(data, BYTES) as memory:
        memory.view[4096:4096 + 8] = b"prepared"
        prepared = memory.snapshot("prepared")
    for cell in range(CELLS):
        with pool.acquire(prepared, BYTES) as memory:
            assert bytes(memory.view[:8]) == b"a,b\n1,2\n"
            assert bytes(memory.view[4096:4104]) == b"prepared"
            assert not any(memory.view[8192:12288]), "a cell sees what another wrote"
            memory.view[8192:12288] = bytes([cell + 1]) * 4096
            memory.view[0:1] = b"x"
    counted = pool.statistics()
    print("%d leases, each of a clean memory" % counted["handovers"])
    print("%d of %d slots in use" % (counted["slots_in_use"], counted["slots"]))
    prepared.release()
    data.release()
    call("ft_signals_uninstall")
    pool.destroy()
    faulthandler.disable()
    print("done")


if __name__ == "__main__":
    main()
