/* What clang 14 makes of setjmp and longjmp calls these functions, when it is
 * told to use WebAssembly's exceptions (-mllvm -wasm-enable-sjlj
 * -mexception-handling): each function that calls setjmp has a table of the
 * calls that it has made, and catches what __wasm_longjmp throws. */
#include <stdint.h>
#include <stdlib.h>

struct call {
  uint32_t id; /* of the jmp_buf; 0 behind the last */
  uint32_t label;
};

static uint32_t last_id;
static uint32_t second_result;

uint32_t getTempRet0(void) { return second_result; }
void setTempRet0(uint32_t value) { second_result = value; }

/* Adds a call to the table of `size` entries, and gives the table, and its size
 * as the second result. */
struct call* saveSetjmp(uint32_t* env, uint32_t label, struct call* table,
                        uint32_t size) {
  uint32_t i = 0;
  *env = ++last_id;
  while (i < size && table[i].id != 0) ++i;
  if (i == size) {
    size *= 2;
    table = realloc(table, (size + 1) * sizeof(struct call));
    if (table == NULL) abort();
  }
  table[i].id = *env;
  table[i].label = label;
  table[i + 1].id = 0;
  second_result = size;
  return table;
}

/* The label of the call that `id` belongs to, or 0 if it is not in the table.
 */
uint32_t testSetjmp(uint32_t id, struct call* table, uint32_t size) {
  for (uint32_t i = 0; i < size && table[i].id != 0; ++i) {
    if (table[i].id == id) return table[i].label;
  }
  return 0;
}

void __wasm_longjmp(void* env, int value) {
  static struct {
    void* env;
    int value;
  } thrown;
  thrown.env = env;
  thrown.value = value == 0 ? 1 : value;
  __builtin_wasm_throw(1, &thrown);
}
