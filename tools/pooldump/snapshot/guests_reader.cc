#include "firsttouch/tools/pooldump/snapshot/guests_reader.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/snapshot/block_reader.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/proc_memory.h"
#include "firsttouch/tools/pooldump/snapshot/totals.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {
namespace {

constexpr uint64_t kMaxRecords = uint64_t{1} << 24;
constexpr uint64_t kMaxRegions = 256;  // Of one guest.
constexpr uint64_t kAddressSpace = uint64_t{1} << 57;
// How often a guest is read that changes while it is.
constexpr int kAttempts = 32;

template <size_t kBytes>
std::string_view View(const char (&text)[kBytes]) {
  return {text, strnlen(text, kBytes)};
}

// Whether `section` is one of records like these, within the block.
template <typename Record>
bool IsSection(const ControlSection& section, uint64_t block_bytes) {
  return section.offset_bytes % 8 == 0 && section.record_bytes % 8 == 0 &&
         section.record_bytes >= sizeof(Record) &&
         section.records <= kMaxRecords &&
         section.offset_bytes <= block_bytes &&
         (section.records == 0 ||
          section.record_bytes <=
              (block_bytes - section.offset_bytes) / section.records);
}

template <typename Record>
absl::Status ReadAt(BlockBytes& bytes, uint64_t offset, Record& record) {
  static_assert(sizeof(Record) % 8 == 0);
  uint64_t words[sizeof(Record) / 8];
  absl::Status status = bytes.Read(offset, words);
  if (status.ok()) std::memcpy(&record, words, sizeof(record));
  return status;
}

Slot SlotOf(const RegionInBlock& region, uint32_t number, bool waits,
            const Image& image) {
  Slot slot;
  slot.set_slot(number);
  slot.set_instance(number);
  slot.set_base(region.start);
  slot.set_size_bytes(region.bytes);
  slot.set_image_offset_bytes(region.image_offset_bytes);
  slot.set_image_id(image.id());
  slot.set_image_name(image.name());
  if (waits) {
    slot.set_state_name("stalled");
  } else {
    slot.set_state(Slot::HELD);
    slot.set_state_name("held");
  }
  Counters& counters = *slot.mutable_counters();
  counters.set_missing_read_faults(region.read_faults);
  counters.set_missing_write_faults(region.write_faults);
  counters.set_write_protect_faults(region.protect_faults);
  counters.set_traps(region.lost);
  counters.set_binds(1);
  counters.set_pages_copied(region.pages_copied);
  counters.set_pages_zeroed(region.pages_zeroed);
  counters.set_pages_prefilled(region.pages_early);
  counters.set_pages_dropped(region.pages_given_back);
  return slot;
}

}  // namespace

absl::StatusOr<GuestsReader> GuestsReader::Open(BlockBytes& bytes) {
  if (bytes.bytes() < sizeof(GuestsHeader)) {
    return CorruptBlock("", absl::StrCat("it has ", bytes.bytes(),
                                         " bytes, and a header alone has ",
                                         sizeof(GuestsHeader)));
  }
  GuestsReader reader(bytes);
  GuestsHeader& header = reader.header_;
  if (absl::Status read = ReadAt(bytes, 0, header); !read.ok()) return read;
  if (header.ready == 0) {
    return absl::NotFoundError(
        "a server is starting, or has just gone: try again");
  }
  const std::string name = reader.name();
  if (std::memcmp(header.magic, kGuestsMagic, sizeof(kGuestsMagic)) != 0) {
    return CorruptBlock(name,
                        absl::StrCat("it begins with \"",
                                     absl::CEscape(absl::string_view(
                                         header.magic, sizeof(header.magic))),
                                     "\""));
  }
  if (header.version != kGuestsVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the guests block of server \"", name, "\" is of version ",
        header.version, ", and this pooldump reads version ", kGuestsVersion,
        ": use the pooldump of the firsttouch that the server was built "
        "with"));
  }
  if (header.header_bytes < sizeof(GuestsHeader) ||
      header.block_bytes != bytes.bytes() ||
      header.guests.records > kMaxGuestsInBlock ||
      !IsSection<GuestInBlock>(header.guests, header.block_bytes) ||
      !IsSection<RegionInBlock>(header.regions, header.block_bytes)) {
    return CorruptBlock(
        name,
        absl::StrCat("its sections of ", header.guests.records, " guests and ",
                     header.regions.records, " regions are not in its ",
                     header.block_bytes, " bytes, or unaligned"));
  }
  return reader;
}

std::string GuestsReader::name() const { return Printable(View(header_.name)); }

absl::StatusOr<std::optional<PoolSnapshot>> GuestsReader::ReadGuest(
    uint64_t index) {
  const uint64_t at =
      header_.guests.offset_bytes + index * header_.guests.record_bytes;
  GuestInBlock guest = {};
  std::vector<RegionInBlock> regions;
  bool torn = true;
  for (int attempt = 0; torn && attempt < kAttempts; ++attempt) {
    if (absl::Status read = ReadAt(*bytes_, at, guest); !read.ok()) return read;
    if (guest.number == 0 && guest.sequence % 2 == 0) {
      return std::optional<PoolSnapshot>();
    }
    regions.clear();
    const bool fits =
        guest.regions <= kMaxRegions &&
        guest.first_region <= header_.regions.records &&
        guest.regions <= header_.regions.records - guest.first_region;
    for (uint64_t i = 0; fits && i < guest.regions; ++i) {
      const uint64_t region_at =
          header_.regions.offset_bytes +
          (guest.first_region + i) * header_.regions.record_bytes;
      absl::Status read = ReadAt(*bytes_, region_at, regions.emplace_back());
      if (!read.ok()) return read;
    }
    uint64_t sequence = 0;
    absl::Status read = bytes_->Read(at, std::span(&sequence, 1));
    if (!read.ok()) return read;
    torn = sequence != guest.sequence || sequence % 2 != 0;
    if (!torn && !fits) {
      return CorruptBlock(
          name(), absl::StrCat("guest ", guest.number, " has ", guest.regions,
                               " regions from record ", guest.first_region,
                               " on, of ", header_.regions.records));
    }
  }
  // It comes or goes.
  if (torn) return std::optional<PoolSnapshot>();

  PoolSnapshot pool;
  pool.set_name(Printable(View(guest.name)));
  pool.set_pool_id(static_cast<uint32_t>(guest.number));
  pool.set_format_version(header_.version);
  pool.mutable_options()->set_supply("userfaultfd");
  pool.mutable_options()->set_backing("copied");
  pool.mutable_options()->set_resolve("server");
  GuestFacts& facts = *pool.mutable_guest();
  facts.set_pid(static_cast<int64_t>(std::min(guest.pid, kMaxRecords)));
  facts.set_waiting_faults(guest.waiting);
  Image& image = *pool.add_images();
  image.set_id(1);
  image.set_name(Printable(View(guest.image_name)));
  image.set_size_bytes(guest.image_size_bytes);
  image.set_stored_pages(guest.image_stored_pages);
  if (guest.image_digest_known == 1) {
    image.set_digest(absl::BytesToHexString(
        absl::string_view(reinterpret_cast<const char*>(guest.image_digest),
                          sizeof(guest.image_digest))));
  }
  uint64_t lowest = UINT64_MAX;
  uint64_t highest = 0;
  uint64_t largest = 0;
  for (size_t i = 0; i < regions.size(); ++i) {
    const RegionInBlock& region = regions[i];
    if (region.start >= kAddressSpace ||
        region.bytes > kAddressSpace - region.start) {
      return CorruptBlock(
          name(),
          absl::StrCat("a region of ", region.bytes, " bytes at 0x",
                       absl::Hex(region.start), " is not in an address space"));
    }
    // A block in which guests name the same records has no end.
    if (++regions_read_ > header_.regions.records) {
      return CorruptBlock(name(), "its guests share their regions");
    }
    *pool.add_slots() =
        SlotOf(region, static_cast<uint32_t>(i), guest.waiting > 0, image);
    AddToTotals(pool.slots(static_cast<int>(i)), *pool.mutable_totals());
    lowest = std::min(lowest, region.start);
    highest = std::max(highest, region.start + region.bytes);
    largest = std::max(largest, region.bytes);
  }
  image.set_slots(static_cast<uint32_t>(regions.size()));
  image.set_held(pool.totals().held());
  pool.set_base(regions.empty() ? 0 : lowest);
  PoolLayoutNumbers& layout = *pool.mutable_layout();
  layout.set_instances(static_cast<uint32_t>(regions.size()));
  layout.set_memories_per_instance(1);
  layout.set_slots(static_cast<uint32_t>(regions.size()));
  layout.set_max_memory_bytes(largest);
  layout.set_page_bytes(regions.empty() ? kPageBytes : regions[0].page_bytes);
  layout.set_reservation_bytes(regions.empty() ? 0 : highest - lowest);
  return std::optional<PoolSnapshot>(std::move(pool));
}

absl::StatusOr<std::vector<PoolSnapshot>> GuestsReader::ReadGuests() {
  std::vector<PoolSnapshot> guests;
  regions_read_ = 0;
  const ControlSection& section = header_.guests;
  const uint64_t end =
      section.offset_bytes + section.records * section.record_bytes;
  for (uint64_t offset = section.offset_bytes; offset < end;) {
    // Most records were never used, and are in holes.
    absl::StatusOr<BlockBytes::Part> part = bytes_->NextData(offset, end);
    if (!part.ok()) return part.status();
    uint64_t index = (std::max(part->offset, offset) - section.offset_bytes) /
                     section.record_bytes;
    const uint64_t behind =
        std::min(section.records,
                 (part->end - section.offset_bytes + section.record_bytes - 1) /
                     section.record_bytes);
    for (; index < behind; ++index) {
      absl::StatusOr<std::optional<PoolSnapshot>> guest = ReadGuest(index);
      if (!guest.ok()) return guest.status();
      if (guest->has_value()) guests.push_back(**std::move(guest));
    }
    offset = std::max(part->end,
                      section.offset_bytes + behind * section.record_bytes);
  }
  std::sort(guests.begin(), guests.end(),
            [](const PoolSnapshot& a, const PoolSnapshot& b) {
              return a.pool_id() < b.pool_id();
            });
  return guests;
}

std::string AddGuestProcess(PoolSnapshot& guest) {
  const auto why_not = [&](std::string_view why) {
    return absl::StrCat("guest \"", guest.name(),
                        "\": what is resident is not known: ",
                        absl::string_view(why.data(), why.size()));
  };
  const int64_t pid = guest.guest().pid();
  if (pid == 0) return why_not("its process is not known");
  const UniqueFd proc(open(absl::StrCat("/proc/", pid).c_str(),
                           O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!proc) return why_not(absl::StrCat("there is no process ", pid, " here"));
  if (const auto comm = ReadProcFile(proc.get(), "comm"); comm.ok()) {
    guest.mutable_guest()->set_command(
        Printable(comm->substr(0, comm->find('\n'))));
  }
  Totals& totals = *guest.mutable_totals();
  for (Slot& slot : *guest.mutable_slots()) {
    uint64_t own = 0;
    uint64_t shared = 0;
    const absl::Status scanned = ForEachResidentRun(
        proc.get(), slot.base(), slot.base() + slot.size_bytes(),
        [&](const ResidentRun& run) {
          (run.is_private ? own : shared) += run.end - run.start;
        });
    if (!scanned.ok()) return why_not(absl::StrCat(scanned.message()));
    slot.set_private_bytes(own);
    slot.set_shared_bytes(shared);
    slot.set_resident_bytes(own + shared);
    totals.set_private_bytes(totals.private_bytes() + own);
    totals.set_shared_bytes(totals.shared_bytes() + shared);
    totals.set_resident_bytes(totals.resident_bytes() + own + shared);
  }
  return "";
}

std::optional<Location> LocateInGuest(const PoolSnapshot& guest,
                                      uint64_t address) {
  for (const Slot& slot : guest.slots()) {
    if (address - slot.base() >= slot.size_bytes()) continue;
    const uint64_t offset = address - slot.base();
    Location where;
    where.set_address(address);
    where.set_place(Location::MEMORY);
    where.set_pool(guest.name());
    where.set_pool_id(guest.pool_id());
    where.set_guest_pid(guest.guest().pid());
    where.set_slot(slot.slot());
    where.set_instance(slot.instance());
    where.set_offset_bytes(static_cast<int64_t>(offset));
    where.set_page(offset / kPageBytes);
    where.set_has_slot(true);
    where.set_in_bounds(true);
    where.set_page_in_bounds(true);
    where.set_size_bytes(slot.size_bytes());
    where.set_slot_state(slot.state());
    where.set_image_id(slot.image_id());
    where.set_image_name(slot.image_name());
    const uint64_t image_page =
        (slot.image_offset_bytes() + offset) / kPageBytes;
    const uint64_t image_pages =
        PagesRoundedUp(guest.images(0).size_bytes()).value();
    if (image_page < image_pages) {
      where.set_page_source(PAGE_OF_IMAGE);
      where.set_image_page(image_page);
    } else {
      where.set_page_source(PAGE_OF_ZEROES);
    }
    where.set_given_back_pages(slot.counters().pages_dropped());
    const UniqueFd proc(
        open(absl::StrCat("/proc/", guest.guest().pid()).c_str(),
             O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!proc) return where;
    const uint64_t page = RoundDownToPage(address);
    int kind = 0;
    const absl::Status scanned = ForEachResidentRun(
        proc.get(), page, page + kPageBytes,
        [&](const ResidentRun& run) { kind = run.is_private ? 2 : 1; });
    if (scanned.ok()) where.set_resident(kind);
    return where;
  }
  return std::nullopt;
}

}  // namespace firsttouch::pooldump
