;; Instantiating it traps.
(module
  (memory 1)
  (func $start (i32.store (i32.const 65536) (i32.const 1)))
  (start $start)
)
