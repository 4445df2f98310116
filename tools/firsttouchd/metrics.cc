#include "firsttouch/tools/firsttouchd/metrics.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cerrno>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "firsttouch/uffd/signal_masked_thread.h"

namespace firsttouch::firsttouchd {
namespace {

// Every field of GuestStats but `bytes`, which is no counter.
struct Counter {
  const char* name;
  const char* labels;
  const char* help;  // Null: the same family as the one before.
  uint64_t GuestStats::*value;
};
constexpr std::array<Counter, 13> kCounters = {{
    {"faults", "{kind=\"missing\"}", "Faults that were answered.",
     &GuestStats::faults},
    {"faults", "{kind=\"write_protect\"}", nullptr,
     &GuestStats::write_protect_faults},
    {"pages_placed", "{from=\"image\"}",
     "Pages of 4096 bytes that were placed.", &GuestStats::pages_copied},
    {"pages_placed", "{from=\"zero\"}", nullptr, &GuestStats::pages_zeroed},
    {"pages_placed_early", "", "Pages placed before they were asked for.",
     &GuestStats::pages_placed_early},
    {"events", "{kind=\"remove\"}", "Changes of guests' memory.",
     &GuestStats::removes},
    {"events", "{kind=\"unmap\"}", nullptr, &GuestStats::unmaps},
    {"events", "{kind=\"move\"}", nullptr, &GuestStats::moves},
    {"events", "{kind=\"fork\"}", nullptr, &GuestStats::forks},
    {"stops", "", "Calls that an unread event made the kernel stop.",
     &GuestStats::stopped},
    {"waits", "", "Faults that waited for a page source or a digest.",
     &GuestStats::waits},
    {"retries", "", "Tries of pages that could not be had.",
     &GuestStats::retries},
    {"lost", "", "Faults that ended in SIGBUS, or a guest's death.",
     &GuestStats::lost},
}};
// A field that is not listed is not counted.
static_assert(sizeof(GuestStats) == 14 * sizeof(uint64_t));

constexpr timeval kPatience = {.tv_sec = 1, .tv_usec = 0};

void Answer(int socket, const std::string& text) {
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
  // Whatever is asked for, as far as it has come: a client that sees its
  // request unread when the connection ends may lose the answer.
  std::array<char, 4096> request;
  if (recv(socket, request.data(), request.size(), 0) < 0) return;
  const std::string answer = absl::StrCat(
      "HTTP/1.0 200 OK\r\n"
      "Content-Type: application/openmetrics-text; version=1.0.0; "
      "charset=utf-8\r\n"
      "Content-Length: ",
      text.size(), "\r\n\r\n", text);
  for (size_t at = 0; at < answer.size();) {
    const ssize_t count =
        send(socket, answer.data() + at, answer.size() - at, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    at += static_cast<size_t>(count);
  }
}

}  // namespace

void Add(const GuestStats& guest, GuestStats* sum) {
  for (const Counter& counter : kCounters) {
    sum->*counter.value += guest.*counter.value;
  }
  sum->bytes += guest.bytes;
}

std::string OpenMetricsText(const GuestStats& sum, size_t guests,
                            size_t guests_ended) {
  constexpr char kPrefix[] = "firsttouchd_";
  std::string text;
  const auto family = [&](const char* name, const char* type,
                          const char* help) {
    absl::StrAppend(&text, "# TYPE ", kPrefix, name, " ", type, "\n# HELP ",
                    kPrefix, name, " ", help, "\n");
  };
  family("guests", "gauge", "Guests that are served.");
  absl::StrAppend(&text, kPrefix, "guests ", guests, "\n");
  family("guest_memory_bytes", "gauge", "Memory of the guests.");
  absl::StrAppend(&text, kPrefix, "guest_memory_bytes ", sum.bytes, "\n");
  family("guests_ended", "counter", "Guests that have ended.");
  absl::StrAppend(&text, kPrefix, "guests_ended_total ", guests_ended, "\n");
  for (const Counter& counter : kCounters) {
    if (counter.help != nullptr) family(counter.name, "counter", counter.help);
    absl::StrAppend(&text, kPrefix, counter.name, "_total", counter.labels, " ",
                    sum.*counter.value, "\n");
  }
  absl::StrAppend(&text, "# EOF\n");
  return text;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    UniqueFd listening, std::function<std::string()> text) {
  UniqueFd stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop) return absl::ErrnoToStatus(errno, "eventfd");
  std::unique_ptr<MetricsServer> server(new MetricsServer(
      std::move(listening), std::move(stop), std::move(text)));
  absl::StatusOr<std::thread> thread =
      StartSignalMaskedThread("ft-metrics", [&s = *server] { s.Run(); });
  if (!thread.ok()) return thread.status();
  server->thread_ = *std::move(thread);
  return server;
}

MetricsServer::~MetricsServer() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void MetricsServer::Run() {
  while (true) {
    std::array<pollfd, 2> waits = {
        {{.fd = stop_.get(), .events = POLLIN, .revents = 0},
         {.fd = listening_.get(), .events = POLLIN, .revents = 0}}};
    if (poll(waits.data(), waits.size(), -1) < 0) continue;
    if (waits[0].revents != 0) return;
    const UniqueFd socket(
        accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket) {
      Answer(socket.get(), text_());
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      // No descriptors: not at once again.
      poll(waits.data(), 1, 100);
    }
  }
}

}  // namespace firsttouch::firsttouchd
