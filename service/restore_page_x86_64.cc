// On the steady path: see restore_page.h.

#if defined(__x86_64__) && !defined(FIRSTTOUCH_PORTABLE)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "firsttouch/service/restore_page.h"
#include "firsttouch/uffd/units.h"

// A block of instructions that EndOfGuardedRead() knows, with RAX as an operand
// that is read and written. The begin and the end of the block go into a
// section of their own, as distances from there, so that nothing has to be
// relocated. The compiler may duplicate a block.
#define FIRSTTOUCH_GUARDED(instructions)              \
  "661:\n" instructions                               \
  "662:\n"                                            \
  ".pushsection firsttouch_guarded,\"a\",@progbits\n" \
  ".balign 4\n"                                       \
  ".long 661b - .\n"                                  \
  ".long 662b - .\n"                                  \
  ".popsection\n"

// The bounds of that section, defined by the linker.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C"
    [[gnu::visibility("hidden")]] const int32_t __start_firsttouch_guarded[];
extern "C"
    [[gnu::visibility("hidden")]] const int32_t __stop_firsttouch_guarded[];
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

namespace firsttouch {
namespace {

constexpr size_t kLineBytes = 64;

// The offset of step `i` in a page that is walked in steps of `bytes`.
constexpr size_t StepAt(size_t i, size_t bytes, bool downwards) {
  return downwards ? kPageBytes - bytes - i * bytes : i * bytes;
}

template <bool kToZeroes>
bool RestoreSse2(std::byte* to, const std::byte* from, bool downwards,
                 bool* unreadable) {
  bool changed = false;
  [[maybe_unused]] uint64_t failed = 0;
  for (size_t i = 0; i < kPageBytes / kLineBytes; ++i) {
    const size_t at = StepAt(i, kLineBytes, downwards);
    auto* const line = reinterpret_cast<__m128i*>(to + at);
    __m128i wanted[4] = {};
    if constexpr (!kToZeroes) {
      const auto* const source = reinterpret_cast<const __m128i*>(from + at);
      for (int i = 0; i < 4; ++i) {
        asm(FIRSTTOUCH_GUARDED("movdqa %[source], %[wanted]\n")
            : [wanted] "=x"(wanted[i]), "+a"(failed)
            : [source] "m"(source[i]));
      }
    }
    const __m128i same =
        _mm_and_si128(_mm_and_si128(_mm_cmpeq_epi8(line[0], wanted[0]),
                                    _mm_cmpeq_epi8(line[1], wanted[1])),
                      _mm_and_si128(_mm_cmpeq_epi8(line[2], wanted[2]),
                                    _mm_cmpeq_epi8(line[3], wanted[3])));
    if (_mm_movemask_epi8(same) != 0xffff) {
      if (failed != 0) break;
      for (int i = 0; i < 4; ++i) _mm_store_si128(line + i, wanted[i]);
      changed = true;
    }
  }
  if (failed != 0) *unreadable = true;
  return changed;
}

// Looks at four lines at a time: the number of tests determines the cost.
template <bool kToZeroes>
[[gnu::target("avx2")]] bool RestoreAvx2(std::byte* to, const std::byte* from,
                                         bool downwards, bool* unreadable) {
  constexpr int kHalves = 8;
  constexpr size_t kStepBytes = kHalves * sizeof(__m256i);
  bool changed = false;
  [[maybe_unused]] uint64_t failed = 0;
  for (size_t step = 0; step < kPageBytes / kStepBytes; ++step) {
    const size_t at = StepAt(step, kStepBytes, downwards);
    auto* const halves = reinterpret_cast<__m256i*>(to + at);
    __m256i wanted[kHalves] = {};
    if constexpr (!kToZeroes) {
#pragma GCC unroll 8
      for (int i = 0; i < kHalves; ++i) {
        const auto* const source =
            reinterpret_cast<const __m256i*>(from + at) + i;
        asm(FIRSTTOUCH_GUARDED("vmovdqa %[source], %[wanted]\n")
            : [wanted] "=x"(wanted[i]), "+a"(failed)
            : [source] "m"(*source));
      }
    }
    __m256i differ = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = 0; i < kHalves; ++i) {
      differ = _mm256_or_si256(
          differ, _mm256_xor_si256(_mm256_load_si256(halves + i), wanted[i]));
    }
    if (_mm256_testz_si256(differ, differ)) [[likely]] {
      continue;
    }
    if (failed != 0) break;
    changed = true;
    // Writes all four lines: testing which of them differ takes longer than
    // writing those that do not.
#pragma GCC unroll 8
    for (int i = 0; i < kHalves; ++i) {
      _mm256_store_si256(halves + i, wanted[i]);
    }
  }
  if (failed != 0) *unreadable = true;
  return changed;
}

bool HasAvx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}

const bool kHasAvx2 = HasAvx2();

}  // namespace

bool RestorePage(std::byte* to, const std::byte* from, bool downwards,
                 bool* unreadable) {
  return kHasAvx2 ? RestoreAvx2<false>(to, from, downwards, unreadable)
                  : RestoreSse2<false>(to, from, downwards, unreadable);
}

bool RestoreZeroPage(std::byte* to, bool downwards) {
  return kHasAvx2 ? RestoreAvx2<true>(to, nullptr, downwards, nullptr)
                  : RestoreSse2<true>(to, nullptr, downwards, nullptr);
}

bool CopyGuarded(std::byte* to, const std::byte* from, size_t bytes) {
  uint64_t failed = 0;
  asm volatile(FIRSTTOUCH_GUARDED("rep movsb\n")
               : "+a"(failed), "+D"(to), "+S"(from), "+c"(bytes)
               :
               : "memory");
  return failed == 0;
}

bool DiffersFrom(const std::byte* page, const std::byte* initial) {
  std::byte copy[kPageBytes];
  return !CopyGuarded(copy, initial, kPageBytes) ||
         std::memcmp(page, copy, kPageBytes) != 0;
}

uintptr_t EndOfGuardedRead(uintptr_t instruction) noexcept {
  const auto address_at = [](const int32_t* distance) {
    return reinterpret_cast<uintptr_t>(distance) +
           static_cast<uintptr_t>(static_cast<intptr_t>(*distance));
  };
  for (const int32_t* block = __start_firsttouch_guarded;
       block != __stop_firsttouch_guarded; block += 2) {
    const uintptr_t end = address_at(block + 1);
    if (instruction >= address_at(block) && instruction < end) return end;
  }
  return 0;
}

}  // namespace firsttouch

#endif  // __x86_64__
