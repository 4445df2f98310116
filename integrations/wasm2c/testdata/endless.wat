;; Never returns: in a loop without a call, and by calls alone. Before, it says
;; that it runs, in its memory.
(module
  (memory (export "memory") 1)
  (func (export "loop") (i32.store (i32.const 0) (i32.const 1)) (loop (br 0)))
  (func $down (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (call $down (i32.sub (local.get 0) (i32.const 1)))
                     (i32.const 1)))
      (else (i32.const 0))))
  (func (export "calls")
    (i32.store (i32.const 0) (i32.const 1))
    (loop (drop (call $down (i32.const 10))) (br 0)))
  (func (export "answer") (result i32) (call $down (i32.const 42)))
)
