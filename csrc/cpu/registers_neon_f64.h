// The registers of NEON that hold 2 doubles, in the words of registers_neon.h that the loops of
// hard.h need.  Included after it.
#pragma once

namespace customloss::cpu {
namespace {

using Doubles = float64x2_t;

inline Doubles as_doubles(uint64x2_t a) { return vreinterpretq_f64_u64(a); }
inline uint64x2_t as_bits(Doubles a) { return vreinterpretq_u64_f64(a); }

struct WideMask {
  uint64x2_t lanes;

  explicit WideMask(uint64x2_t set) : lanes(set) {}
  WideMask() = default;
};
inline uint32_t bits_of(WideMask a) {
  return static_cast<uint32_t>((a.lanes[0] & 1) | (a.lanes[1] & 2));
}
inline bool is_full(WideMask a) { return (a.lanes[0] & a.lanes[1]) == UINT64_MAX; }

template <>
struct LanesOf<double> {
  using Register = Doubles;
  using Mask = WideMask;
  static constexpr int kLanes = 2;

  static inline Doubles all(double value) { return vdupq_n_f64(value); }
  static inline WideMask first(int64_t count) {
    constexpr int64x2_t kLane = {0, 1};
    return WideMask(vcgtq_s64(vdupq_n_s64(count), kLane));
  }
  static inline WideMask nonzero(const uint8_t* from) {
    const uint64x2_t bytes = {from[0], from[1]};
    return WideMask(vtstq_u64(bytes, bytes));
  }
  static inline WideMask nonzero(const uint8_t* from, WideMask valid) {
    const uint8_t bytes[kLanes] = {from[0], is_full(valid) ? from[1] : uint8_t{0}};
    return nonzero(bytes);
  }
};

// Where not all lanes are valid, the first one is.
inline Doubles load(const double* from) { return vld1q_f64(from); }
inline Doubles load(const double* from, WideMask valid) {
  return is_full(valid) ? load(from) : Doubles{from[0], 0.0};
}
inline void store(double* to, Doubles value) { vst1q_f64(to, value); }
inline void store(double* to, Doubles value, WideMask valid) {
  is_full(valid) ? store(to, value) : vst1q_lane_f64(to, value, 0);
}

inline Doubles fused(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
inline Doubles less_product(Doubles c, Doubles a, Doubles b) { return vfmsq_f64(c, a, b); }
inline Doubles smaller(Doubles a, Doubles b) { return vminq_f64(a, b); }  // NaN where one is
inline Doubles size_of(Doubles a) { return vabsq_f64(a); }
inline Doubles against(Doubles m, Doubles x) {
  const uint64x2_t sign = vbicq_u64(vdupq_n_u64(uint64_t{1} << 63), as_bits(x));
  return as_doubles(veorq_u64(as_bits(m), sign));
}
inline uint32_t sign_bits(Doubles a) {
  return bits_of(WideMask(vcltzq_s64(vreinterpretq_s64_f64(a))));
}

inline Doubles choose(WideMask which, Doubles yes, Doubles no) {
  return vbslq_f64(which.lanes, yes, no);
}
inline Doubles only(WideMask which, Doubles value) {
  return as_doubles(vandq_u64(which.lanes, as_bits(value)));
}
inline Doubles add_where(WideMask which, Doubles sum, Doubles value) {
  return sum + only(which, value);
}
inline Doubles add_elsewhere(WideMask which, Doubles sum, Doubles value) {
  return sum + as_doubles(vbicq_u64(as_bits(value), which.lanes));
}

inline double total(Doubles a) { return vaddvq_f64(a); }

inline Doubles reciprocal_of(Doubles a) { return vdivq_f64(vdupq_n_f64(1.0), a); }

// 2^n for the integer n in the low bits of `rounded`.
inline Doubles two_to_the(Doubles rounded) {
  return as_doubles(
      vaddq_u64(vshlq_n_u64(as_bits(rounded), 52), vdupq_n_u64(uint64_t{0x3ff} << 52)));
}

}  // namespace
}  // namespace customloss::cpu
