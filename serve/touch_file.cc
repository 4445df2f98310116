#include "firsttouch/serve/touch_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "firsttouch/init/atomic_file.h"
#include "firsttouch/serve/touch_record.pb.h"
#include "firsttouch/uffd/unique_fd.h"

namespace firsttouch {
namespace {

constexpr std::string_view kMagic("FTTOUCH\n", 8);
constexpr size_t kHeadBytes = kMagic.size() + Digest::kBytes;
constexpr uint32_t kVersion = 1;
// Some ten million touches.
constexpr uint64_t kMostBytes = uint64_t{64} << 20;

}  // namespace

absl::Status WriteTouchFile(const std::string& path, const Digest& image,
                            std::span<const Touch> touches) {
  TouchRecordProto record;
  record.set_format_version(kVersion);
  record.set_image_sha256(image.bytes.data(), Digest::kBytes);
  std::string written((touches.size() + 7) / 8, '\0');
  int64_t page = 0;
  int64_t at_us = 0;
  for (size_t i = 0; i < touches.size(); ++i) {
    const int64_t next = static_cast<int64_t>(touches[i].page.value());
    record.add_page_step(next - page);
    page = next;
    const int64_t us = std::max<int64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(touches[i].after)
            .count(),
        at_us);
    record.add_after_us(static_cast<uint64_t>(us - at_us));
    at_us = us;
    if (touches[i].write) {
      written[i / 8] = static_cast<char>(written[i / 8] | 1 << (i % 8));
    }
  }
  record.set_written(std::move(written));
  const std::string body = record.SerializeAsString();
  const Digest digest = Sha256Of(body);
  std::string bytes(kMagic);
  bytes.append(reinterpret_cast<const char*>(digest.bytes.data()),
               Digest::kBytes);
  bytes += body;
  if (bytes.size() > kMostBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": ", touches.size(), " touches take ", bytes.size(),
                     " bytes; such a file may have ", kMostBytes));
  }
  absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
  if (!file.ok()) return file.status();
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t count =
        write(file->fd(), bytes.data() + at, bytes.size() - at);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat(path, ": write"));
    }
    at += static_cast<size_t>(count);
  }
  return file->Commit(/*replace=*/true);
}

absl::StatusOr<std::vector<Touch>> ReadTouchFile(const std::string& path,
                                                 const Digest& image,
                                                 PageCount pages) {
  const auto damaged = [&](const std::string& why) {
    return absl::DataLossError(
        absl::StrCat(path, ": this is no file of touches: ", why));
  };
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status;
  if (!fd || fstat(fd.get(), &status) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(path, ": open"));
  }
  const uint64_t size = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || size < kHeadBytes || size > kMostBytes) {
    return damaged(absl::StrCat("it has ", size, " bytes; it must have ",
                                kHeadBytes, " to ", kMostBytes));
  }
  std::string bytes(size, '\0');
  for (size_t at = 0; at < size;) {
    const ssize_t count = read(fd.get(), bytes.data() + at, size - at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return damaged("it cannot be read to its end");
    at += static_cast<size_t>(count);
  }
  const std::string_view whole(bytes);
  if (whole.substr(0, kMagic.size()) != kMagic) {
    return damaged("it begins with something else");
  }
  const std::string_view body = whole.substr(kHeadBytes);
  if (Digest::FromBytes(whole.substr(kMagic.size(), Digest::kBytes)) !=
      Sha256Of(body)) {
    return damaged("it does not match its digest");
  }
  TouchRecordProto record;
  if (!record.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return damaged("its body has no form");
  }
  if (record.format_version() != kVersion) {
    return absl::UnimplementedError(
        absl::StrCat(path, ": its format is version ", record.format_version(),
                     "; this program knows version ", kVersion));
  }
  if (Digest::FromBytes(record.image_sha256()) != image) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": these are touches of another image than that with the digest ",
        image.ToHex()));
  }
  const size_t count = static_cast<size_t>(record.page_step_size());
  if (static_cast<size_t>(record.after_us_size()) != count ||
      record.written().size() != (count + 7) / 8) {
    return damaged(absl::StrCat("it has ", count, " pages, ",
                                record.after_us_size(), " times and ",
                                record.written().size(), " bytes of writes"));
  }
  std::vector<Touch> touches;
  touches.reserve(count);
  uint64_t page = 0;
  uint64_t at_us = 0;
  for (size_t i = 0; i < count; ++i) {
    // Unsigned, so that no sum is undefined.
    page += static_cast<uint64_t>(record.page_step(static_cast<int>(i)));
    at_us += record.after_us(static_cast<int>(i));
    if (page >= pages.value()) {
      return damaged(absl::StrCat("touch ", i, " is of page ", page,
                                  ", and the image has ", pages.value()));
    }
    touches.push_back({.page = PageIndex(page),
                       .write = (record.written()[i / 8] >> (i % 8) & 1) != 0,
                       .after = std::chrono::microseconds(at_us)});
  }
  return touches;
}

}  // namespace firsttouch
