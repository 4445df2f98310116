/* setjmp and longjmp for guests, which Debian's wasi-libc does not have. See
 * setjmp.c. */
#ifndef FIRSTTOUCH_INTEGRATIONS_WASM2C_TESTDATA_SETJMP_SETJMP_H_
#define FIRSTTOUCH_INTEGRATIONS_WASM2C_TESTDATA_SETJMP_SETJMP_H_

typedef unsigned long jmp_buf[1];

int setjmp(jmp_buf env) __attribute__((returns_twice));
_Noreturn void longjmp(jmp_buf env, int value);

#endif /* FIRSTTOUCH_INTEGRATIONS_WASM2C_TESTDATA_SETJMP_SETJMP_H_ */
