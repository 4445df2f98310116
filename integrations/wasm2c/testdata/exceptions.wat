;; Throws, and catches or does not.
(module
  (tag $failed (param i32))
  (func $fail (param i32) (throw $failed (local.get 0)))
  (func (export "caught") (param i32) (result i32)
    (try (result i32)
      (do (call $fail (local.get 0)) (i32.const 0))
      (catch $failed (i32.add (i32.const 1)))))
  (func (export "uncaught") (param i32) (call $fail (local.get 0)))
)
