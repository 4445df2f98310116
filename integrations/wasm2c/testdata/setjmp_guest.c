/* A guest that leaves functions by longjmp. */
#include <setjmp.h>

static jmp_buf outer;
static jmp_buf inner;

static __attribute__((noinline)) void jump(jmp_buf env, int value) {
  longjmp(env, value);
}

static __attribute__((noinline)) void dive(int depth, jmp_buf env, int value) {
  if (depth == 0) jump(env, value);
  dive(depth - 1, env, value);
}

/* Comes back from `depth` functions below with `value`; 1000 more for the inner
 * of two places. */
__attribute__((export_name("run"))) int run(int depth, int value) {
  int result = setjmp(outer);
  if (result != 0) return result;
  result = setjmp(inner);
  if (result != 0) dive(depth, outer, result + 1000);
  dive(depth, inner, value);
  return -1;
}

/* Jumps to a place that is gone. */
__attribute__((export_name("escape"))) void escape(void) { jump(inner, 1); }
