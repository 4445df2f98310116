;; Puts a function into a table that is not its own, and then fails to be
;; instantiated: the function works all the same.
(module
  (import "box" "table" (table 4 8 funcref))
  (memory 1)
  (data (i32.const 0) "R")
  (elem (i32.const 2) func $letter)
  (func $letter (result i32) (i32.load8_u (i32.const 0)))
  (func $start (unreachable))
  (start $start)
)
