#include "firsttouch/bench/serve_guests.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/bench/fixture.h"
#include "firsttouch/bench/page_cache.h"
#include "firsttouch/bench/readings.h"
#include "firsttouch/bench/serve_processes.h"
#include "firsttouch/init/image.h"
#include "firsttouch/init/image_file.h"
#include "firsttouch/serve/client.h"
#include "firsttouch/serve/guest.h"
#include "firsttouch/serve/guest_image.h"
#include "firsttouch/serve/handshake.h"
#include "firsttouch/serve/listener.h"
#include "firsttouch/serve/server.h"
#include "firsttouch/serve/touches.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/events.h"
#include "firsttouch/uffd/fill.h"
#include "firsttouch/uffd/kernel.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch::bench {
namespace {

constexpr double kMiB = 1 << 20;
// Only in here: a server that notes what is touched.
constexpr char kRecordingName[] = "recording";

// What processes tell each other, in memory that all have.
struct GuestTimes {
  uint64_t ready_ticks;
  uint64_t end_ticks;
  uint64_t kernel_faults;
};
struct ServerCounts {
  uint64_t faults;
  uint64_t copied;
  uint64_t early;
};

UniqueFd OpenFile(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) Die(absl::StrCat("cannot open ", path));
  return fd;
}

// ---- Guests ----

std::byte* MapOrDie(uint64_t bytes, int protection, int flags, int fd,
                    uint64_t offset) {
  void* const mapped =
      mmap(nullptr, bytes, protection, flags, fd, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) Die("mmap failed");
  return static_cast<std::byte*>(mapped);
}

uint64_t FaultsOfProcess() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_minflt + usage.ru_majflt);
}

// A write goes to another word than the one that is compared.
void TouchPages(const ServedFile& file, const TouchPattern& pattern,
                std::byte* base, bool write) {
  for (const PageIndex page : pattern.pages) {
    auto* const words =
        reinterpret_cast<volatile uint64_t*>(base + page.offset_bytes());
    if (write) words[1] = page.value();
    if (words[0] != file.WordOf(page)) {
      Die(absl::StrCat("page ", page.value(), " has not the image's bytes"));
    }
  }
}

// A guest's whole life. `socket`: its server's; empty: it maps the file.
void RunGuest(const ServedFile& file, const TouchPattern& pattern,
              const std::string& socket, bool write, GuestTimes& times) {
  const int protection = PROT_READ | PROT_WRITE;
  const int flags = MAP_PRIVATE | MAP_NORESERVE;
  std::unique_ptr<Client> client;
  std::byte* base = nullptr;
  if (socket.empty()) {
    const UniqueFd fd = OpenFile(file.path());
    base =
        MapOrDie(file.bytes(), protection, flags, fd.get(), file.data_offset());
  } else {
    base = MapOrDie(file.bytes(), protection, flags | MAP_ANONYMOUS, -1, 0);
    const GuestRegion region = {.start = reinterpret_cast<uintptr_t>(base),
                                .bytes = file.bytes()};
    client = OrDie(Client::Connect(socket, {&region, 1}));
  }
  times.ready_ticks = NowTicks();
  const uint64_t faults = FaultsOfProcess();
  TouchPages(file, pattern, base, write);
  times.end_ticks = NowTicks();
  times.kernel_faults = FaultsOfProcess() - faults;
  munmap(base, file.bytes());
}

// ---- Servers ----

// serve/, as firsttouchd has it. When it is asked, it tells what it has done,
// and, if it has recorded, the touches of its only guest.
void RunServer(const ServedFile& file, const TouchPattern& pattern,
               const ServeRow& row, UniqueFd socket, ServerCounts& counts,
               const Channel& channel) {
  const std::shared_ptr<GuestImage> image =
      row.way() == kUncheckedName
          ? GuestImage::Create(OrDie(OpenImageFile(file.path())))
          : OrDie(GuestImage::OpenFile(file.path()));
  if (row.page_cache() == "warm") {
    // As one that has served before, to which no digest is unknown.
    for (const PageIndex page : pattern.pages) {
      OrDie(image->MakeReady(page, PageCount(1)));
    }
  }
  const std::unique_ptr<Server> server = OrDie(Server::Start({}));
  ListenerOptions options;
  options.image = [&](const PeerProcess&) { return image; };
  if (row.way() == kSetName || row.way() == kUncheckedName) {
    options.guest.place_first = pattern.recorded;
  }
  if (row.way() == kPageName) options.guest.most_read_ahead_bytes = kPageBytes;
  options.guest.record_touches = row.way() == kRecordingName;
  const std::unique_ptr<Listener> listener =
      OrDie(Listener::Start(*server, std::move(socket), options));
  channel.Tell();
  channel.WaitUntilAsked();
  std::vector<Touch> touches;
  for (const uint64_t id : server->guests()) {
    const std::shared_ptr<Guest> guest = server->Find(id);
    if (guest == nullptr) continue;
    const GuestStats stats = guest->Stats();
    counts.faults += stats.faults;
    counts.copied += stats.pages_copied;
    counts.early += stats.pages_placed_early;
    touches = guest->Touches();
  }
  channel.Tell();
  if (options.guest.record_touches) {
    channel.WaitUntilAsked();
    const uint64_t count = touches.size();
    channel.Tell(&count, sizeof count);
    channel.Tell(touches.data(), count * sizeof touches[0]);
  }
  pause();
}

struct OneGuest {
  UniqueFd uffd;
  GuestRegion region;
  UniqueFd connection;
};

// Takes in a guest without a server.
OneGuest TakeInOne(int socket) {
  pollfd waits = {.fd = socket, .events = POLLIN, .revents = 0};
  poll(&waits, 1, -1);
  OneGuest guest;
  guest.connection.reset(accept4(socket, nullptr, nullptr, SOCK_CLOEXEC));
  if (!guest.connection) Die("accept4 failed");
  HandshakeReader reader;
  while (true) {
    waits.fd = guest.connection.get();
    poll(&waits, 1, -1);
    std::optional<HandshakeReader::Message> message =
        OrDie(reader.Read(guest.connection.get()));
    if (!message.has_value()) continue;
    guest.uffd = std::move(message->uffd);
    guest.region = message->regions.front();
    return guest;
  }
}

void Welcome(const OneGuest& guest) {
  const std::string answer = AnswerLine(absl::OkStatus());
  if (send(guest.connection.get(), answer.data(), answer.size(), MSG_NOSIGNAL) <
      0) {
    Die("send failed");
  }
}

void ServeFault(const OneGuest& guest, const uffd_msg& message,
                const std::byte* image, ServerCounts& counts) {
  const Event event = EventFromMessage(message);
  // In the end the guest unmaps its memory.
  if (event.kind != Event::Kind::kPagefault) return;
  const uintptr_t page = RoundDownToPage(event.address);
  const RangeResult copied = RealKernel().Copy(
      guest.uffd.get(), page,
      reinterpret_cast<uintptr_t>(image) + (page - guest.region.start),
      kPageBytes, 0);
  if (!copied.ok()) Die(absl::StrCat("UFFDIO_COPY: errno ", copied.error));
  ++counts.faults;
  ++counts.copied;
}

// As Firecracker's example: maps all of the file once the guest is there; then
// reads all faults, one by one, and places a page for each.
void RunExample(const ServedFile& file, const UniqueFd& socket,
                ServerCounts& counts, const Channel& channel) {
  const UniqueFd fd = OpenFile(file.path());
  channel.Tell();
  const OneGuest guest = TakeInOne(socket.get());
  const std::byte* const image =
      MapOrDie(file.bytes(), PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd.get(),
               file.data_offset());
  Welcome(guest);
  std::vector<uffd_msg> faults;
  pollfd waits = {.fd = guest.uffd.get(), .events = POLLIN, .revents = 0};
  while (poll(&waits, 1, -1) > 0) {
    uffd_msg message;
    while (RealKernel().ReadEvents(guest.uffd.get(), &message, 1).ok()) {
      faults.push_back(message);
    }
    for (const uffd_msg& fault : faults) {
      ServeFault(guest, fault, image, counts);
    }
    faults.clear();
  }
}

// Copies what was recorded into the guest, in pieces of at most 512 KiB.
void CopyRecorded(const OneGuest& guest, const TouchPattern& pattern,
                  const std::byte* image, ServerCounts& counts) {
  std::vector<PageRun> runs = *pattern.recorded;
  std::sort(runs.begin(), runs.end(), [](const PageRun& a, const PageRun& b) {
    return a.first < b.first;
  });
  constexpr PageCount kPiece(128);
  std::vector<PageRun> pieces;
  for (const PageRun& run : runs) {
    for (PageIndex page = run.first; page < run.end(); page += kPiece) {
      pieces.push_back({page, std::min(run.end() - page, kPiece)});
    }
    madvise(const_cast<std::byte*>(image) + run.first.offset_bytes(),
            run.length.bytes(), MADV_WILLNEED);
  }
  std::atomic<size_t> next{0};
  const auto copy = [&] {
    for (size_t i; (i = next.fetch_add(1)) < pieces.size();) {
      const uint64_t offset = pieces[i].first.offset_bytes();
      // What the guest has asked for is woken by this, too.
      const FillResult copied =
          CopyRange(RealKernel(), guest.uffd.get(), guest.region.start + offset,
                    reinterpret_cast<uintptr_t>(image) + offset,
                    pieces[i].length.bytes(), 0, {});
      if (!copied.ok()) Die(absl::StrCat("UFFDIO_COPY: errno ", copied.error));
    }
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) {
    others.emplace_back(copy);
  }
  copy();
  for (std::thread& other : others) other.join();
  for (const PageRun& run : pieces) counts.early += run.length.value();
  counts.copied += counts.early;
}

// The least that a fault can cost or, with `pattern`, that what was recorded
// can.
void RunBareLoop(const ServedFile& file, const TouchPattern* pattern,
                 const UniqueFd& socket, ServerCounts& counts,
                 const Channel& channel) {
  const UniqueFd fd = OpenFile(file.path());
  const std::byte* const image =
      MapOrDie(file.bytes(), PROT_READ,
               MAP_PRIVATE | (pattern == nullptr ? MAP_POPULATE : 0), fd.get(),
               file.data_offset());
  channel.Tell();
  const OneGuest guest = TakeInOne(socket.get());
  fcntl(guest.uffd.get(), F_SETFL, 0);
  Welcome(guest);
  if (pattern != nullptr) CopyRecorded(guest, *pattern, image, counts);
  uffd_msg message;
  while (RealKernel().ReadEvents(guest.uffd.get(), &message, 1).ok()) {
    ServeFault(guest, message, image, counts);
  }
}

// A number of KiB in /proc/<pid>/smaps_rollup.
double KibOf(pid_t pid, const std::string& field) {
  std::ifstream lines(absl::StrCat("/proc/", pid, "/smaps_rollup"));
  std::string word;
  while (lines >> word) {
    if (word != field + ":") continue;
    double kib = 0;
    lines >> kib;
    return kib;
  }
  Die(absl::StrCat("smaps_rollup has no ", field));
}

bool HasServerForEach(const std::string& way) {
  return way == kExampleName || way == kBareLoopName || way == kLimitName;
}

// All servers of a sample, ready.
class Servers {
 public:
  Servers(const ServedFile& file, const TouchPattern& pattern,
          const ServeRow& row)
      : ours_(row.way() != kMappingName && !HasServerForEach(row.way())),
        counts_(static_cast<size_t>(row.guests())) {
    const size_t count = row.way() == kMappingName ? 0
                         : ours_                   ? 1
                                 : static_cast<size_t>(row.guests());
    for (size_t i = 0; i < count; ++i) {
      paths_.push_back(absl::StrCat(folder_, i));
      UniqueFd socket = OrDie(ListenAt(paths_.back()));
      processes_.emplace_back([&] {
        if (row.way() == kExampleName) {
          RunExample(file, socket, counts_[i], channel_);
        } else if (row.way() == kLimitName) {
          RunBareLoop(file, &pattern, socket, counts_[i], channel_);
        } else if (row.way() == kBareLoopName) {
          RunBareLoop(file, nullptr, socket, counts_[i], channel_);
        } else {
          RunServer(file, pattern, row, std::move(socket), counts_[i],
                    channel_);
        }
      });
    }
    std::vector<char> ready(count);
    channel_.Hear(ready.data(), count, processes_);
  }
  ~Servers() { std::filesystem::remove_all(folder_); }

  // Of guest `index`; empty without servers.
  std::string PathFor(size_t index) const {
    if (paths_.empty()) return "";
    return ours_ ? paths_.front() : paths_[index];
  }

  void SetNumbers(ServeRow& row) {
    if (paths_.empty()) return;
    if (ours_) {
      channel_.Ask();
      char asked;
      channel_.Hear(&asked, 1, processes_);
    }
    ServerCounts sum = {};
    for (const ServerCounts& counts : counts_.all()) {
      sum.faults += counts.faults;
      sum.copied += counts.copied;
      sum.early += counts.early;
    }
    const double guests = row.guests();
    row.set_faults(static_cast<double>(sum.faults) / guests);
    row.set_copied(static_cast<double>(sum.copied) / guests);
    row.set_early(static_cast<double>(sum.early) / guests);
    double kib = 0;
    double pss_kib = 0;
    for (const Process& process : processes_) {
      kib += KibOf(process.pid(), "Private_Dirty");
      pss_kib += KibOf(process.pid(), "Pss");
    }
    row.set_server_kib(kib);
    row.set_server_pss_kib(pss_kib);
  }

  // Of a recording one, behind SetNumbers().
  std::vector<Touch> Touches() {
    channel_.Ask();
    uint64_t count = 0;
    channel_.Hear(&count, sizeof count, processes_);
    std::vector<Touch> touches(count);
    channel_.Hear(touches.data(), count * sizeof touches[0], processes_);
    return touches;
  }

 private:
  const bool ours_;
  SharedArray<ServerCounts> counts_;
  Channel channel_;
  // Of sockets, whose paths must be short.
  const std::string folder_ = NewFolder("", "firsttouch_sockets");
  std::vector<std::string> paths_;
  std::vector<Process> processes_;
};

// Lets the row's guests run.
ServeRow RunGuests(const ServedFile& file, const TouchPattern& pattern,
                   const ServeRow& situation, Servers& servers) {
  ServeRow row = situation;
  const auto guests = static_cast<size_t>(row.guests());
  Gate go;
  Gate leave;
  Channel channel;
  SharedArray<GuestTimes> times(guests);
  std::vector<Process> processes;
  for (size_t i = 0; i < guests; ++i) {
    processes.emplace_back([&] {
      go.Leave();
      leave.Leave();
      go.Wait();
      RunGuest(file, pattern, servers.PathFor(i), row.touch() == "written",
               times[i]);
      channel.Tell();
      // A server counts guests that are there.
      leave.Wait();
    });
  }
  if (row.page_cache() == "cold") {
    DropFromPageCache(file.path());
  } else {
    file.FillPageCache();
  }
  row.set_cached_mib_before(static_cast<double>(file.CachedBytes()) / kMiB);
  const uint64_t start = NowTicks();
  go.Open();
  std::vector<char> done(guests);
  channel.Hear(done.data(), guests, processes);
  row.set_cached_mib_after(static_cast<double>(file.CachedBytes()) / kMiB);
  double mean_ms = 0;
  double ready_ms = 0;
  double faults = 0;
  double page_ns = 0;
  double all_ms = 0;
  for (const GuestTimes& of : times.all()) {
    const double ms = TicksToNs(of.end_ticks - start) / 1e6;
    all_ms = std::max(all_ms, ms);
    mean_ms += ms;
    ready_ms += TicksToNs(of.ready_ticks - start) / 1e6;
    page_ns += TicksToNs(of.end_ticks - of.ready_ticks);
    faults += static_cast<double>(of.kernel_faults);
  }
  const auto each = static_cast<double>(guests);
  row.set_all_ms(all_ms);
  row.set_mean_ms(mean_ms / each);
  row.set_ready_ms(ready_ms / each);
  row.set_page_ns(page_ns / each / static_cast<double>(pattern.pages.size()));
  row.set_kernel_faults(faults / each);
  servers.SetNumbers(row);
  leave.Open();
  return row;
}

}  // namespace

ServedFile::ServedFile(std::string path, uint64_t bytes)
    : path_(std::move(path)) {
  const ImageRef image = PatternImage(bytes);
  for (PageIndex page(0); page < PageIndex(0) + image->pages(); ++page) {
    uint64_t word;
    std::memcpy(&word, image->PageBytes(page), sizeof word);
    words_.push_back(word);
  }
  data_offset_ = OrDie(WriteImageFile(*image, path_, {.page_checksums = true}))
                     .data_offset;
}

uint64_t ServedFile::CachedBytes() const {
  return CachedPages(path_) * kPageBytes;
}

void ServedFile::FillPageCache() const {
  if (CachedBytes() >= data_offset_ + bytes()) return;
  const UniqueFd fd = OpenFile(path_);
  std::vector<char> buffer(1 << 20);
  while (read(fd.get(), buffer.data(), buffer.size()) > 0) {
  }
}

TouchPattern RecordPattern(const ServedFile& file, bool sequential,
                           uint64_t pages) {
  TouchPattern pattern;
  const uint64_t half = file.bytes() / kPageBytes / 2;
  for (uint64_t i = 0; i < pages; ++i) {
    // An odd factor, so that no page comes twice where `half` is a power of
    // two.
    pattern.pages.emplace_back(sequential ? half / 2 + i
                                          : (i * 2654435761u + 12345) % half);
  }
  ServeRow row;
  row.set_way(kRecordingName);
  row.set_page_cache("warm");
  row.set_touch("read");
  row.set_guests(1);
  Servers servers(file, pattern, row);
  RunGuests(file, pattern, row, servers);
  const std::vector<Touch> touches = servers.Touches();
  if (touches.size() != pages) {
    Die(absl::StrCat("of ", pages, " touches ", touches.size(),
                     " were recorded"));
  }
  pattern.recorded =
      std::make_shared<const std::vector<PageRun>>(RunsOf(touches));
  return pattern;
}

ServeRow SampleGuests(const ServedFile& file, const TouchPattern& pattern,
                      const ServeRow& row) {
  Servers servers(file, pattern, row);
  return RunGuests(file, pattern, row, servers);
}

}  // namespace firsttouch::bench
