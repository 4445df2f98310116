#include "firsttouch/serve/guest_journal.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/serve/guest_record.pb.h"
#include "firsttouch/uffd/abi.h"
#include "firsttouch/uffd/unique_fd.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr uint32_t kFormatVersion = 1;
constexpr std::array<char, 8> kMagic = {'F', 'T', 'G', 'U', 'E', 'S', 'T', 0};
// The least number of events that a log has room for.
constexpr uint64_t kLeastLog = 1024;
// A record of a million pieces has less.
constexpr uint64_t kMostRecordBytes = uint64_t{64} << 20;

absl::Status Failed(const std::string& path, const char* what) {
  return absl::ErrnoToStatus(errno, absl::StrCat(path, ": ", what));
}

std::string Serialized(const GuestRecord& record, const AddressMap& map,
                       bool complete) {
  GuestRecordProto proto;
  proto.set_format_version(kFormatVersion);
  proto.set_pid(record.pid);
  proto.set_start_time_ticks(record.start_time_ticks);
  proto.set_uffd_number(record.uffd_number);
  proto.set_uffd_inode(record.uffd_inode);
  proto.set_name(record.name);
  proto.set_image(record.image);
  proto.set_socket(record.socket);
  if (record.image_digest.has_value()) {
    proto.set_image_sha256(record.image_digest->bytes.data(), Digest::kBytes);
  }
  proto.set_complete(complete);
  for (std::optional<AddressMap::Piece> piece = map.Next(0); piece.has_value();
       piece = map.Next(piece->end)) {
    PieceProto* const added = proto.add_pieces();
    added->set_start(piece->start);
    added->set_end(piece->end);
    added->set_image_offset_bytes(piece->image_offset_bytes);
    added->set_page_bytes(piece->page_bytes);
    added->set_track_writes(piece->track_writes);
    added->set_freed(piece->freed);
  }
  return proto.SerializeAsString();
}

// What an event of the log makes of the map.
void Apply(const Event& event, AddressMap& map) {
  switch (event.kind) {
    case Event::Kind::kRemove:
      map.Free(event.start, event.end);
      return;
    case Event::Kind::kUnmap:
      map.Unmap(event.start, event.end);
      return;
    case Event::Kind::kRemap:
      map.Move(event.from, event.to, event.bytes);
      return;
    case Event::Kind::kPagefault:
    case Event::Kind::kFork:
    case Event::Kind::kUnknown:
      return;
  }
}

// Whether a message goes into the log. Zeroes are no message.
bool IsLogged(const uffd_msg& message) {
  return message.event != 0 && message.event != kUffdEventPagefault;
}

}  // namespace

struct GuestJournal::File {
  std::array<char, 8> magic;
  uint32_t version;
  uint32_t has_all;  // 0: see complete().
  uint64_t record_bytes;
  Digest record_digest;
  uint64_t log_capacity;
  // Messages in the log.
  std::atomic<uint64_t> logged;
  // What `logged` was before what has landed was read: so many of the landed
  // messages as it has grown by since are in the log already.
  std::atomic<uint64_t> logged_before;
  uffd_msg landing[EventReader::kBatch];
  // Then the record, and at the next page the log.
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(uffd_msg) == 32);

absl::StatusOr<std::unique_ptr<GuestJournal>> GuestJournal::Create(
    const std::string& path, const GuestRecord& record, const AddressMap& map) {
  std::unique_ptr<GuestJournal> journal(new GuestJournal(path, record));
  if (absl::Status written = journal->Write(map); !written.ok()) {
    return written;
  }
  return journal;
}

absl::Status GuestJournal::GoOn(const AddressMap& map) {
  absl::Status written = Write(map);
  if (written.ok() || !MapOld()) return written;
  GiveUp();
  return absl::OkStatus();
}

bool GuestJournal::MapOld() {
  const UniqueFd fd(open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  struct stat status;
  if (!fd || fstat(fd.get(), &status) != 0) return false;
  const uint64_t bytes = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || bytes < sizeof(File)) return false;
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (mapped == MAP_FAILED) return false;
  mlock(mapped, kPageBytes);
  Unmap();
  file_ = static_cast<File*>(mapped);
  file_bytes_ = bytes;
  log_capacity_ = 0;
  landed_ = 0;
  // The map has what had landed.
  std::memset(file_->landing, 0, sizeof file_->landing);
  file_->logged_before.store(file_->logged.load());
  return true;
}

absl::Status GuestJournal::Write(const AddressMap& map) {
  static_assert(sizeof(File) <= kPageBytes);
  const std::string record = Serialized(record_, map, complete_);
  if (record.size() > kMostRecordBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path_, ": the guest's memory is in ", map.pieces(),
                     " pieces, whose ", "record has ", record.size(),
                     " bytes; it may have ", kMostRecordBytes));
  }
  const uint64_t capacity = std::max<uint64_t>(kLeastLog, map.pieces());
  const uint64_t log_offset = RoundUpToPage(sizeof(File) + record.size());
  const uint64_t bytes =
      RoundUpToPage(log_offset + capacity * sizeof(uffd_msg));
  absl::StatusOr<AtomicFile> made =
      AtomicFile::Create(path_, AtomicFile::Existing::kReplace);
  if (!made.ok()) return made.status();
  // All of its room at once: a page that cannot be had later would be a SIGBUS.
  if (const int error =
          posix_fallocate(made->fd(), 0, static_cast<off_t>(bytes))) {
    return absl::ErrnoToStatus(
        error, absl::StrCat(path_, ": ", bytes, " bytes for a guest's events"));
  }
  if (fchmod(made->fd(), 0600) != 0) return Failed(path_, "fchmod");
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_POPULATE, made->fd(), 0);
  if (mapped == MAP_FAILED) return Failed(path_, "mmap");
  // Best effort: not to be swapped out costs less than to wait for it.
  mlock(mapped, kPageBytes);
  File* const file = static_cast<File*>(mapped);
  file->magic = kMagic;
  file->version = kFormatVersion;
  file->has_all = complete_ ? 1 : 0;
  file->record_bytes = record.size();
  file->record_digest = Sha256Of(record);
  file->log_capacity = capacity;
  std::memcpy(reinterpret_cast<char*>(file + 1), record.data(), record.size());
  if (absl::Status committed = made->Commit(/*replace=*/true);
      !committed.ok()) {
    munmap(mapped, bytes);
    return committed;
  }
  Unmap();
  file_ = file;
  file_bytes_ = bytes;
  log_capacity_ = capacity;
  landed_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<GuestJournal::Left> GuestJournal::Open(const std::string& path) {
  const auto damaged = [&](const std::string& why) {
    return absl::DataLossError(
        absl::StrCat(path, ": this is no record of a guest: ", why));
  };
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return Failed(path, "open");
  struct stat status;
  if (fstat(fd.get(), &status) != 0) return Failed(path, "fstat");
  const uint64_t bytes = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || bytes < sizeof(File) ||
      bytes > 4 * kMostRecordBytes) {
    return damaged(absl::StrCat("it has ", bytes, " bytes"));
  }
  // A copy: whatever becomes of the file.
  std::vector<char> copy(bytes);
  for (uint64_t at = 0; at < bytes;) {
    const ssize_t count =
        pread(fd.get(), copy.data() + at, bytes - at, static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return damaged("it cannot be read to its end");
    at += static_cast<uint64_t>(count);
  }
  const File& file = *reinterpret_cast<const File*>(copy.data());
  if (file.magic != kMagic) return damaged("it begins with something else");
  if (file.version != kFormatVersion) {
    return absl::UnimplementedError(
        absl::StrCat(path, ": its format is version ", file.version,
                     "; this program knows version ", kFormatVersion));
  }
  if (file.record_bytes > bytes - sizeof(File)) {
    return damaged(absl::StrCat("a record of ", file.record_bytes,
                                " bytes in a file of ", bytes));
  }
  const std::string record(copy.data() + sizeof(File), file.record_bytes);
  if (Sha256Of(record) != file.record_digest) {
    return damaged("its record does not match its digest");
  }
  const uint64_t log_offset = RoundUpToPage(sizeof(File) + record.size());
  const uint64_t logged = file.logged.load(std::memory_order_relaxed);
  const uint64_t before = file.logged_before.load(std::memory_order_relaxed);
  if (file.log_capacity > bytes / sizeof(uffd_msg) ||
      log_offset + file.log_capacity * sizeof(uffd_msg) > bytes ||
      logged > file.log_capacity || before > logged) {
    return damaged(absl::StrCat("a log of ", logged, " events, of ", before,
                                " before the last, of at most ",
                                file.log_capacity, " in ", bytes, " bytes"));
  }
  GuestRecordProto proto;
  if (!proto.ParseFromString(record)) return damaged("its record has no form");
  std::vector<AddressMap::Piece> pieces;
  for (const PieceProto& piece : proto.pieces()) {
    if (piece.end() < piece.start()) return damaged("a piece ends before it");
    pieces.push_back({.start = piece.start(),
                      .end = piece.end(),
                      .image_offset_bytes = piece.image_offset_bytes(),
                      .page_bytes = piece.page_bytes(),
                      .track_writes = piece.track_writes(),
                      .freed = piece.freed()});
  }
  absl::StatusOr<AddressMap> map = AddressMap::FromPieces(pieces);
  if (!map.ok()) return damaged(absl::StrCat(map.status().message()));
  Left left;
  left.map = *std::move(map);
  const uffd_msg* const log =
      reinterpret_cast<const uffd_msg*>(copy.data() + log_offset);
  for (uint64_t i = 0; i < logged; ++i) {
    Apply(EventFromMessage(log[i]), left.map);
  }
  uint64_t skip = logged - before;
  for (const uffd_msg& message : file.landing) {
    if (!IsLogged(message)) continue;
    if (message.event == kUffdEventFork) left.lost_fork = true;
    if (skip > 0) {
      --skip;
      continue;
    }
    Apply(EventFromMessage(message), left.map);
  }
  GuestRecord who;
  who.pid = proto.pid();
  who.start_time_ticks = proto.start_time_ticks();
  who.uffd_number = proto.uffd_number();
  who.uffd_inode = proto.uffd_inode();
  who.name = proto.name();
  who.image = proto.image();
  who.socket = proto.socket();
  who.image_digest = Digest::FromBytes(proto.image_sha256());
  left.journal.reset(new GuestJournal(path, std::move(who)));
  left.journal->complete_ = file.has_all != 0 && proto.complete();
  return left;
}

GuestJournal::~GuestJournal() { Unmap(); }

void GuestJournal::Unmap() {
  if (file_ != nullptr) munmap(file_, file_bytes_);
  file_ = nullptr;
}

uffd_msg* GuestJournal::log() const {
  char* const bytes = reinterpret_cast<char*>(file_);
  return reinterpret_cast<uffd_msg*>(
      bytes + RoundUpToPage(sizeof(File) + file_->record_bytes));
}

void GuestJournal::Answered() {
  if (landed_ == 0) return;
  // In this order: what has landed is in the log, and is not to count twice at
  // any moment.
  std::memset(file_->landing, 0, landed_ * sizeof(uffd_msg));
  landed_ = 0;
  file_->logged_before.store(file_->logged.load(std::memory_order_relaxed),
                             std::memory_order_release);
}

void GuestJournal::BeginRead(const AddressMap& map) {
  Answered();
  if (log_capacity_ - file_->logged.load(std::memory_order_relaxed) >=
          EventReader::kBatch ||
      !complete_) {
    return;
  }
  if (!Write(map).ok()) GiveUp();
}

void GuestJournal::GiveUp() {
  complete_ = false;
  file_->has_all = 0;
}

std::span<uffd_msg, EventReader::kBatch> GuestJournal::landing() {
  return std::span<uffd_msg, EventReader::kBatch>(file_->landing);
}

void GuestJournal::EndRead(size_t count) {
  landed_ = count;
  for (size_t i = 0; i < count; ++i) {
    if (!IsLogged(file_->landing[i])) continue;
    const uint64_t at = file_->logged.load(std::memory_order_relaxed);
    if (at >= log_capacity_) return;  // Not complete any more.
    log()[at] = file_->landing[i];
    file_->logged.store(at + 1, std::memory_order_release);
  }
}

void GuestJournal::Forget() { unlink(path_.c_str()); }

}  // namespace firsttouch
