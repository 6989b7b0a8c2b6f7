// The four sums of sigmoids with bool targets, by hand, for the loops of hard.h and mask.h.
// Included after registers_*.h.
//
// Let m = sigmoid(-|x|) <= 1/2, and d = m where x < 0, -m elsewhere.  Over the elements with target
// 1, and likewise over those with target 0,
//   sum of p = #(x >= 0) + sum of d        sum of 1-p = #(x < 0) - sum of d
// Neither cancels, as each count is at least twice what is subtracted from it.
// So two masked additions and three popcounts serve all four sums.
#pragma once

#include <cstdint>

namespace customloss::cpu {
namespace {

// The registers of floats by the type of the numbers, as registers_*_f64.h has those of doubles.
template <>
struct LanesOf<float> {
  using Register = Floats;
  using Mask = customloss::cpu::Mask;
  static constexpr int kLanes = customloss::cpu::kLanes;

  static inline Floats all(float value) { return floats(value); }
  static inline Mask first(int64_t count) { return first_lanes(count); }
  static inline Mask nonzero(const uint8_t* from) { return nonzero_bytes(from); }
  static inline Mask nonzero(const uint8_t* from, Mask valid) { return nonzero_bytes(from, valid); }
};

// d: m = e^-|x| / (1 + e^-|x|) where x < 0, -m elsewhere.
template <class T, int kVectors>
inline void signed_misses(const typename LanesOf<T>::Register (&x)[kVectors],
                          typename LanesOf<T>::Register (&d)[kVectors]) {
  using Lanes = LanesOf<T>;
  const auto one = Lanes::all(1);
  typename Lanes::Register c[kVectors], e[kVectors];
  CUSTOMLOSS_EACH(c[u] = size_of(x[u]))
  negative_exp(c, e);
  CUSTOMLOSS_EACH(e[u] = e[u] * reciprocal_of(one + e[u]))
  CUSTOMLOSS_EACH(d[u] = against(e[u], x[u]))
}

// The sums of d for targets 1 and 0, and the counts of targets and signs.
template <class T>
struct HardSums {
  using Lanes = LanesOf<T>;
  using Register = typename Lanes::Register;

  Register positives, negatives;
  int64_t size, target = 0, below = 0, target_below = 0;

  // Spelled out, because an implicit constructor would lack this file's instruction set.
  explicit HardSums(int64_t n) : positives(Lanes::all(0)), negatives(Lanes::all(0)), size(n) {}

  // `m` is where the target of x is 1.  Lanes that do not exist have x = 0, d = 0 and target 0.
  template <int kVectors>
  inline void add(const Register (&x)[kVectors], const Register (&d)[kVectors],
                  const typename Lanes::Mask (&m)[kVectors]) {
    uint64_t is_target = 0, is_below = 0;
    CUSTOMLOSS_EACH(positives = add_where(m[u], positives, d[u]))
    CUSTOMLOSS_EACH(negatives = add_elsewhere(m[u], negatives, d[u]))
    CUSTOMLOSS_EACH(is_target |= static_cast<uint64_t>(bits_of(m[u])) << (Lanes::kLanes * u))
    CUSTOMLOSS_EACH(is_below |= static_cast<uint64_t>(sign_bits(x[u])) << (Lanes::kLanes * u))
    target += __builtin_popcountll(is_target);
    below += __builtin_popcountll(is_below);
    target_below += __builtin_popcountll(is_target & is_below);
  }

  void flush(double* sums) const {
    const double p = total(positives), q = total(negatives);
    sums[0] += static_cast<double>(target - target_below) + p;
    sums[1] += static_cast<double>(size - target - (below - target_below)) + q;
    sums[2] += static_cast<double>(target_below) - p;
    sums[3] += static_cast<double>(below - target_below) - q;
  }
};

}  // namespace
}  // namespace customloss::cpu
