;; Wants more memory at first than small pools have.
(module (memory (export "memory") 100))
