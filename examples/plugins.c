/* Plugins in plain C, each call on a heap of its own that starts as a prepared one
   and is thrown away at the end, with whatever the plugin forgot to free. A plugin
   that leaves its heap is stopped, and the host goes on.

     cc plugins.c $(pkg-config --cflags --libs firsttouch)

   The heap is an arena in a memory of firsttouch. Setting it up once (a dictionary,
   here) makes an image; every later call begins with that, whatever it costs to
   build, and a release gives back only the pages that the plugin has changed.

   A heap may be at another address in each call, so what is kept in it refers to the
   rest by offsets. */

#include <firsttouch.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kHeapBytes = 1 << 20, kHeaps = 4, kBuckets = 64 };

static ft_error error = FT_ERROR_INIT;

static void check(ft_status status) {
  if (status == FT_OK) return;
  fprintf(stderr, "%s: %s\n", ft_status_name(status), error.message);
  exit(1);
}

/* --- The heap: an arena whose book-keeping is at its start ------------------- */

typedef struct heap {
  uint64_t used;
  uint32_t words;
  uint32_t buckets[kBuckets]; /* offsets; 0 is the end of a list */
} heap;

typedef struct word {
  uint32_t next;
  uint32_t count;
  char text[24];
} word;

/* There is no free: a release frees all. Where the arena is full, the bytes that
   follow it are out of bounds, and that is a trap. */
static void* heap_alloc(heap* h, size_t bytes) {
  void* const block = (char*)h + h->used;
  h->used += (bytes + 15) & ~(size_t)15;
  return block;
}

static void heap_begin(heap* h) { h->used = (sizeof *h + 15) & ~(size_t)15; }

static word* find_word(heap* h, const char* text) {
  unsigned hash = 0;
  for (const char* c = text; *c != '\0'; ++c) hash = hash * 31 + (unsigned)*c;
  uint32_t* const bucket = &h->buckets[hash % kBuckets];
  for (uint32_t at = *bucket; at != 0;) {
    word* const w = (word*)((char*)h + at);
    if (strcmp(w->text, text) == 0) return w;
    at = w->next;
  }
  word* const w = heap_alloc(h, sizeof *w);
  snprintf(w->text, sizeof w->text, "%s", text);
  w->next = *bucket;
  *bucket = (uint32_t)((char*)w - (char*)h);
  ++h->words;
  return w;
}

/* --- The plugins: each is called with its heap and a text --------------------- */

typedef struct call {
  heap* heap;
  const char* text;
  uint32_t result;
} call;

static void count_words(void* argument) {
  call* const c = argument;
  char* const copy = heap_alloc(c->heap, strlen(c->text) + 1);
  strcpy(copy, c->text);
  for (char* w = strtok(copy, " "); w != NULL; w = strtok(NULL, " ")) {
    ++find_word(c->heap, w)->count;
  }
  c->result = c->heap->words;
}

/* Never stops asking for memory. */
static void greedy(void* argument) {
  call* const c = argument;
  for (;;) memset(heap_alloc(c->heap, 4096), 1, 4096);
}

/* --- The host ------------------------------------------------------------------ */

static void run(ft_pool pool, ft_image prepared, const char* name,
                void (*plugin)(void*), const char* text) {
  ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
  options.image = prepared;
  ft_memory memory;
  void* base;
  check(ft_memory_acquire(pool, &options, &memory, &base, &error));
  call c = {base, text, 0};
  const uint32_t before = c.heap->words;
  ft_trap trap = FT_TRAP_INIT;
  const ft_status status = ft_run_guarded(memory, plugin, &c, &trap, &error);
  if (status == FT_ERROR_TRAPPED) {
    printf("%s: begins with %u words, leaves its heap at %lld KiB\n", name,
           before, (long long)(trap.offset_bytes / 1024));
  } else {
    check(status);
    printf("%s: begins with %u words, ends with %u\n", name, before, c.result);
  }
  check(ft_memory_release(memory, &error));
}

static ft_image prepare(ft_pool pool) {
  ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
  options.size_bytes = kHeapBytes;
  ft_memory memory;
  void* base;
  check(ft_memory_acquire(pool, &options, &memory, &base, &error));
  heap_begin(base);
  for (int i = 0; i < 1000; ++i) {
    char text[16];
    snprintf(text, sizeof text, "word%d", i);
    find_word(base, text);
  }
  ft_image image;
  check(ft_memory_snapshot(memory, "dictionary", 0, &image, &error));
  check(ft_memory_release(memory, &error));
  return image;
}

int main(void) {
  ft_layout_options layout = FT_LAYOUT_OPTIONS_INIT;
  layout.instances = kHeaps;
  layout.max_memory_bytes = kHeapBytes;
  layout.guard_after_bytes = kHeapBytes;
  ft_pool_options pool_options = FT_POOL_OPTIONS_INIT;
  pool_options.name = "plugins";
  pool_options.layout = &layout;
  ft_pool pool;
  check(ft_pool_create(&pool_options, &pool, &error));
  const ft_image prepared = prepare(pool);

  run(pool, prepared, "count", count_words, "word7 is a word and word7 is word7");
  run(pool, prepared, "greedy", greedy, "");
  run(pool, prepared, "count", count_words, "nothing of the others is left");

  check(ft_image_release(prepared, &error));
  check(ft_pool_destroy(pool, &error));
  return 0;
}
