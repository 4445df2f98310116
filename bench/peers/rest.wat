;; What remains of guest.wat without a memory: what a contender takes that is
;; not memory's part.
(module
  (func $page (param $i i32) (param $same i32) (param $start i32) (param $pages i32)
    (result i32)
    (if (i32.ge_u (local.get $i) (local.get $same))
      (then
        (local.set $i (i32.add (local.get $same)
          (i32.rem_u
            (i32.add (i32.sub (local.get $i) (local.get $same)) (local.get $start))
            (i32.sub (local.get $pages) (local.get $same)))))))
    (i32.rem_u (i32.mul (local.get $i) (i32.const 37)) (local.get $pages)))
  (func (export "run") (param $k i32) (param $same i32) (param $start i32)
    (param $pages i32) (param $cycle i32) (param $whole i32) (result i64)
    (local $i i32) (local $sum i64)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $k)))
        (local.set $sum (i64.xor
          (i64.rotl (local.get $sum) (i64.const 1))
          (i64.extend_i32_u
            (call $page (local.get $i) (local.get $same) (local.get $start)
              (local.get $pages)))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (local.get $sum)))
