;; The guest of every contender that runs WebAssembly; peer.rs appends the data
;; of an image. native.cc does the same work in C++.
(module
  (memory (export "memory") 32 128)

  ;; The page that step $i of a cycle changes: of the first $same steps always
  ;; the same one, of the others one that depends on $start. No two steps have
  ;; the same, up to $pages of them.
  (func $page (param $i i32) (param $same i32) (param $start i32) (param $pages i32)
    (result i32)
    (if (i32.ge_u (local.get $i) (local.get $same))
      (then
        (local.set $i (i32.add (local.get $same)
          (i32.rem_u
            (i32.add (i32.sub (local.get $i) (local.get $same)) (local.get $start))
            (i32.sub (local.get $pages) (local.get $same)))))))
    (i32.rem_u (i32.mul (local.get $i) (i32.const 37)) (local.get $pages)))

  ;; Changes a word in each of $k pages, or all of each where $whole, and reads the
  ;; word that the guest before has changed; returns a sum of what it has read.
  (func (export "run") (param $k i32) (param $same i32) (param $start i32)
    (param $pages i32) (param $cycle i32) (param $whole i32) (result i64)
    (local $i i32) (local $at i32) (local $sum i64)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $k)))
        (local.set $at (i32.shl
          (call $page (local.get $i) (local.get $same) (local.get $start)
            (local.get $pages))
          (i32.const 12)))
        (if (local.get $whole)
          (then (memory.fill (local.get $at) (local.get $cycle) (i32.const 4096)))
          (else (i64.store
            (i32.add (local.get $at) (i32.add (i32.const 8) (i32.shl
              (i32.rem_u (local.get $cycle) (i32.const 500)) (i32.const 3))))
            (i64.extend_i32_u (local.get $cycle)))))
        (local.set $sum (i64.xor
          (i64.rotl (local.get $sum) (i64.const 1))
          (i64.load
            (i32.add (local.get $at) (i32.add (i32.const 8) (i32.shl
              (i32.rem_u (i32.add (local.get $cycle) (i32.const 499))
                (i32.const 500))
              (i32.const 3)))))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (local.get $sum))

  ;; Grows by $grown pages of 64 KiB and writes to each of 4 KiB in these.
  (func (export "grow") (param $grown i32) (result i64)
    (local $at i32) (local $end i32) (local $sum i64)
    (local.set $at (i32.shl (memory.grow (local.get $grown)) (i32.const 16)))
    (local.set $end (i32.add (local.get $at)
      (i32.shl (local.get $grown) (i32.const 16))))
    (loop $next
      (local.set $sum (i64.add (local.get $sum) (i64.load (local.get $at))))
      (i64.store (local.get $at) (i64.const 1))
      (br_if $next (i32.lt_u
        (local.tee $at (i32.add (local.get $at) (i32.const 4096)))
        (local.get $end))))
    (i64.add (local.get $sum) (i64.extend_i32_u (local.get $end))))

  ;; Reads a word, or writes one, in each $step-th page from $first on.
  (func (export "touch") (param $first i32) (param $count i32) (param $step i32)
    (param $write i32) (result i64)
    (local $at i32) (local $sum i64)
    (local.set $at (i32.shl (local.get $first) (i32.const 12)))
    (loop $next
      (if (local.get $write)
        (then (i64.store (local.get $at) (i64.const 1))))
      (local.set $sum (i64.xor
        (i64.rotl (local.get $sum) (i64.const 1))
        (i64.load offset=8 (local.get $at))))
      (local.set $at (i32.add (local.get $at)
        (i32.shl (local.get $step) (i32.const 12))))
      (br_if $next
        (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
    (local.get $sum))

  (func (export "peek") (param $at i32) (result i64)
    (i64.load (local.get $at))))
