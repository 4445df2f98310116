#include "firsttouch/service/model.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/service/service.h"
#include "firsttouch/service/test_fixture.h"
#include "firsttouch/uffd/fake_kernel.h"

namespace firsttouch {
namespace {

constexpr uint64_t kMaxPages = 48;
constexpr uint32_t kSlots = 3;
constexpr uint32_t kImages = 4;  // the last is none

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// Sanitizers map terabytes, which must not be locked.
constexpr bool kHasEnvironments = false;
#else
constexpr bool kHasEnvironments = true;
#endif

enum class Kind : uint8_t {
  kAcquire,           // memory a, image b, size c
  kWrite,             // memory a, offset b, value c
  kRead,              // memory a, offset b
  kFill,              // memory a, pages [b, c), every byte
  kGrow,              // memory a, by b bytes
  kTrap,              // memory a, a copy that runs over the end by b bytes
  kSystemCall,        // memory a, offset b, bytes c: read(2) into it
  kReset,             // memory a
  kRelease,           // memory a
  kReleaseElsewhere,  // memory a, on another thread
  kReleaseFailing,    // memory a, one call of the kernel fails: b says which
  kSnapshot,          // memory a: becomes the last image but one
  kPageOut,           // memory a: out to swap, where there is some
  kFork,              // a child that has no pool comes and goes
  kTrim,              // idle slots give back what they have
  kAcquireFailing,    // as kAcquire, one call of the kernel fails
  kSnapshotFailing,   // memory a, likewise: b says which
  kNewImage,          // image b: another one, nobody has the old one's handle
  kEnvironment,       // memory a, setting b: what a process, or its host, does
  kTakeAway,          // memory a, pages [b, c): the host has no use for them
};
constexpr int kKinds = static_cast<int>(Kind::kTakeAway) + 1;

const char* KindName(Kind kind) {
  static constexpr std::array<const char*, kKinds> kNames = {
      "kAcquire",
      "kWrite",
      "kRead",
      "kFill",
      "kGrow",
      "kTrap",
      "kSystemCall",
      "kReset",
      "kRelease",
      "kReleaseElsewhere",
      "kReleaseFailing",
      "kSnapshot",
      "kPageOut",
      "kFork",
      "kTrim",
      "kAcquireFailing",
      "kSnapshotFailing",
      "kNewImage",
      "kEnvironment",
      "kTakeAway"};
  static_assert(kNames.back() != nullptr, "a kind has no name");
  return kNames[static_cast<size_t>(kind)];
}

struct Step {
  Kind kind;
  uint32_t a = 0;
  uint64_t b = 0;
  uint64_t c = 0;
};

std::string AsCode(const std::vector<Step>& steps) {
  std::ostringstream code;
  code << "{\n";
  for (const Step& step : steps) {
    code << "    {Kind::" << KindName(step.kind) << ", " << step.a << ", "
         << step.b << ", " << step.c << "},\n";
  }
  code << "}";
  return code.str();
}

// <linux/mman.h>.
constexpr int kMadvCold = 20;  // 5.4

// Enters a setting that a process makes for all of its mappings, or that a host
// makes for those of a memory that it holds; none of them changes what a memory
// shows. Does nothing where this kernel or user cannot have it.
void Enter(uint64_t which, const Memory& memory) {
  if (!kHasEnvironments) return;
  void* const start = memory.base();
  const size_t bytes = RoundUpToPage(memory.size_bytes());
  switch (which % 11) {
    case 0:
      mlockall(MCL_CURRENT);
      break;
    case 1:
      mlockall(MCL_CURRENT | MCL_FUTURE);
      break;
    case 2:
      mlockall(MCL_FUTURE | MCL_ONFAULT);
      break;
    case 3:
      munlockall();
      break;
    case 4:
      prctl(kPrSetMemoryMerge, 1, 0, 0, 0);
      break;
    case 5:
      prctl(kPrSetMemoryMerge, 0, 0, 0, 0);
      break;
    case 6:
      prctl(PR_SET_THP_DISABLE, which / 11 % 2, 0, 0, 0);
      break;
    case 7:
      madvise(start, bytes, kMadvCold);
      break;
    case 8:
      madvise(start, bytes, kMadvCollapse);
      break;
    case 9: {
      constexpr int kMpolBind = 2;
      constexpr int kMove = 2;
      const unsigned long nodes = 1;
      syscall(SYS_mbind, start, bytes, kMpolBind, &nodes, 64, kMove);
      break;
    }
    case 10:
      // The signal's handler does nothing.
      raise(SIGUSR1);
      break;
  }
}

// Undoes Enter().
void LeaveEnvironment() {
  munlockall();
  prctl(kPrSetMemoryMerge, 0, 0, 0, 0);
  prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
}

// One run of a sequence on a pool of its own.
class World {
 public:
  World(Way way, PrepareKernel prepare)
      : can_supply_again_(way.open_supply == nullptr) {
    images_ = {PatternImage("one", 12, {3, 4}),
               FromFile(PatternImage("second", 30, {0, 29})),
               PatternImage("a", 1), nullptr};
    absl::StatusOr<std::unique_ptr<Service>> service =
        CreateService(way,
                      {.name = "model",
                       .layout = {.instances = kSlots,
                                  .max_memory_bytes = kMaxPages * kPageBytes,
                                  .guard_after_bytes = 65536},
                       .supply = Asking(way),
                       .trap_callback = JumpOutOfTrap,
                       .retained_pages_limit = 20,
                       .retained_cycles = 5,
                       // So dear that pages are given back all the time.
                       .retained_bytes_per_us = 1024},
                      kernel_);
    status_ = service.status();
    if (!service.ok()) return;
    service_ = *std::move(service);
    if (prepare != nullptr) prepare(kernel_);
    signal(SIGUSR1, [](int) {});
  }
  ~World() { LeaveEnvironment(); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const absl::Status& status() const { return status_; }

  // Returns what went wrong, or nullopt.
  std::optional<std::string> Do(const std::vector<Step>& steps) {
    for (size_t i = 0; i < steps.size(); ++i) {
      if (std::optional<std::string> wrong = DoOne(steps[i])) {
        return "step " + std::to_string(i) + ": " + *wrong;
      }
    }
    return CheckCapacity();
  }

 private:
  struct Held {
    Memory memory;
    ImageRef image;
    std::vector<uint8_t> model;
    std::vector<uint8_t> initial;
  };

  std::optional<std::string> DoOne(const Step& step) {
    Held& held = held_[step.a % kSlots];
    if (step.kind == Kind::kAcquire) return Acquire(held, step);
    if (step.kind == Kind::kAcquireFailing) return AcquireFailing(held, step);
    if (step.kind == Kind::kNewImage) {
      const uint64_t pages = 1 + step.c % 12;
      images_[step.b % (kImages - 1)] = PatternImage(
          std::string(1 + step.c % 9, 'n'), pages, {step.c % pages});
      return std::nullopt;
    }
    if (step.kind == Kind::kTrim) {
      if (!service_->Trim().ok()) return "trim";
      return std::nullopt;
    }
    if (!held.memory) return std::nullopt;
    const uint64_t size = held.model.size();
    switch (step.kind) {
      case Kind::kAcquire:
      case Kind::kTrim:
      case Kind::kAcquireFailing:
      case Kind::kNewImage:
        break;
      case Kind::kSnapshotFailing: {
        const uint64_t lost = service_->Stats().slots_quarantined;
        FailOneCall(step.b);
        const bool taken = held.memory.SnapshotDelta("failing").ok();
        ClearFailures();
        if (taken) return Compare(held);
        if (held.memory.GrowBy(0).ok()) break;
        // The snapshot could not make the memory writable again.
        if (!held.memory.Release().ok()) return "release after a snapshot";
        if (service_->Stats().slots_quarantined != lost)
          return "a slot is lost";
        break;
      }
      case Kind::kWrite:
        if (size == 0) break;
        Store(held.memory, step.b % size, step.c);
        held.model[step.b % size] = step.c;
        break;
      case Kind::kRead:
        if (size == 0) break;
        if (Load(held.memory, step.b % size) != held.model[step.b % size]) {
          return "offset " + std::to_string(step.b % size) + " reads " +
                 std::to_string(Load(held.memory, step.b % size));
        }
        break;
      case Kind::kFill: {
        const uint64_t from = std::min(size, step.b * kPageBytes);
        const uint64_t to = std::min(size, step.c * kPageBytes);
        if (from >= to) break;
        memset(held.memory.base() + from, 0xf1, to - from);
        std::fill(held.model.begin() + from, held.model.begin() + to, 0xf1);
        break;
      }
      case Kind::kGrow: {
        const bool fits = size + step.b <= kMaxPages * kPageBytes;
        if (held.memory.GrowBy(step.b).ok() != fits) return "growth";
        if (fits) held.model.resize(size + step.b);
        // The growth brings what the rest of the last page held into bounds.
        break;
      }
      case Kind::kTrap: {
        // Copies over the last bytes in bounds, and on until it traps.
        const uint64_t from = size < 100 ? 0 : size - 100;
        const uint64_t bound = RoundUpToPage(size);
        if (!TrapOf([&] {
               for (uint64_t at = from; at < size; ++at) {
                 Store(held.memory, at, 0x7e);
               }
               // Does not touch the rest of the last page: it is not guarded.
               Store(held.memory, bound, 0x7e);
             }).has_value()) {
          return "no trap at " + std::to_string(bound);
        }
        std::fill(held.model.begin() + from, held.model.end(), 0x7e);
        break;
      }
      case Kind::kSystemCall: {
        if (size == 0) break;
        const uint64_t from = step.b % size;
        const uint64_t bytes = std::min<uint64_t>(step.c, size - from);
        int ends[2];
        if (pipe(ends) != 0) return "pipe";
        const std::string text(bytes, 'p');
        const bool written =
            write(ends[1], text.data(), bytes) == static_cast<ssize_t>(bytes);
        const absl::Status ready =
            held.memory.MakeReady(from, bytes, Access::kWrite);
        const ssize_t got =
            bytes == 0 ? 0 : read(ends[0], held.memory.base() + from, bytes);
        close(ends[0]);
        close(ends[1]);
        if (!written || !ready.ok() || got != static_cast<ssize_t>(bytes)) {
          return "read(2) gave " + std::to_string(got);
        }
        std::fill_n(held.model.begin() + from, bytes, 'p');
        break;
      }
      case Kind::kReset:
        if (!held.memory.Reset().ok()) return "reset";
        held.model = held.initial;
        return Compare(held);
      case Kind::kRelease:
        if (!held.memory.Release().ok()) return "release";
        break;
      case Kind::kReleaseElsewhere: {
        bool ok = false;
        std::thread([&] { ok = held.memory.Release().ok(); }).join();
        if (!ok) return "release on another thread";
        break;
      }
      case Kind::kReleaseFailing:
        // At most two, so that a slot is left to look at.
        if (service_->Stats().slots_quarantined >= 2) break;
        FailOneCallOfRelease(held, step.b);
        break;
      case Kind::kSnapshot: {
        absl::StatusOr<ImageRef> snapshot = held.memory.Snapshot("snapshot");
        if (!snapshot.ok()) return std::string(snapshot.status().message());
        images_[kImages - 2] = *std::move(snapshot);
        break;
      }
      case Kind::kPageOut:
        madvise(held.memory.base(), RoundUpToPage(size), MADV_PAGEOUT);
        break;
      case Kind::kEnvironment:
        Enter(step.b, held.memory);
        break;
      case Kind::kTakeAway: {
        const uint64_t from =
            std::min(RoundUpToPage(size), step.b * kPageBytes);
        const uint64_t to = std::min(RoundUpToPage(size), step.c * kPageBytes);
        // Refused where the memory is locked. The plain supply does not supply
        // pages a second time.
        if (from >= to || !can_supply_again_ ||
            madvise(held.memory.base() + from, to - from, MADV_DONTNEED) != 0) {
          break;
        }
        // Initial bytes, and zeroes in what was grown into.
        for (uint64_t at = from; at < std::min(size, to); ++at) {
          held.model[at] = at < held.initial.size() ? held.initial[at] : 0;
        }
        break;
      }
      case Kind::kFork: {
        // Whatever fork(2) does to the parent's pages, their contents do not
        // change.
        const pid_t child = fork();
        if (child == 0) {
          // The child's release must leave the parent's slot alone.
          held.memory.Release().IgnoreError();
          _exit(0);
        }
        int status = 0;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
          return "fork";
        }
        return Compare(held);
      }
    }
    return std::nullopt;
  }

  void FailOneCallOfRelease(Held& held, uint64_t which) {
    using Op = FakeKernel::Op;
    constexpr Op kOps[] = {Op::kMadvise, Op::kMprotect, Op::kPagemapScan};
    const Op op = kOps[which / 2 % 3];
    kernel_.Fail(op, 1 + which % 2, CallResult{0, ENOMEM});
    held.memory.Release().IgnoreError();
    kernel_.Clear(op);
  }

  void FailOneCall(uint64_t which) {
    constexpr int kErrors[] = {ENOMEM, EMFILE, ENFILE, EAGAIN};
    const auto [op, is_range] = kFailingOps[which % std::size(kFailingOps)];
    const uint64_t nth = 1 + which / 16 % 4;
    const int error = kErrors[which / 64 % 4];
    if (is_range) {
      kernel_.Fail(op, nth, RangeResult{0, error});
    } else {
      kernel_.Fail(op, nth, CallResult{0, error});
    }
  }
  void ClearFailures() {
    for (const FailingOp& failing : kFailingOps) kernel_.Clear(failing.op);
  }

  std::optional<std::string> AcquireFailing(Held& held, const Step& step) {
    if (held.memory) return std::nullopt;
    const uint64_t lost = service_->Stats().slots_quarantined;
    FailOneCall(step.c);
    std::optional<std::string> wrong = Acquire(held, step, /*may_fail=*/true);
    ClearFailures();
    if (service_->Stats().slots_quarantined != lost) return "a slot is lost";
    if (held.memory && !wrong.has_value()) wrong = Compare(held);
    return wrong;
  }

  // Checks that every slot can be acquired that no failed release has
  // quarantined.
  std::optional<std::string> CheckCapacity() {
    for (Held& held : held_) held.memory = Memory();
    const uint64_t slots = kSlots - service_->Stats().slots_quarantined;
    for (uint64_t i = 0; i < slots; ++i) {
      const std::optional<std::string> wrong =
          Acquire(held_[i], {Kind::kAcquire, 0, i, 5000});
      if (wrong.has_value()) return "at the end: " + *wrong;
      if (!held_[i].memory) return "a slot is not to be had at the end";
    }
    return std::nullopt;
  }

  std::optional<std::string> Acquire(Held& held, const Step& step,
                                     bool may_fail = false) {
    if (held.memory) return std::nullopt;
    held.image = images_[step.b % kImages];
    const uint64_t least = held.image == nullptr ? 0 : held.image->size_bytes();
    const uint64_t size = least + step.c % (kMaxPages * kPageBytes - least + 1);
    absl::StatusOr<Memory> memory =
        service_->Acquire({.image = held.image, .size_bytes = size});
    if (!memory.ok()) {
      if (may_fail) return std::nullopt;
      if (memory.status().code() == absl::StatusCode::kResourceExhausted &&
          service_->Stats().slots_quarantined > 0) {
        return std::nullopt;
      }
      return std::string(memory.status().message());
    }
    held.memory = *std::move(memory);
    held.initial = InitialBytes(held.image, size);
    held.model = held.initial;
    held.image.reset();  // A memory keeps its image by itself.
    return may_fail ? std::nullopt : Compare(held);
  }

  static std::optional<std::string> Compare(const Held& held) {
    if (std::optional<uint64_t> at = FirstDifference(held.memory, held.model)) {
      return "offset " + std::to_string(*at) + " of " +
             std::to_string(held.model.size()) + " differs";
    }
    const uint64_t bound = RoundUpToPage(held.model.size());
    // The tail of the last page is not guarded, but it is clean all the same.
    for (uint64_t at = held.model.size(); at < bound; ++at) {
      uint8_t tail = 0;
      if (!TrapOf([&] { tail = Load(held.memory, at); }).has_value() &&
          tail != 0) {
        return "the tail at " + std::to_string(at) + " is not zero";
      }
    }
    for (uint64_t page = bound / kPageBytes; page < kMaxPages; ++page) {
      if (!TrapOf([&] { Load(held.memory, page * kPageBytes); }).has_value()) {
        return "page " + std::to_string(page) + " is reachable behind size " +
               std::to_string(held.model.size());
      }
    }
    return std::nullopt;
  }

  struct FailingOp {
    FakeKernel::Op op;
    bool is_range;
  };
  static constexpr FailingOp kFailingOps[] = {
      {FakeKernel::Op::kMmap, false},        {FakeKernel::Op::kRegister, false},
      {FakeKernel::Op::kUnregister, false},  {FakeKernel::Op::kMadvise, false},
      {FakeKernel::Op::kMprotect, false},    {FakeKernel::Op::kCopy, true},
      {FakeKernel::Op::kPagemapScan, false}, {FakeKernel::Op::kContinue, true},
      {FakeKernel::Op::kWriteProtect, true}};

  const bool can_supply_again_;
  FakeKernel kernel_;
  std::array<ImageRef, kImages> images_;
  absl::Status status_;
  std::unique_ptr<Service> service_;
  std::array<Held, kSlots> held_;
};

std::vector<Step> RandomSteps(std::mt19937_64& random) {
  std::vector<Step> steps(10 + random() % 50);
  for (Step& step : steps) {
    // A third of all steps are acquires, or most would find nothing held.
    step.kind = random() % 3 == 0 ? Kind::kAcquire
                                  : static_cast<Kind>(random() % kKinds);
    // A fork takes as long as a hundred other steps.
    if (step.kind == Kind::kFork && random() % 20 != 0) step.kind = Kind::kRead;
    step.a = random() % kSlots;
    step.b = random();
    step.c = random();
    if (step.kind == Kind::kFill || step.kind == Kind::kTakeAway) {
      step.b %= kMaxPages;
      step.c = step.b + random() % 16;
    }
    if (step.kind == Kind::kGrow) {
      step.b = random() % 2 == 0 ? random() % 3000
                                 : random() % (kMaxPages * kPageBytes);
    }
    if (step.kind == Kind::kSystemCall) step.c %= 20000;
    if (step.kind == Kind::kWrite) step.c %= 256;
  }
  return steps;
}

std::optional<std::string> Fails(Way way, const std::vector<Step>& steps,
                                 PrepareKernel prepare) {
  World world(way, prepare);
  if (!world.status().ok()) return std::string(world.status().message());
  return world.Do(steps);
}

// Leaves out every step that can be left out.
std::vector<Step> Shorten(Way way, std::vector<Step> steps,
                          PrepareKernel prepare) {
  for (size_t length = steps.size() / 2; length > 0; length /= 2) {
    for (size_t first = 0; first + length <= steps.size();) {
      std::vector<Step> shorter = steps;
      shorter.erase(shorter.begin() + first, shorter.begin() + first + length);
      if (Fails(way, shorter, prepare).has_value()) {
        steps = std::move(shorter);
      } else {
        first += length;
      }
    }
  }
  return steps;
}

}  // namespace

absl::Status ModelAllows(Way way) { return World(way, nullptr).status(); }

std::optional<std::string> FindDifference(Way way, uint64_t sequences,
                                          uint64_t seed,
                                          PrepareKernel prepare) {
  std::mt19937_64 random(seed);
  for (uint64_t i = 0; i < sequences; ++i) {
    const std::vector<Step> steps = RandomSteps(random);
    if (!Fails(way, steps, prepare).has_value()) continue;
    const std::vector<Step> shorter = Shorten(way, steps, prepare);
    return absl::StrCat(
        "seed ", seed, ", sequence ", i, ": ",
        Fails(way, shorter, prepare).value_or("(fails now and then)"), "\n",
        AsCode(shorter));
  }
  return std::nullopt;
}

}  // namespace firsttouch
