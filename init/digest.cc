#include "firsttouch/init/digest.h"

#include <openssl/evp.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace firsttouch {
namespace {

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

// libcrypto fails at a digest only when there is no memory, or when SHA-256
// was taken out of it.
void Must(int done, const char* call) {
  if (done == 1) return;
  std::fprintf(stderr, "firsttouch: %s failed: libcrypto has no SHA-256\n",
               call);
  std::abort();
}

}  // namespace

std::string Digest::ToHex() const {
  return absl::BytesToHexString(absl::string_view(
      reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

std::optional<Digest> Digest::FromHex(std::string_view hex) {
  if (hex.size() != 2 * kBytes) return std::nullopt;
  for (const char digit : hex) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(digit))) {
      return std::nullopt;
    }
  }
  return FromBytes(absl::HexStringToBytes(View(hex)));
}

std::optional<Digest> Digest::FromBytes(std::string_view raw) {
  if (raw.size() != kBytes) return std::nullopt;
  Digest digest;
  std::memcpy(digest.bytes.data(), raw.data(), kBytes);
  return digest;
}

struct Sha256::State {
  State() : context(EVP_MD_CTX_new()) {
    Must(context != nullptr, "EVP_MD_CTX_new");
    Begin();
  }
  ~State() { EVP_MD_CTX_free(context); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void Begin() const {
    Must(EVP_DigestInit_ex(context, EVP_sha256(), nullptr),
         "EVP_DigestInit_ex");
  }

  EVP_MD_CTX* context;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Update(std::span<const std::byte> bytes) {
  Must(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()),
       "EVP_DigestUpdate");
}

void Sha256::Update(std::string_view bytes) {
  Update(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

void Sha256::UpdateWord(uint64_t word) {
  std::byte bytes[sizeof word];
  for (size_t i = 0; i < sizeof word; ++i) {
    bytes[i] = static_cast<std::byte>(word >> (8 * i));
  }
  Update(bytes);
}

Digest Sha256::Finish() {
  Digest digest;
  Must(EVP_DigestFinal_ex(state_->context, digest.bytes.data(), nullptr),
       "EVP_DigestFinal_ex");
  state_->Begin();
  return digest;
}

Digest Sha256Of(std::span<const std::byte> bytes) {
  Sha256 sha;
  sha.Update(bytes);
  return sha.Finish();
}

Digest Sha256Of(std::string_view bytes) {
  return Sha256Of(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

}  // namespace firsttouch
