#!/usr/bin/env python3
"""quickstart.c in Python, by ctypes: quickstart.py [libfirsttouch.so.1]"""

import ctypes
import sys

ft = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libfirsttouch.so.1")

TRAPPED = 34


class Handle(ctypes.Structure):
    _fields_ = [("entry", ctypes.c_uint64), ("serial", ctypes.c_uint64)]


class Struct(ctypes.Structure):
    """A struct that begins with its size; all else is zero, the default."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class Error(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("status", ctypes.c_int32),
                ("message_length", ctypes.c_uint32), ("message", ctypes.c_char * 2032)]


class LayoutOptions(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("instances", ctypes.c_uint32),
                ("memories_per_instance", ctypes.c_uint32)] + [
                    (name, ctypes.c_uint64) for name in (
                        "max_memory_bytes", "guard_before_bytes", "guard_after_bytes", "page_bytes",
                        "fault_around_bytes")]


class PoolOptions(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("flags", ctypes.c_uint64), ("name", ctypes.c_char_p),
                ("layout", ctypes.POINTER(LayoutOptions))] + [
                    (name, ctypes.c_int32) for name in (
                        "supply", "backing", "faults", "handler_threads", "kernel_faults", "tracking", "scan",
                        "strategy", "signals", "retained_cycles")] + [
                    ("retained_pages_limit", ctypes.c_uint64), ("resident_budget_bytes", ctypes.c_uint64),
                    ("trap_callback", ctypes.c_void_p), ("trap_user", ctypes.c_void_p),
                    ("retained_bytes_per_us", ctypes.c_uint64)]


class ImageOptions(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("name", ctypes.c_char_p), ("size_bytes", ctypes.c_uint64)]


class MemoryOptions(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("image", Handle), ("size_bytes", ctypes.c_uint64),
                ("wait_ns", ctypes.c_int64), ("trap_callback", ctypes.c_void_p), ("trap_user", ctypes.c_void_p)]


class Trap(Struct):
    _fields_ = [("struct_size", ctypes.c_size_t), ("address", ctypes.c_uint64),
                ("program_counter", ctypes.c_uint64), ("offset_bytes", ctypes.c_int64),
                ("size_bytes", ctypes.c_uint64)] + [
                    (name, ctypes.c_uint32) for name in (
                        "access", "os_error", "instance", "memory_index", "leased", "pool_id")] + [
                    ("pool_name", ctypes.c_char_p), ("ucontext", ctypes.c_void_p)]


error = Error()


def check(status):
    if status != 0:
        raise RuntimeError(error.message.decode())


layout = LayoutOptions()
check(ft.ft_layout_wasm32(100, ctypes.byref(layout), ctypes.byref(error)))
pool = Handle()
check(ft.ft_pool_create(ctypes.byref(PoolOptions(name=b"tenants", layout=ctypes.pointer(layout))),
                        ctypes.byref(pool), ctypes.byref(error)))
image = Handle()
check(ft.ft_image_from_bytes(ctypes.byref(ImageOptions(name=b"greeting", size_bytes=65536)), b"hello\0",
                             ctypes.c_size_t(6), ctypes.byref(image), ctypes.byref(error)))
options = MemoryOptions(image=image, size_bytes=1 << 20)
for tenant in (1, 2, 3):
    memory, base = Handle(), ctypes.c_void_p()
    check(ft.ft_memory_acquire(pool, ctypes.byref(options), ctypes.byref(memory), ctypes.byref(base),
                               ctypes.byref(error)))
    print('tenant %d reads "%s"' % (tenant, ctypes.string_at(base).decode()))
    ctypes.memmove(base, b"secret\0", 7)
    if tenant == 3:
        # memset(3) is the guest: Python's own code must not be left in the middle.
        # By the C library's pointer, with one argument: strlen reads past the end.
        ctypes.memset(base, 1, 1 << 20)
        trap = Trap()
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
        if ft.ft_run_guarded(memory, strlen, base, ctypes.byref(trap), None) == TRAPPED:
            print("tenant %d trapped at offset %d" % (tenant, trap.offset_bytes))
    check(ft.ft_memory_release(memory, ctypes.byref(error)))
check(ft.ft_image_release(image, ctypes.byref(error)))
check(ft.ft_pool_destroy(pool, ctypes.byref(error)))
