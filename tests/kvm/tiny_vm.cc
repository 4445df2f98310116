#include "firsttouch/tests/kvm/tiny_vm.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

// Of guest.S.
extern "C" const char FirsttouchKvmGuest[];     // NOLINT
extern "C" const char FirsttouchKvmGuestEnd[];  // NOLINT

namespace firsttouch {
namespace {

// Of guest.S.
constexpr uint16_t kOrderPort = 0x10;
constexpr uint16_t kAnswerPort = 0x14;
constexpr uint32_t kNothing = 0;

// Where things are in the guest's memory, in bytes.
constexpr uint64_t kDescriptors = 0x500;
constexpr uint64_t kTopTable = 0x1000;
constexpr uint64_t kUpperTable = 0x2000;
constexpr uint64_t kLowerTable = 0x3000;
constexpr uint64_t kProgram = 0x10000;
constexpr uint64_t kStackEnd = 0x20000;

constexpr uint64_t kHugePage = uint64_t{2} << 20;
// Present, writable, for ring 3; and of the lowest table, a huge page.
constexpr uint64_t kEntry = 0x7;
constexpr uint64_t kHugeEntry = 0x87;

constexpr uint16_t kCodeSelector = 0x23;
constexpr uint16_t kDataSelector = 0x1b;

// kvm_cpuid2, KVM_GET_SUPPORTED_CPUID and KVM_SET_CPUID2, which in C++ have
// another size than in C: the structure has an empty one in it.
struct Features {
  uint32_t count;
  uint32_t padding;
  std::array<kvm_cpuid_entry2, 256> entries;
};
constexpr size_t kFeaturesHeadBytes = 8;
constexpr auto kGetSupportedFeatures =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, kFeaturesHeadBytes);
constexpr auto kSetFeatures = _IOC(_IOC_WRITE, KVMIO, 0x90, kFeaturesHeadBytes);

absl::Status Failed(const char* what) {
  return absl::ErrnoToStatus(errno, what);
}

template <typename T>
void PutAt(std::span<std::byte> memory, uint64_t offset, const T& value) {
  std::memcpy(&memory[offset], &value, sizeof value);
}

}  // namespace

void TinyVm::WriteProgram(std::span<std::byte> memory) {
  // Every address is the same in the guest's virtual memory.
  PutAt(memory, kTopTable, kUpperTable | kEntry);
  PutAt(memory, kUpperTable, kLowerTable | kEntry);
  for (uint64_t at = 0; at < memory.size(); at += kHugePage) {
    PutAt(memory, kLowerTable + at / kHugePage * 8, at | kHugeEntry);
  }
  // None, code and data of ring 0, data and code of ring 3.
  const uint64_t descriptors[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff,
                                  0x00cff3000000ffff, 0x00affb000000ffff};
  PutAt(memory, kDescriptors, descriptors);
  std::memcpy(&memory[kProgram], FirsttouchKvmGuest,
              static_cast<size_t>(FirsttouchKvmGuestEnd - FirsttouchKvmGuest));
}

absl::StatusOr<TinyVm::Processor> TinyVm::SwitchedOn() {
  Processor processor = {};
  if (ioctl(processor_.get(), KVM_GET_SREGS, &processor.sregs) != 0) {
    return Failed("KVM_GET_SREGS");
  }
  kvm_sregs& sregs = processor.sregs;
  sregs.cr0 = 0x80050033;  // Protected mode, paging, write protection.
  sregs.cr3 = kTopTable;
  sregs.cr4 = 0x620;   // Long page table entries; SSE.
  sregs.efer = 0xd00;  // Long mode.
  sregs.gdt.base = kDescriptors;
  sregs.gdt.limit = 5 * 8 - 1;
  kvm_segment data = {};
  data.limit = ~0U;
  data.selector = kDataSelector;
  data.type = 3;
  data.present = data.s = data.db = data.g = 1;
  data.dpl = 3;
  kvm_segment code = data;
  code.selector = kCodeSelector;
  code.type = 11;
  code.db = 0;
  code.l = 1;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  processor.regs.rip = kProgram;
  processor.regs.rsp = kStackEnd;
  processor.regs.rflags = 0x3002;  // I/O for ring 3.
  return processor;
}

absl::StatusOr<std::unique_ptr<TinyVm>> TinyVm::Create(
    std::span<std::byte> memory, const Processor* processor) {
  std::unique_ptr<TinyVm> vm(new TinyVm());
  if (absl::Status made = vm->Prepare(memory, processor); !made.ok()) {
    return made;
  }
  return vm;
}

absl::Status TinyVm::Prepare(std::span<std::byte> memory,
                             const Processor* processor) {
  kvm_.reset(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm_) {
    return absl::UnavailableError(
        absl::StrCat("/dev/kvm cannot be opened: ", std::strerror(errno)));
  }
  machine_.reset(ioctl(kvm_.get(), KVM_CREATE_VM, 0));
  if (!machine_) {
    return absl::UnavailableError(
        absl::StrCat("KVM_CREATE_VM: ", std::strerror(errno)));
  }
  // Intel's processors need three pages for themselves.
  if (ioctl(machine_.get(), KVM_SET_TSS_ADDR, 0xfffbd000) != 0) {
    return Failed("KVM_SET_TSS_ADDR");
  }
  kvm_userspace_memory_region region = {};
  region.memory_size = memory.size();
  region.userspace_addr = reinterpret_cast<uintptr_t>(memory.data());
  if (ioctl(machine_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return Failed("KVM_SET_USER_MEMORY_REGION");
  }
  processor_.reset(ioctl(machine_.get(), KVM_CREATE_VCPU, 0));
  if (!processor_) return Failed("KVM_CREATE_VCPU");
  const int bytes = ioctl(kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  void* const mapped =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
           MAP_SHARED, processor_.get(), 0);
  if (mapped == MAP_FAILED) return Failed("mmap of a processor");
  run_ = static_cast<kvm_run*>(mapped);
  run_bytes_ = static_cast<size_t>(bytes);

  // Long mode is only for processors that say that they have it.
  auto features = std::make_unique<Features>();
  features->count = features->entries.size();
  if (ioctl(kvm_.get(), kGetSupportedFeatures, features.get()) != 0 ||
      ioctl(processor_.get(), kSetFeatures, features.get()) != 0) {
    return Failed("KVM_SET_CPUID2");
  }
  absl::StatusOr<Processor> state =
      processor != nullptr ? *processor : SwitchedOn();
  if (!state.ok()) return state.status();
  if (ioctl(processor_.get(), KVM_SET_SREGS, &state->sregs) != 0 ||
      ioctl(processor_.get(), KVM_SET_REGS, &state->regs) != 0) {
    return Failed("KVM_SET_SREGS and KVM_SET_REGS");
  }
  return absl::OkStatus();
}

TinyVm::~TinyVm() {
  if (run_ != nullptr) munmap(run_, run_bytes_);
}

absl::Status TinyVm::RunToPort(uint16_t port, uint32_t& value) {
  while (ioctl(processor_.get(), KVM_RUN, 0) != 0) {
    if (errno != EINTR) return Failed("KVM_RUN");
  }
  if (run_->exit_reason != KVM_EXIT_IO || run_->io.port != port ||
      run_->io.size != sizeof value) {
    return absl::InternalError(
        absl::StrCat("the guest ended with exit ", run_->exit_reason,
                     " where it was to use port ", port));
  }
  char* const at = reinterpret_cast<char*>(run_) + run_->io.data_offset;
  if (run_->io.direction == KVM_EXIT_IO_IN) {
    std::memcpy(at, &value, sizeof value);
  } else {
    std::memcpy(&value, at, sizeof value);
  }
  return absl::OkStatus();
}

absl::StatusOr<TinyVm::Answer> TinyVm::Order(What what, uint64_t first,
                                             uint64_t pages, uint32_t seed) {
  for (const uint64_t word : {uint64_t{what}, first, pages, uint64_t{seed}}) {
    auto value = static_cast<uint32_t>(word);
    if (absl::Status told = RunToPort(kOrderPort, value); !told.ok()) {
      return told;
    }
  }
  Answer answer;
  for (uint64_t* number : {&answer.as_pattern, &answer.zero, &answer.other}) {
    uint32_t value = 0;
    if (absl::Status heard = RunToPort(kAnswerPort, value); !heard.ok()) {
      return heard;
    }
    *number = value;
  }
  return answer;
}

absl::StatusOr<TinyVm::Processor> TinyVm::Pause() {
  uint32_t nothing = kNothing;
  if (absl::Status told = RunToPort(kOrderPort, nothing); !told.ok()) {
    return told;
  }
  // Ends the instruction that reads the port, and does nothing more.
  run_->immediate_exit = 1;
  const int ran = ioctl(processor_.get(), KVM_RUN, 0);
  run_->immediate_exit = 0;
  if (ran == 0 || errno != EINTR) {
    return absl::InternalError("the processor did not pause");
  }
  Processor processor;
  if (ioctl(processor_.get(), KVM_GET_SREGS, &processor.sregs) != 0 ||
      ioctl(processor_.get(), KVM_GET_REGS, &processor.regs) != 0) {
    return Failed("KVM_GET_SREGS and KVM_GET_REGS");
  }
  return processor;
}

}  // namespace firsttouch
