#include "firsttouch/service/restore_page.h"

#include <immintrin.h>

#include <cstddef>

#include "firsttouch/uffd/units.h"

namespace firsttouch {
namespace {

constexpr size_t kLineBytes = 64;

template <bool kToZeroes>
bool RestoreSse2(std::byte* to, const std::byte* from) {
  bool changed = false;
  for (size_t at = 0; at < kPageBytes; at += kLineBytes) {
    auto* const line = reinterpret_cast<__m128i*>(to + at);
    __m128i wanted[4] = {};
    if constexpr (!kToZeroes) {
      const auto* const source = reinterpret_cast<const __m128i*>(from + at);
      for (int i = 0; i < 4; ++i) wanted[i] = _mm_load_si128(source + i);
    }
    const __m128i same =
        _mm_and_si128(_mm_and_si128(_mm_cmpeq_epi8(line[0], wanted[0]),
                                    _mm_cmpeq_epi8(line[1], wanted[1])),
                      _mm_and_si128(_mm_cmpeq_epi8(line[2], wanted[2]),
                                    _mm_cmpeq_epi8(line[3], wanted[3])));
    if (_mm_movemask_epi8(same) != 0xffff) {
      for (int i = 0; i < 4; ++i) _mm_store_si128(line + i, wanted[i]);
      changed = true;
    }
  }
  return changed;
}

// Looks at four lines at a time: what costs is the number of tests.
template <bool kToZeroes>
[[gnu::target("avx2")]] bool RestoreAvx2(std::byte* to, const std::byte* from) {
  constexpr int kHalves = 8;
  bool changed = false;
  for (size_t at = 0; at < kPageBytes; at += kHalves * sizeof(__m256i)) {
    auto* const halves = reinterpret_cast<__m256i*>(to + at);
    __m256i wanted[kHalves];
    __m256i differ = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = 0; i < kHalves; ++i) {
      wanted[i] = kToZeroes
                      ? _mm256_setzero_si256()
                      : _mm256_load_si256(
                            reinterpret_cast<const __m256i*>(from + at) + i);
      differ = _mm256_or_si256(
          differ, _mm256_xor_si256(_mm256_load_si256(halves + i), wanted[i]));
    }
    if (_mm256_testz_si256(differ, differ)) [[likely]] {
      continue;
    }
    changed = true;
    // All four lines: to test which of them differ takes longer than to write
    // those that do not.
#pragma GCC unroll 8
    for (int i = 0; i < kHalves; ++i) {
      _mm256_store_si256(halves + i, wanted[i]);
    }
  }
  return changed;
}

bool HasAvx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}

const bool kHasAvx2 = HasAvx2();

}  // namespace

bool RestorePage(std::byte* to, const std::byte* from) {
  return kHasAvx2 ? RestoreAvx2<false>(to, from) : RestoreSse2<false>(to, from);
}

bool RestoreZeroPage(std::byte* to) {
  return kHasAvx2 ? RestoreAvx2<true>(to, nullptr)
                  : RestoreSse2<true>(to, nullptr);
}

}  // namespace firsttouch
