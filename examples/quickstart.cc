// The smallest use of firsttouch: three tenants, one after the other, in
// memories that start from one image. Each changes its memory; none sees what
// another has written.

#include <cstdio>
#include <cstring>
#include <span>

#include "firsttouch/init/image_builder.h"
#include "firsttouch/service/service.h"

// README: begin
int main() {
  const char greeting[] = "hello";
  auto image =
      firsttouch::ImageFromBytes({.name = "greeting", .size_bytes = 65536},
                                 std::as_bytes(std::span(greeting)));
  auto service = firsttouch::Service::Create(
      {.name = "tenants",
       .layout = firsttouch::LayoutOptions::ForWasm32(1000)});
  if (!image.ok() || !service.ok()) return 1;

  for (int tenant = 1; tenant <= 3; ++tenant) {
    auto memory = (*service)->Acquire({.image = *image, .size_bytes = 1 << 20});
    if (!memory.ok()) return 1;
    char* text = reinterpret_cast<char*>(memory->base());
    std::printf("tenant %d reads \"%s\"\n", tenant, text);  // a first touch
    std::strcpy(text, "secret");                            // a first write
  }  // Released, and clean for the next tenant.
}
// README: end
