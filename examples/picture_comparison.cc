#include "firsttouch/examples/picture_comparison.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "firsttouch/examples/picture_forks.h"
#include "firsttouch/uffd/mutex.h"

namespace firsttouch::examples {
namespace {

// One byte more than is decoded, so that more is seen to be too much.
absl::StatusOr<std::vector<std::byte>> ReadPicture(
    const std::filesystem::path& path) {
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> bytes(kMaxFileBytes + 1);
  if (stream) {
    stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  if (!stream.eof() && stream.fail()) {
    return absl::ErrnoToStatus(errno, absl::StrCat("reading ", path.string()));
  }
  const auto* const first = reinterpret_cast<const std::byte*>(bytes.data());
  return std::vector<std::byte>(first, first + stream.gcount());
}

// What the threads of one pass share.
struct Pass {
  const std::vector<Sample>& samples;
  const Way& way;
  std::atomic<size_t> next{0};
  Mutex mutex;
  WayResult& result ABSL_GUARDED_BY(mutex);
  absl::Status failure ABSL_GUARDED_BY(mutex);
};

// Whether the picture is the expected one; an error otherwise.
absl::StatusOr<bool> DecodesRight(const Sample& sample, const Way& way) {
  bool right = false;
  const absl::Status status =
      way.decode(sample.file, [&](const PictureView& picture) {
        right = sample.expected.ok() && picture.width == sample.width &&
                picture.height == sample.height &&
                std::equal(picture.rgba.begin(), picture.rgba.end(),
                           sample.rgba.begin(), sample.rgba.end());
      });
  if (!status.ok()) return status;
  return right;
}

void RunPass(Pass& pass) {
  for (;;) {
    const size_t i = pass.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= pass.samples.size()) return;
    const Sample& sample = pass.samples[i];
    if (pass.way.in_this_process && absl::IsAborted(sample.expected)) {
      const MutexLock lock(&pass.mutex);
      ++pass.result.skipped;
      continue;
    }
    const absl::StatusOr<bool> right = DecodesRight(sample, pass.way);
    const MutexLock lock(&pass.mutex);
    if (right.ok()) {
      ++(*right ? pass.result.right : pass.result.wrong);
      if (!*right) pass.result.errors[i] = "other pixels than expected";
    } else if (IsErrorOfFile(right.status())) {
      ++(sample.expected.ok() ? pass.result.wrong : pass.result.refused);
      pass.result.errors[i] = absl::StrCat(right.status().message());
    } else {
      pass.failure.Update(right.status());
      return;
    }
  }
}

// The seconds that it takes.
absl::StatusOr<double> Time(const std::vector<Sample>& samples, const Way& way,
                            uint32_t threads, WayResult& result) {
  Pass pass{.samples = samples, .way = way, .result = result};
  const auto before = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (uint32_t i = 1; i < threads; ++i) {
    others.emplace_back([&pass] { RunPass(pass); });
  }
  RunPass(pass);
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> took =
      std::chrono::steady_clock::now() - before;
  const MutexLock lock(&pass.mutex);
  if (!pass.failure.ok()) return pass.failure;
  return took.count();
}

double Median(std::vector<double> values) {
  const auto middle =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

absl::StatusOr<std::vector<Sample>> ReadSamples(const std::string& folder) {
  std::error_code error;
  std::vector<std::filesystem::path> paths;
  for (std::filesystem::directory_iterator entry(folder, error), end;
       !error && entry != end; entry.increment(error)) {
    if (entry->is_regular_file(error)) paths.push_back(entry->path());
    error.clear();
  }
  if (error) {
    return absl::ErrnoToStatus(error.value(),
                               absl::StrCat("reading the folder ", folder));
  }
  if (paths.empty()) {
    return absl::NotFoundError(
        absl::StrCat("the folder ", folder, " has no files"));
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Sample> samples;
  for (const std::filesystem::path& path : paths) {
    absl::StatusOr<std::vector<std::byte>> file = ReadPicture(path);
    if (!file.ok()) return file.status();
    Sample sample = {.name = path.filename().string(),
                     .file = *std::move(file)};
    sample.expected =
        DecodeInFork(sample.file, [&](const PictureView& picture) {
          sample.width = picture.width;
          sample.height = picture.height;
          sample.rgba.assign(picture.rgba.begin(), picture.rgba.end());
        });
    if (!sample.expected.ok() && !IsErrorOfFile(sample.expected)) {
      return sample.expected;
    }
    samples.push_back(std::move(sample));
  }
  return samples;
}

absl::StatusOr<std::vector<WayResult>> Compare(
    const std::vector<Sample>& samples, const std::vector<Way>& ways,
    const ComparisonOptions& options) {
  std::vector<WayResult> results(ways.size());
  for (WayResult& result : results) result.errors.resize(samples.size());
  std::vector<std::vector<double>> rates(ways.size());
  for (uint32_t round = 0; round < options.rounds; ++round) {
    for (size_t turn = 0; turn < ways.size(); ++turn) {
      const size_t i = (round + turn) % ways.size();
      const uint64_t skipped_before = results[i].skipped;
      const absl::StatusOr<double> seconds =
          Time(samples, ways[i], options.threads, results[i]);
      if (!seconds.ok()) {
        return absl::Status(
            seconds.status().code(),
            absl::StrCat(ways[i].name, ": ", seconds.status().message()));
      }
      const uint64_t decoded =
          samples.size() - (results[i].skipped - skipped_before);
      rates[i].push_back(static_cast<double>(decoded) / *seconds);
    }
  }
  for (size_t i = 0; i < ways.size(); ++i) {
    results[i].pictures_per_second = Median(std::move(rates[i]));
  }
  return results;
}

}  // namespace firsttouch::examples
