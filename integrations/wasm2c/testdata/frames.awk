# Writes a module whose function has `locals` numbers alive while it calls
# itself, each of which is in its frame when it is C: 8 bytes.
BEGIN {
  print "(module (memory (export \"memory\") 2)";
  print "(func $f (export \"run\") (param i32) (result i64)";
  for (i = 0; i < locals; ++i) print "(local $l" i " i64)";
  for (i = 0; i < locals; ++i) {
    print "(local.set $l" i " (i64.load (i32.add (local.get 0) (i32.const " 8 * i "))))";
  }
  print "(i64.store (i32.const 0) (call $f (i32.add (local.get 0) (i32.const 0))))";
  print "i64.const 0";
  for (i = 0; i < locals; ++i) print "local.get $l" i " i64.add";
  print "))";
}
