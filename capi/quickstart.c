/* The smallest use of firsttouch in C: three tenants, one after the other, in
   memories that start from one image. Each changes its memory; none sees what
   another wrote. The last touches what is not its own.

     cc quickstart.c $(pkg-config --cflags --libs firsttouch) */

#include <firsttouch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ft_error error = FT_ERROR_INIT;

static void check(ft_status status) {
  if (status == FT_OK) return;
  fprintf(stderr, "%s: %s\n", ft_status_name(status), error.message);
  exit(1);
}

static void write_far(void* base) { ((volatile char*)base)[1 << 20] = 1; }

// quickstart: begin
int main(void) {
  ft_layout_options layout = FT_LAYOUT_OPTIONS_INIT;
  check(ft_layout_wasm32(100, &layout, &error));
  ft_pool_options pool_options = FT_POOL_OPTIONS_INIT;
  pool_options.name = "tenants";
  pool_options.layout = &layout;
  ft_pool pool;
  check(ft_pool_create(&pool_options, &pool, &error));

  ft_image_options image_options = FT_IMAGE_OPTIONS_INIT;
  image_options.name = "greeting";
  image_options.size_bytes = 65536;
  ft_image image;
  check(ft_image_from_bytes(&image_options, "hello", 6, &image, &error));

  ft_memory_options options = FT_MEMORY_OPTIONS_INIT;
  options.image = image;
  options.size_bytes = 1 << 20;
  for (int tenant = 1; tenant <= 3; ++tenant) {
    ft_memory memory;
    void* base;
    check(ft_memory_acquire(pool, &options, &memory, &base, &error));
    printf("tenant %d reads \"%s\"\n", tenant, (char*)base);
    strcpy(base, "secret");
    if (tenant == 3) {
      ft_trap trap = FT_TRAP_INIT;
      if (ft_run_guarded(memory, write_far, base, &trap, NULL) ==
          FT_ERROR_TRAPPED) {
        printf("tenant %d trapped at offset %lld\n", tenant,
               (long long)trap.offset_bytes);
      }
    }
    check(ft_memory_release(memory, &error));
  }
  check(ft_image_release(image, &error));
  check(ft_pool_destroy(pool, &error));
  return 0;
}
// quickstart: end
