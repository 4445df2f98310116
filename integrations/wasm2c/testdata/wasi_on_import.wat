;; Uses WASI as emscripten does it: the memory is imported, and 64-bit arguments
;; come in halves.
(module
  (import "env" "memory" (memory 1 2))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek"
    (func $seek (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get"
    (func $clock (param i32 i32 i32 i32) (result i32)))
  (data (i32.const 0) "\10\00\00\00\05\00\00\00")
  (data (i32.const 16) "hello")
  (func (export "greet") (result i32)
    (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
  (func (export "seek") (param i32) (result i32)
    (call $seek (local.get 0) (i32.const 7) (i32.const 0) (i32.const 0)
      (i32.const 32)))
  (func (export "clock") (result i64)
    (drop (call $clock (i32.const 0) (i32.const 1) (i32.const 2)
      (i32.const 40)))
    (i64.load (i32.const 40)))
)
