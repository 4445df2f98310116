// The host of without_bazel_test.sh: bytes in, an answer out, an exit.
#include <cstring>
#include <iostream>
#include <string_view>

#include "app.firsttouch.h"
#include "firsttouch/integrations/wasm2c/guest.h"
#include "firsttouch/integrations/wasm2c/pool_memory.h"
#include "firsttouch/integrations/wasm2c/wasi.h"

using firsttouch::wasm2c::Guest;
using firsttouch::wasm2c::Wasi;

int main() {
  auto service = firsttouch::Service::Create(
      {.name = "apps",
       .layout = firsttouch::wasm2c::LayoutForGuests(2, 16 << 20)});
  if (!service.ok()) {
    std::cout << "no service here\n" << service.status() << "\n";
    return 0;
  }
  auto source = firsttouch::wasm2c::PoolMemorySource::Create(service->get());
  Wasi wasi;
  auto first = Guest<Z_app_instance_t>::Create(source->get(), &wasi);
  if (!first.ok() || !first->Call(&Z_appZ__initialize).ok()) return 1;
  auto prepared = first->Snapshot("prepared");
  if (!prepared.ok()) return 1;
  for (const std::string_view request : {"firsttouch", "wasm"}) {
    auto tenant = (*prepared)->Instantiate(source->get(), &wasi);
    if (!tenant.ok()) return 1;
    auto at = tenant->Call(&Z_appZ_allocate, request.size());
    auto bytes = tenant->Bytes(*at, request.size());
    if (!bytes.ok()) return 1;
    memcpy(bytes->data(), request.data(), request.size());
    auto answer = tenant->Call(&Z_appZ_count_t, *at, request.size());
    std::cout << request << ": " << *answer << "\n";
    auto left = tenant->Call(&Z_appZ_leave, 3u);
    std::cout << left.status().message() << "\n";
  }
}
