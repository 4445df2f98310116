// Makes the pools and guests of a recipe (recipe.proto, in text format, the
// first argument), prints "ready PID", the base of each pool and of each
// guest's memory, "pid=" and the process of each guest, and waits for the end
// of its standard input.
//
// Each "g" there makes the first memory that is held write one more page, and
// is answered by "grown".
//
// With a second argument "busy", a thread hands the first pool's memories on
// until then.
//
// Exit code 77: the machine does not allow what the recipe asks for; the reason
// is on standard error.

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/init/image_builder.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/serve/stand_in.h"
#include "firsttouch/service/service.h"
#include "firsttouch/tools/cli/bytes.h"
#include "firsttouch/tools/cli/text_file.h"
#include "firsttouch/tools/pooldump/config.h"
#include "firsttouch/tools/pooldump/testing/recipe.pb.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {
namespace {

constexpr int kExitSkipped = 77;
// The first page that 'g' writes.
constexpr uint64_t kGrowFromPage = 8;

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "pool_maker: %s\n", status.ToString().c_str());
  const bool refused = absl::IsPermissionDenied(status) ||
                       absl::IsUnimplemented(status) ||
                       absl::IsFailedPrecondition(status);
  std::exit(refused ? kExitSkipped : 1);
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status());
  return *std::move(value);
}

void Must(const absl::Status& status) {
  if (!status.ok()) Die(status);
}

ImageRef MakeImage(const Recipe::Image& image) {
  std::vector<std::byte> bytes((image.pages() - image.zero_pages()) *
                               kPageBytes);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(1 + i / kPageBytes % 255);
  }
  return Must(ImageFromBytes(
      {.name = image.name(), .size_bytes = image.pages() * kPageBytes}, bytes));
}

// Left open until the end.
void MakeFake(const Recipe::Fake& fake) {
  const int fd = memfd_create(fake.name().c_str(), MFD_CLOEXEC);
  if (fd < 0 ||
      write(fd, fake.contents().data(), fake.contents().size()) !=
          static_cast<ssize_t>(fake.contents().size()) ||
      (fake.size_bytes() != 0 &&
       ftruncate(fd, static_cast<off_t>(fake.size_bytes())) != 0)) {
    Die(absl::ErrnoToStatus(errno, "a memfd"));
  }
}

sigjmp_buf g_back;

// From now on traps are nobody's.
volatile sig_atomic_t g_crash = 0;

TrapAction Back(const TrapInfo&) {
  if (g_crash != 0) return TrapAction::kUnhandled;
  siglongjmp(g_back, 1);
}

void Touch(volatile std::byte* at) { *at = std::byte{1}; }

// Touches what traps, and returns after the trap. A function of its own, kept
// out of loops: the compiler may hold variables of the caller of sigsetjmp in
// registers, and their values are lost in the jump. The parameter is not needed
// after it.
[[gnu::noinline]] void Trap(volatile std::byte* at) {
  if (sigsetjmp(g_back, 0) == 0) Touch(at);
}

void Live(const Recipe::Tenant& tenant, const Memory& memory) {
  volatile std::byte* const base = memory.base();
  for (uint64_t i = 0; i < tenant.read_pages(); ++i) {
    (void)base[i * kPageBytes];
  }
  for (uint64_t i = 0; i < tenant.write_pages(); ++i) {
    Touch(base + i * kPageBytes);
  }
  for (uint32_t i = 0; i < tenant.traps(); ++i) {
    Trap(base + memory.size_bytes());
  }
}

std::unique_ptr<Service> MakePool(const Recipe::Pool& pool) {
  const PoolConfig& config = pool.config();
  PlacedConfig placed;
  placed.config = config;
  ServiceOptions options;
  options.name = config.name();
  options.layout = Must(LayoutOf(placed)).options();
  UserfaultfdOptions userfaultfd;
  if (config.backing() == "copied") userfaultfd.backing = Backing::kCopied;
  if (config.backing() == "shared") userfaultfd.backing = Backing::kShared;
  if (config.supply() == "mappings-scan" ||
      config.supply() == "mappings-drop") {
    options.supply = MappingOptions{.scan = config.supply() == "mappings-scan"};
  } else if (config.supply() == "userfaultfd") {
    // By signals from the first lease on, so that counts are the same each
    // time.
    userfaultfd.tracking = Tracking::kSignal;
    options.supply = userfaultfd;
  } else {
    options.supply = AnySupply{userfaultfd};
  }
  if (!pool.resident_budget_bytes().empty()) {
    options.resident_budget_bytes = Must(
        cli::ParseBytes("resident_budget_bytes", pool.resident_budget_bytes()));
  }
  return Must(Service::Create(std::move(options)));
}

// A process, and what it did while it was served.
struct ServedGuest {
  std::unique_ptr<StandIn> process;
  Recipe::Guest recipe;
};

ServedGuest StartGuest(const Recipe::Guest& recipe, const ImageRef& image) {
  return {Must(StandIn::Start(
              {.image = image,
               .pages = image->pages().value(),
               .regions = std::max<uint64_t>(1, recipe.regions())})),
          recipe};
}

void Serve(const ServedGuest& guest, const ImageRef& image, Server& server) {
  const Recipe::Guest& recipe = guest.recipe;
  StandIn& process = *guest.process;
  GuestArrival arrival;
  arrival.uffd = process.Uffd();
  arrival.pidfd = process.Pidfd();
  arrival.regions = process.regions();
  arrival.image = GuestImage::Create(image);
  arrival.options.name = recipe.name();
  // So that counts are the same each time.
  arrival.options.most_read_ahead_bytes = kPageBytes;
  if (recipe.early_pages() > 0) {
    arrival.options.place_first =
        std::make_shared<const std::vector<::firsttouch::PageRun>>(
            std::vector<::firsttouch::PageRun>{
                {PageIndex(0), PageCount(recipe.early_pages())}});
  }
  const uint64_t id = Must(server.Attach(std::move(arrival)));
  // A turn counts what it has done before it lets go of the guest, as Stats()
  // needs it.
  while (server.Find(id)->Stats().pages_placed_early < recipe.early_pages()) {
    std::this_thread::yield();
  }
  if (recipe.read_pages() > 0) process.Look(0, recipe.read_pages());
  if (recipe.write_pages() > 0) process.Write(0, recipe.write_pages());
  if (recipe.give_back_pages() > 0) {
    process.GiveBack(0, recipe.give_back_pages());
  }
  server.Find(id)->Stats();
}

int Main(const std::string& text, bool busy) {
  Recipe recipe;
  Must(cli::ParseText("recipe", text, &recipe, nullptr));
  for (const Recipe::Fake& fake : recipe.fakes()) MakeFake(fake);
  std::map<std::string, ImageRef> images;
  for (const Recipe::Image& image : recipe.images()) {
    images[image.name()] = MakeImage(image);
  }
  // Before this process has threads.
  std::vector<ServedGuest> guests;
  for (const Recipe::Guest& guest : recipe.guests()) {
    guests.push_back(StartGuest(guest, images.at(guest.image())));
  }
  std::unique_ptr<Server> server;
  if (recipe.serves() || !guests.empty()) {
    server = Must(Server::Start({.name = "maker"}));
  }
  for (const ServedGuest& guest : guests) {
    Serve(guest, images.at(guest.recipe.image()), *server);
  }
  std::vector<std::unique_ptr<Service>> pools;
  std::vector<Memory> held;
  for (const Recipe::Pool& pool : recipe.pools()) {
    pools.push_back(MakePool(pool));
    for (const Recipe::Tenant& tenant : pool.tenants()) {
      const uint32_t times = std::max(1u, tenant.times());
      const uint32_t memories = std::max(1u, tenant.memories());
      PlacedConfig size;
      size.config.set_size_bytes(tenant.size_bytes());
      MemoryOptions wanted{.size_bytes = Must(SizeOf(size, "size_bytes")),
                           .trap_callback = Back};
      if (!tenant.image().empty()) wanted.image = images.at(tenant.image());
      for (uint32_t i = 0; i < times * memories; ++i) {
        Memory memory = Must(pools.back()->Acquire(wanted));
        Live(tenant, memory);
        if (i % times < times - 1 || tenant.leaves()) {
          Must(memory.Release());
        } else {
          held.push_back(std::move(memory));
        }
      }
    }
  }
  std::printf("ready %d", getpid());
  for (const auto& pool : pools) std::printf(" 0x%" PRIxPTR, pool->base());
  for (const ServedGuest& guest : guests) {
    std::printf(" 0x%" PRIxPTR, guest.process->regions().front().start);
  }
  for (const ServedGuest& guest : guests) {
    std::printf(" pid=%d", guest.process->pid());
  }
  std::printf("\n");
  std::fflush(stdout);

  if (recipe.has_crash_at_offset()) {
    if (held.empty()) Die(absl::InvalidArgumentError("no memory is held"));
    g_crash = 1;
    Touch(held.back().base() + recipe.crash_at_offset());
  }
  std::atomic<bool> stop{false};
  std::thread worker;
  if (busy && !pools.empty()) {
    worker = std::thread([&] {
      MemoryOptions wanted{.size_bytes = 16 * kPageBytes};
      while (!stop.load(std::memory_order_relaxed)) {
        Memory memory = Must(pools[0]->Acquire(wanted));
        Touch(memory.base());
        Must(memory.Release());
      }
    });
  }
  char byte;
  uint64_t grown = 0;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
    if (byte != 'g' || held.empty()) continue;
    Touch(held.front().base() + (kGrowFromPage + grown++) * kPageBytes);
    std::printf("grown\n");
    std::fflush(stdout);
  }
  stop = true;
  if (worker.joinable()) worker.join();
  return 0;
}

}  // namespace
}  // namespace firsttouch::pooldump

int main(int argc, char** argv) {
  if (argc < 2) return 64;
  return firsttouch::pooldump::Main(argv[1],
                                    argc > 2 && std::string(argv[2]) == "busy");
}
