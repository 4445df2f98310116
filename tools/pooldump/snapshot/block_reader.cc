#include "firsttouch/tools/pooldump/snapshot/block_reader.h"

#include <sched.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/tools/pooldump/snapshot/locate.h"
#include "firsttouch/tools/pooldump/snapshot/page_groups.h"
#include "firsttouch/tools/pooldump/snapshot/printable.h"
#include "firsttouch/tools/pooldump/snapshot/totals.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch::pooldump {
namespace {

// More than fit an address space with any guard.
constexpr uint64_t kMaxSlots = uint64_t{1} << 20;
constexpr uint64_t kMaxFields = 1024;
constexpr uint64_t kMaxNames = 256;
constexpr uint64_t kMaxDescriptionBytes = 65536;
// How often a slot is read that changes while it is.
constexpr int kAttempts = 32;

template <size_t kBytes>
std::string_view View(const char (&text)[kBytes]) {
  return {text, strnlen(text, kBytes)};
}

Slot::State StateOf(std::string_view name) {
  static const auto* const states =
      new std::map<std::string, Slot::State, std::less<>>{
          {"free", Slot::FREE},           {"leased", Slot::HELD},
          {"returning", Slot::RETURNING}, {"parked", Slot::PARKED},
          {"trimming", Slot::TRIMMING},   {"quarantined", Slot::QUARANTINED}};
  const auto found = states->find(name);
  return found == states->end() ? Slot::STATE_UNSPECIFIED : found->second;
}

// Bytes of whole words.
uint64_t Words(uint64_t bytes) { return (bytes + 7) / 8; }

template <typename Record>
absl::StatusOr<Record> ReadRecord(BlockBytes& bytes, uint64_t offset) {
  static_assert(sizeof(Record) % 8 == 0);
  uint64_t words[sizeof(Record) / 8];
  if (absl::Status status = bytes.Read(offset, words); !status.ok()) {
    return status;
  }
  Record record;
  std::memcpy(&record, words, sizeof(record));
  return record;
}

// Whether `count` things of `each` bytes lie in `bytes`, without overflow.
bool Fits(uint64_t offset, uint64_t each, uint64_t count, uint64_t bytes) {
  return offset <= bytes && (count == 0 || each <= (bytes - offset) / count);
}

}  // namespace

absl::Status CorruptBlock(std::string_view pool, std::string_view what) {
  return absl::DataLossError(
      absl::StrCat("the control block of pool \"", Printable(pool),
                   "\" cannot be right: ", std::string(what),
                   "; it was overwritten, or is not one that firsttouch made"));
}

absl::StatusOr<BlockReader> BlockReader::Open(BlockBytes& bytes) {
  if (bytes.bytes() < sizeof(ControlHeader)) {
    return CorruptBlock("", absl::StrCat("it has ", bytes.bytes(),
                                         " bytes, and a header alone has ",
                                         sizeof(ControlHeader)));
  }
  absl::StatusOr<ControlHeader> header = ReadRecord<ControlHeader>(bytes, 0);
  if (!header.ok()) return header.status();
  if (header->ready == 0) {
    return absl::NotFoundError(
        "a pool is being made, or has just gone: try again");
  }
  const std::string name = Printable(View(header->name));
  if (std::memcmp(header->magic, kControlMagic, sizeof(kControlMagic)) != 0) {
    return CorruptBlock(name,
                        absl::StrCat("it begins with \"",
                                     absl::CEscape(absl::string_view(
                                         header->magic, sizeof(header->magic))),
                                     "\""));
  }
  if (header->version != kControlVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the control block of pool \"", name, "\" is of version ",
        header->version, ", and this pooldump reads version ", kControlVersion,
        ": use the pooldump of the firsttouch that the process was built "
        "with"));
  }
  if (header->header_bytes < sizeof(ControlHeader)) {
    return CorruptBlock(
        name,
        absl::StrCat("header_bytes is ", header->header_bytes,
                     ", and version 1 has at least ", sizeof(ControlHeader)));
  }
  if (header->block_bytes != bytes.bytes()) {
    return CorruptBlock(name,
                        absl::StrCat("block_bytes is ", header->block_bytes,
                                     ", and it has ", bytes.bytes()));
  }
  const absl::StatusOr<PoolLayout> layout = PoolLayout::Compute(
      {.instances = header->instances,
       .memories_per_instance = header->memories_per_instance,
       .max_memory_bytes = header->max_memory_bytes,
       .guard_before_bytes = header->guard_before_bytes,
       .guard_after_bytes = header->guard_after_bytes,
       .page_bytes = header->page_bytes,
       .fault_around_bytes = header->fault_around_bytes});
  if (!layout.ok()) {
    return CorruptBlock(name, absl::StrCat(layout.status().message()));
  }
  if (layout->reservation_bytes() != header->reservation_bytes ||
      layout->slot_stride_bytes() != header->slot_stride_bytes ||
      layout->first_memory_offset_bytes() !=
          header->first_memory_offset_bytes) {
    return CorruptBlock(name,
                        "its offsets are not those of its layout options");
  }
  if (header->page_bytes != kPageBytes) {
    return CorruptBlock(name, absl::StrCat("page_bytes is ", header->page_bytes,
                                           ", not ", kPageBytes));
  }
  constexpr uint64_t kAddressSpace = uint64_t{1} << 57;
  if (header->base % kPageBytes != 0 || header->base >= kAddressSpace ||
      header->reservation_bytes > kAddressSpace - header->base) {
    return CorruptBlock(
        name, absl::StrCat("its reservation of ", header->reservation_bytes,
                           " bytes at 0x", absl::Hex(header->base),
                           " is not in an address space"));
  }
  BlockReader reader(bytes, *layout);
  reader.header_ = *header;
  if (absl::Status status = reader.CheckSections(); !status.ok()) {
    return status;
  }
  if (absl::Status status = reader.ReadNames(header->states, reader.states_);
      !status.ok()) {
    return status;
  }
  if (absl::Status status =
          reader.ReadNames(header->trackings, reader.trackings_);
      !status.ok()) {
    return status;
  }
  if (absl::Status status = reader.ReadFields(); !status.ok()) return status;
  if (absl::Status status = reader.ReadDescription(); !status.ok()) {
    return status;
  }
  return reader;
}

std::string BlockReader::name() const { return Printable(View(header_.name)); }

bool BlockReader::has_page_states() const {
  constexpr std::string_view kMappings = "mappings";
  return View(header_.supply).substr(0, kMappings.size()) != kMappings;
}

absl::Status BlockReader::CheckSections() const {
  struct Rule {
    const char* name;
    const ControlSection& section;
    uint64_t least_bytes;
    uint64_t most_records;
  };
  const uint64_t slots = layout_.slots();
  const uint64_t groups = (layout_.memory_bytes() / kPageBytes + 63) / 64;
  const ControlPlanes& planes = header_.planes;
  const Rule rules[] = {
      {"fields", header_.fields, sizeof(ControlField), kMaxFields},
      {"states", header_.states, sizeof(ControlName), kMaxNames},
      {"trackings", header_.trackings, sizeof(ControlName), kMaxNames},
      {"slots", header_.slots, 8, kMaxSlots},
      {"images", header_.images, sizeof(ControlImage), kMaxSlots},
      {"pages", header_.pages, 8, kMaxSlots},
  };
  for (const Rule& rule : rules) {
    const ControlSection& at = rule.section;
    if (at.offset_bytes % 8 != 0 || at.record_bytes % 8 != 0 ||
        at.record_bytes < rule.least_bytes || at.records > rule.most_records ||
        !Fits(at.offset_bytes, at.record_bytes, at.records,
              header_.block_bytes)) {
      return CorruptBlock(
          name(),
          absl::StrCat("its section of ", rule.name, ", ", at.records,
                       " records of ", at.record_bytes, " bytes at offset ",
                       at.offset_bytes, ", is not in its ", header_.block_bytes,
                       " bytes, or unaligned"));
    }
  }
  for (const ControlSection* section :
       {&header_.slots, &header_.images, &header_.pages}) {
    if (section->records != slots) {
      return CorruptBlock(
          name(), absl::StrCat("it has ", section->records, " records for its ",
                               slots, " slots"));
    }
  }
  constexpr uint64_t kMostRecordBytes = 65536;
  if (header_.slots.record_bytes > kMostRecordBytes) {
    return CorruptBlock(
        name(), absl::StrCat("a slot's record has ", header_.slots.record_bytes,
                             " bytes"));
  }
  bool fit = planes.groups == groups && planes.group_bytes % 8 == 0 &&
             planes.group_bytes >= 8 && planes.group_bytes <= kPageBytes &&
             planes.group_offset_bytes % 8 == 0 &&
             Fits(planes.group_offset_bytes, planes.group_bytes, planes.groups,
                  header_.pages.record_bytes);
  for (uint32_t plane : {planes.present, planes.untracked, planes.dirty,
                         planes.retained, planes.recent, planes.previous}) {
    fit = fit && plane % 8 == 0 && Fits(plane, 8, 1, planes.group_bytes);
  }
  if (!fit) {
    return CorruptBlock(name(),
                        "its page states are not of its memories' pages");
  }
  return absl::OkStatus();
}

absl::Status BlockReader::ReadNames(const ControlSection& section,
                                    std::vector<std::string>& names) {
  for (uint64_t i = 0; i < section.records; ++i) {
    absl::StatusOr<ControlName> record = ReadRecord<ControlName>(
        *bytes_, section.offset_bytes + i * section.record_bytes);
    if (!record.ok()) return record.status();
    names.push_back(Printable(View(record->name)));
  }
  return absl::OkStatus();
}

absl::Status BlockReader::ReadFields() {
  const ControlSection& section = header_.fields;
  std::map<std::string, Field> fields;
  for (uint64_t i = 0; i < section.records; ++i) {
    absl::StatusOr<ControlField> record = ReadRecord<ControlField>(
        *bytes_, section.offset_bytes + i * section.record_bytes);
    if (!record.ok()) return record.status();
    const bool sized =
        record->bytes == 1 || record->bytes == 4 || record->bytes == 8;
    // Fields of another kind are of a later version.
    if (!sized) continue;
    if (record->offset_bytes % record->bytes != 0 ||
        !Fits(record->offset_bytes, record->bytes, 1,
              header_.slots.record_bytes)) {
      return CorruptBlock(
          name(), absl::StrCat("field \"", Printable(View(record->name)),
                               "\" is not in a slot's record"));
    }
    fields[std::string(View(record->name))] = {record->offset_bytes,
                                               record->bytes};
  }
  const auto take = [&](const char* field_name) {
    const auto found = fields.find(field_name);
    return found == fields.end() ? Field() : found->second;
  };
  state_ = take("state");
  tracking_ = take("tracking");
  base_ = take("base");
  size_bytes_ = take("size_bytes");
  initial_bytes_ = take("initial_bytes");
  kernel_pages_ = take("kernel_pages");
  handovers_ = take("handovers");
  for (const Field* needed : {&state_, &size_bytes_, &handovers_}) {
    if (needed->bytes == 0) {
      return CorruptBlock(name(),
                          "it names no field \"state\", \"size_bytes\" or "
                          "\"handovers\"");
    }
  }
  for (const NamedCounter& counter : kSlotCounters) {
    const Field field = take(counter.name);
    if (field.bytes != 0) counters_.push_back({field, counter.set});
  }
  return absl::OkStatus();
}

absl::Status BlockReader::ReadDescription() {
  const ControlSection& section = header_.description;
  if (section.records == 0 || section.record_bytes == 0) {
    return absl::OkStatus();
  }
  const uint64_t bytes = section.record_bytes;
  if (section.offset_bytes % 8 != 0 || bytes > kMaxDescriptionBytes ||
      !Fits(section.offset_bytes, Words(bytes) * 8, 1, header_.block_bytes)) {
    return CorruptBlock(name(), "its description is not in it");
  }
  std::vector<uint64_t> words(Words(bytes));
  if (absl::Status status = bytes_->Read(section.offset_bytes, words);
      !status.ok()) {
    return status;
  }
  description_ = Printable(
      std::string_view(reinterpret_cast<const char*>(words.data()), bytes),
      /*lines=*/true);
  return absl::OkStatus();
}

uint64_t BlockReader::ValueOf(std::span<const uint64_t> record,
                              Field field) const {
  if (field.bytes == 0) return 0;
  const uint64_t word = record[field.offset / 8] >> (field.offset % 8 * 8);
  return field.bytes == 8 ? word
                          : word & ((uint64_t{1} << (field.bytes * 8)) - 1);
}

absl::StatusOr<Slot> BlockReader::ReadSlot(uint32_t number) {
  const uint64_t record_at =
      header_.slots.offset_bytes + number * header_.slots.record_bytes;
  const uint64_t image_at =
      header_.images.offset_bytes + number * header_.images.record_bytes;
  // What tells whether the rest was read in one piece: a release changes the
  // state and counts a cycle, a bind changes the sequence.
  struct Version {
    uint64_t state = 0;
    uint64_t handovers = 0;
    uint64_t sequence = 0;
    bool operator==(const Version&) const = default;
  };
  const auto version = [&]() -> absl::StatusOr<Version> {
    uint64_t state = 0;
    uint64_t handovers = 0;
    Version now;
    absl::Status status = bytes_->Read(image_at, std::span(&now.sequence, 1));
    status.Update(bytes_->Read(record_at + handovers_.offset / 8 * 8,
                               std::span(&handovers, 1)));
    status.Update(
        bytes_->Read(record_at + state_.offset / 8 * 8, std::span(&state, 1)));
    if (!status.ok()) return status;
    now.state =
        ValueOf(std::span(&state, 1), {state_.offset % 8, state_.bytes});
    now.handovers = ValueOf(std::span(&handovers, 1),
                            {handovers_.offset % 8, handovers_.bytes});
    return now;
  };

  std::vector<uint64_t> record(header_.slots.record_bytes / 8);
  uint64_t image_words[sizeof(ControlImage) / 8];
  bool torn = true;
  for (int attempt = 0; torn && attempt < kAttempts; ++attempt) {
    if (attempt > kAttempts / 2) sched_yield();
    const absl::StatusOr<Version> before = version();
    if (!before.ok()) return before.status();
    absl::Status status = bytes_->Read(record_at, record);
    status.Update(bytes_->Read(image_at, image_words));
    if (!status.ok()) return status;
    const absl::StatusOr<Version> after = version();
    if (!after.ok()) return after.status();
    torn = *before != *after || before->sequence % 2 != 0;
  }

  Slot slot;
  slot.set_slot(number);
  const uint32_t per_instance = header_.memories_per_instance;
  slot.set_instance(number / per_instance);
  slot.set_memory(number % per_instance);
  slot.set_base(header_.base + layout_.memory_offset_bytes(SlotIndex(number)));
  slot.set_torn(torn);
  const uint64_t state = ValueOf(record, state_);
  const std::string called =
      state < states_.size() ? states_[state] : absl::StrCat("state ", state);
  slot.set_state(StateOf(called));
  slot.set_state_name(
      slot.state() == Slot::STATE_UNSPECIFIED
          ? called
          : absl::AsciiStrToLower(Slot::State_Name(slot.state())));
  if (tracking_.bytes != 0) {
    const uint64_t tracking = ValueOf(record, tracking_);
    slot.set_tracking(tracking < trackings_.size()
                          ? trackings_[tracking]
                          : absl::StrCat("tracking ", tracking));
  }
  slot.set_size_bytes(
      std::min(ValueOf(record, size_bytes_), header_.max_memory_bytes));
  slot.set_initial_bytes(
      std::min(ValueOf(record, initial_bytes_), header_.max_memory_bytes));
  slot.set_kernel_pages(std::min(ValueOf(record, kernel_pages_),
                                 header_.max_memory_bytes / kPageBytes));
  for (const CounterField& counter : counters_) {
    (slot.mutable_counters()->*counter.set)(ValueOf(record, counter.field));
  }
  if (!has_page_states()) slot.mutable_counters()->set_faults_unknown(true);
  ControlImage image;
  std::memcpy(&image, image_words, sizeof(image));
  if (image.id != 0) {
    slot.set_image_id(image.id);
    slot.set_image_name(Printable(View(image.name)));
    Image& facts = *slot.mutable_image();
    facts.set_id(image.id);
    facts.set_name(slot.image_name());
    facts.set_size_bytes(std::min(image.size_bytes, header_.max_memory_bytes));
    facts.set_stored_pages(image.stored_pages);
    if (image.digest_known == 1) {
      facts.set_digest(absl::BytesToHexString(absl::string_view(
          reinterpret_cast<const char*>(image.digest), sizeof(image.digest))));
    }
  }
  return slot;
}

PoolSnapshot BlockReader::Facts() const {
  PoolSnapshot pool;
  pool.set_name(name());
  pool.set_pool_id(header_.pool_id);
  pool.set_format_version(header_.version);
  pool.set_base(header_.base);
  PoolLayoutNumbers& layout = *pool.mutable_layout();
  layout.set_instances(header_.instances);
  layout.set_memories_per_instance(header_.memories_per_instance);
  layout.set_slots(layout_.slots());
  layout.set_max_memory_bytes(header_.max_memory_bytes);
  layout.set_guard_before_bytes(header_.guard_before_bytes);
  layout.set_guard_after_bytes(header_.guard_after_bytes);
  layout.set_granule_bytes(header_.fault_around_bytes);
  layout.set_page_bytes(header_.page_bytes);
  layout.set_slot_stride_bytes(header_.slot_stride_bytes);
  layout.set_reservation_bytes(header_.reservation_bytes);
  PoolOptions& options = *pool.mutable_options();
  options.set_supply(Printable(View(header_.supply)));
  options.set_backing(Printable(View(header_.backing)));
  options.set_resolve(Printable(View(header_.resolve)));
  options.set_handler_threads(header_.handler_threads);
  options.set_strategy(Printable(View(header_.strategy)));
  options.set_hot_cycles(header_.retained_cycles);
  if (header_.retained_pages_limit != kControlNone) {
    options.set_hot_pages_limit(header_.retained_pages_limit);
  }
  if (header_.resident_budget_bytes != kControlNone) {
    options.set_resident_budget_bytes(header_.resident_budget_bytes);
  }
  pool.set_description(description_);
  return pool;
}

absl::StatusOr<PoolSnapshot> BlockReader::ReadPool(
    std::vector<std::string>& warnings) {
  PoolSnapshot pool = Facts();
  std::map<uint64_t, Image> images;
  pool.mutable_slots()->Reserve(static_cast<int>(layout_.slots()));
  for (uint32_t i = 0; i < layout_.slots(); ++i) {
    absl::StatusOr<Slot> slot = ReadSlot(i);
    if (!slot.ok()) return slot.status();
    if (slot->has_image()) {
      Image& image = images[slot->image_id()];
      const uint32_t slots = image.slots();
      const uint32_t held = image.held();
      // Whoever was bound after the digest was known has it.
      if (image.id() == 0 || image.digest().empty()) image = slot->image();
      image.set_slots(slots + 1);
      image.set_held(held + (slot->state() == Slot::HELD ? 1 : 0));
      slot->clear_image();
    }
    *pool.add_slots() = *std::move(slot);
  }
  if (absl::Status status =
          has_page_states() ? CountPages(pool) : absl::OkStatus();
      !status.ok()) {
    if (absl::IsDataLoss(status)) return status;
    warnings.push_back(
        absl::StrCat("pool \"", pool.name(),
                     "\": no page counts: ", absl::StrCat(status.message())));
    for (Slot& slot : *pool.mutable_slots()) slot.clear_pages();
  }
  for (const Slot& slot : pool.slots()) {
    AddToTotals(slot, *pool.mutable_totals());
  }
  for (auto& [id, image] : images) *pool.add_images() = std::move(image);
  return pool;
}

absl::Status BlockReader::CountPages(PoolSnapshot& pool) {
  for (Slot& slot : *pool.mutable_slots()) slot.mutable_pages();
  return PageGroups(*bytes_, header_)
      .ForEach([&](uint32_t slot, uint64_t, const PageGroup& group) {
        PageCounts& pages =
            *pool.mutable_slots(static_cast<int>(slot))->mutable_pages();
        const auto add = [](uint64_t before, uint64_t bits) {
          return before + static_cast<uint64_t>(std::popcount(bits));
        };
        const uint64_t there = group.present & ~group.dirty;
        pages.set_clean(add(pages.clean(), there & ~group.untracked));
        pages.set_untracked(add(pages.untracked(), there & group.untracked));
        pages.set_dirty(add(pages.dirty(), group.dirty & ~group.retained));
        pages.set_hot(add(pages.hot(), group.dirty & group.retained));
        pages.set_changed_lately(
            add(pages.changed_lately(), group.dirty & group.lately));
      });
}

absl::StatusOr<PageMap> BlockReader::ReadPages(uint32_t number) {
  if (number >= layout_.slots()) {
    return absl::NotFoundError(
        absl::StrCat("pool \"", name(), "\" has no slot ", number,
                     ": its slots are 0 to ", layout_.slots() - 1));
  }
  PageMap map;
  *map.mutable_pool() = Facts();
  absl::StatusOr<Slot> slot = ReadSlot(number);
  if (!slot.ok()) return slot.status();
  *map.mutable_slot() = *std::move(slot);

  std::map<uint64_t, PageGroup> groups;
  const absl::Status read = PageGroups(*bytes_, header_)
                                .ForEachOf(number, [&](uint32_t, uint64_t index,
                                                       const PageGroup& group) {
                                  groups.emplace(index, group);
                                });
  if (!read.ok()) {
    if (absl::IsDataLoss(read)) return read;
    map.add_warnings(
        absl::StrCat("no page states: ", absl::StrCat(read.message())));
    groups.clear();
  }
  SetRuns(groups, read.ok() && has_page_states(),
          header_.max_memory_bytes / kPageBytes, map);
  return map;
}

absl::StatusOr<Location> BlockReader::Locate(uint64_t address) {
  Location where = LocateInLayout(layout_, header_.base, address);
  where.set_pool(name());
  where.set_pool_id(header_.pool_id);
  absl::StatusOr<Slot> slot = ReadSlot(where.slot());
  if (!slot.ok()) return slot.status();
  where.set_has_slot(true);
  where.set_size_bytes(slot->size_bytes());
  where.set_slot_state(slot->state());
  where.set_image_id(slot->image_id());
  where.set_image_name(slot->image_name());
  if (where.place() != Location::MEMORY) return where;
  const auto offset = static_cast<uint64_t>(where.offset_bytes());
  where.set_in_bounds(offset < slot->size_bytes());
  where.set_page_in_bounds(where.page() * kPageBytes < slot->size_bytes());
  const uint64_t image_pages =
      PagesRoundedUp(slot->image().size_bytes()).value();
  if (!where.page_in_bounds()) {
    where.set_page_source(PAGE_OUTSIDE);
  } else if (where.page() < image_pages) {
    where.set_page_source(PAGE_OF_IMAGE);
  } else {
    where.set_page_source(PAGE_OF_ZEROES);
  }
  if (where.page() < image_pages) where.set_image_page(where.page());
  if (!has_page_states()) return where;
  const absl::StatusOr<PageGroup> group =
      PageGroups(*bytes_, header_).Read(where.slot(), where.page() / 64);
  if (group.ok()) {
    where.set_page_state(group->StateOf(where.page() % 64));
    if (where.page_state() == PAGE_MISSING &&
        where.page() < slot->kernel_pages()) {
      where.clear_page_state();
    }
  } else if (absl::IsDataLoss(group.status())) {
    return group.status();
  }
  return where;
}

}  // namespace firsttouch::pooldump
