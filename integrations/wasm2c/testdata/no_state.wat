;; Has neither memory nor table nor globals.
(module (func (export "one") (result i32) (i32.const 1)))
