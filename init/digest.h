// SHA-256, by OpenSSL's libcrypto.
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
#include <utility>

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

}  // namespace firsttouch

#endif  // FIRSTTOUCH_INIT_DIGEST_H_
