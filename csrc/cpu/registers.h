// What the registers_*.h have in common.
#pragma once

#include <algorithm>
#include <cstdint>

// A statement for u = 0 .. kVectors - 1.  Each step of a loop by hand is done for all registers
// before the next one, so that their dependency chains overlap.
#define CUSTOMLOSS_EACH(statement) \
  _Pragma("GCC unroll 8") for (int u = 0; u < kVectors; ++u) { statement; }

namespace customloss::cpu {

namespace {
// The registers that hold numbers of type T, their masks, and how many numbers these are.
template <class T>
struct LanesOf;
}  // namespace

// The most float32 terms that a lane adds up before it is flushed to float64.
constexpr int64_t kMostAdds = 64;

// The bits of 2^(j/32) for j = 0..31.
constexpr uint32_t kExp2Bits[32] = {
    0x3f800000, 0x3f82cd87, 0x3f85aac3, 0x3f88980f, 0x3f8b95c2, 0x3f8ea43a, 0x3f91c3d3, 0x3f94f4f0,
    0x3f9837f0, 0x3f9b8d3a, 0x3f9ef532, 0x3fa27043, 0x3fa5fed7, 0x3fa9a15b, 0x3fad583f, 0x3fb123f6,
    0x3fb504f3, 0x3fb8fbaf, 0x3fbd08a4, 0x3fc12c4d, 0x3fc5672a, 0x3fc9b9be, 0x3fce248c, 0x3fd2a81e,
    0x3fd744fd, 0x3fdbfbb8, 0x3fe0ccdf, 0x3fe5b907, 0x3feac0c7, 0x3fefe4ba, 0x3ff5257d, 0x3ffa83b3,
};

// Entry j is the bits of 2^(j/kEntries) less j * 2^23 / kEntries, so that adding n * 2^23 /
// kEntries to entry n % kEntries gives 2^(n/kEntries).
template <uint32_t kEntries>
struct Exp2Table {
  static constexpr uint32_t kUnit = (uint32_t{1} << 23) / kEntries;
  alignas(64) uint32_t bits[kEntries] = {};
  constexpr Exp2Table() {
    for (uint32_t j = 0; j < kEntries; ++j) bits[j] = kExp2Bits[j * (32 / kEntries)] - j * kUnit;
  }
};
template <uint32_t kEntries>
constexpr Exp2Table<kEntries> kExp2;

namespace {

// Calls body(first, last) for stretches of `size` elements, so short that none of kWide lanes adds
// up more than kMostAdds terms.
template <int kWide, class Body>
inline __attribute__((always_inline)) void for_short_sums(int64_t size, const Body& body) {
  for (int64_t first = 0; first < size; first += kMostAdds * kWide) {
    body(first, std::min(size, first + kMostAdds * kWide));
  }
}

}  // namespace
}  // namespace customloss::cpu
