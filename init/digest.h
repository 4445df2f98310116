// SHA-256, and the digest by which images are told apart by what they hold.
//
// The digest of an image's contents depends on its size and its bytes only: not
// on its name, its working set, or how a file stores it. Two images with the
// same digest are the same memory.
//
// Threads: a Sha256 is for one thread at a time; everything else is for any.
// Not async-signal-safe.

#ifndef FIRSTTOUCH_INIT_DIGEST_H_
#define FIRSTTOUCH_INIT_DIGEST_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firsttouch/init/image.h"
#include "firsttouch/init/page_map.h"
#include "firsttouch/uffd/units.h"

namespace firsttouch {

// 32 bytes, SHA-256.
struct Digest {
  static constexpr size_t kBytes = 32;

  std::array<uint8_t, kBytes> bytes{};

  // 64 hexadecimal digits, lower case.
  std::string ToHex() const;
  // Of 64 digits in either case; nullopt for anything else.
  static std::optional<Digest> FromHex(std::string_view hex);
  // Of kBytes raw bytes; nullopt for any other number.
  static std::optional<Digest> FromBytes(std::string_view raw);

  friend auto operator<=>(const Digest&, const Digest&) = default;

  // For absl's hash tables.
  template <typename H>
  friend H AbslHashValue(H h, const Digest& digest) {
    // Its bytes are as good as random already.
    uint64_t word;
    std::memcpy(&word, digest.bytes.data(), sizeof word);
    return H::combine(std::move(h), word);
  }
};

// A digest of bytes that come piece by piece. Any bytes, any number of pieces.
class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view bytes);
  // Eight bytes, least significant first.
  void UpdateWord(uint64_t word);
  // Of everything since construction or the last Finish; begins anew.
  Digest Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Digest Sha256Of(std::span<const std::byte> bytes);
Digest Sha256Of(std::string_view bytes);

// A stretch of stored pages that has a digest of its own: a maximal run of
// stored pages that does not cross a multiple of kExtentPages. So the extents
// follow from which pages are stored, and each can be checked alone.
struct ImageExtent {
  PageRun pages;
  Digest digest;  // Of the bytes of its pages.

  friend bool operator==(const ImageExtent&, const ImageExtent&) = default;
};

// Pages of the blocks that extents do not cross: 1 MiB.
inline constexpr uint64_t kExtentPages = 256;

// The runs of a set of pages, cut at multiples of kExtentPages, ascending.
std::vector<PageRun> ExtentRuns(const PageMap& stored);

// The extents of an image with their digests: reads every stored page.
std::vector<ImageExtent> ImageExtents(const Image& image);

// The digest of the contents: SHA-256 over the text "firsttouch-image-1\n",
// size_bytes, and for each extent its first page, its number of pages (eight
// bytes each, least significant first) and its digest.
Digest ContentDigest(uint64_t size_bytes, std::span<const ImageExtent> extents);

// The same of an image. Reads every stored page, unless the image knows its
// digest (it came from a file or a store).
Digest ContentDigest(const Image& image);

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_DIGEST_H_
