// The registers of NEON, in the words that the loops by hand are written in: 4 floats, 4 integers,
// and a mask that is a register of all bits or none.  registers_avx2.h and registers_avx512.h have
// the same words.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "registers.h"

namespace customloss::cpu {
namespace {

using Floats = float32x4_t;
using Ints = int32x4_t;
constexpr int kLanes = 4;
constexpr int kStep = 4;         // registers that a loop takes at a time
constexpr int kMaskStep = 4;     // the same of masks with a log-loss
constexpr int kSoftmaxStep = 2;  // the same of a softmax, which has more to remember of each

inline Floats as_floats(Ints a) { return vreinterpretq_f32_s32(a); }
inline Floats as_floats(uint32x4_t a) { return vreinterpretq_f32_u32(a); }
inline Ints as_ints(Floats a) { return vreinterpretq_s32_f32(a); }
inline uint32x4_t as_bits(Floats a) { return vreinterpretq_u32_f32(a); }
inline uint32x4_t as_bits(Ints a) { return vreinterpretq_u32_s32(a); }

struct Mask {
  uint32x4_t lanes;

  explicit Mask(uint32x4_t set) : lanes(set) {}
  Mask() = default;
};
inline uint32_t bits_of(Mask a) {
  constexpr uint32x4_t kBits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(a.lanes, kBits));
}
inline Mask operator&(Mask a, Mask b) { return Mask(vandq_u32(a.lanes, b.lanes)); }
inline Mask without(Mask a, Mask b) { return Mask(vbicq_u32(a.lanes, b.lanes)); }
inline Mask alike(Mask a, Mask b) { return Mask(vceqq_u32(a.lanes, b.lanes)); }
inline Mask all_lanes() { return Mask(vdupq_n_u32(UINT32_MAX)); }
inline Mask first_lanes(int64_t count) {
  constexpr Ints kLane = {0, 1, 2, 3};
  const int32_t most = count < kLanes ? static_cast<int32_t>(count) : kLanes;
  return Mask(vcgtq_s32(vdupq_n_s32(most), kLane));
}
// Lane by lane, which the compiler can work out where the mask is known.
inline bool is_full(Mask a) {
  return (a.lanes[0] & a.lanes[1] & a.lanes[2] & a.lanes[3]) == UINT32_MAX;
}

inline Floats floats(float value) { return vdupq_n_f32(value); }
inline Ints ints(int32_t value) { return vdupq_n_s32(value); }

// ---- memory -----------------------------------------------------------------------------

// Reads one lane after the other where some are not valid, since there are no masked loads.
template <class Number>
inline void load_lanes(const Number* from, Mask valid, Number (&to)[kLanes]) {
  const uint32_t bits = bits_of(valid);
  for (int k = 0; k < kLanes; ++k) {
    if (bits & (1u << k)) to[k] = from[k];
  }
}

inline Floats load(const float* from) { return vld1q_f32(from); }
inline Floats load(const float* from, Mask valid) {
  if (is_full(valid)) return load(from);
  float numbers[kLanes] = {};
  load_lanes(from, valid, numbers);
  return vld1q_f32(numbers);
}
inline void store(float* to, Floats value) { vst1q_f32(to, value); }
// Where not all lanes are valid, these are the first ones.
inline void store(float* to, Floats value, Mask valid) {
  if (is_full(valid)) return store(to, value);
  float numbers[kLanes];
  store(numbers, value);
  std::memcpy(to, numbers, sizeof(*to) * static_cast<size_t>(__builtin_popcount(bits_of(valid))));
}
// Counts that lie in memory meant for floats.
inline Ints load_ints(const float* from) { return as_ints(load(from)); }
inline void store_ints(float* to, Ints value) { store(to, as_floats(value)); }
// `other` where a lane is not valid
inline Ints load_ints(const int32_t* from, Mask valid, int32_t other) {
  if (is_full(valid)) return vld1q_s32(from);
  int32_t numbers[kLanes] = {other, other, other, other};
  load_lanes(from, valid, numbers);
  return vld1q_s32(numbers);
}

inline Mask nonzero_bytes(const uint8_t* from) {
  uint32_t four;
  std::memcpy(&four, from, sizeof(four));
  const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
  const uint32x4_t bytes = vmovl_u16(vget_low_u16(wide));
  return Mask(vtstq_u32(bytes, bytes));
}
inline Mask nonzero_bytes(const uint8_t* from, Mask valid) {
  uint8_t bytes[kLanes] = {};
  load_lanes(from, valid, bytes);
  return nonzero_bytes(bytes);
}

template <bool kFloat16>
inline Floats widen(uint16x4_t halves) {
  if constexpr (kFloat16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  return as_floats(vshll_n_u16(halves, 16));
}
template <bool kFloat16>
inline Floats load_halves(const uint16_t* from) {
  return widen<kFloat16>(vld1_u16(from));
}
template <bool kFloat16>
inline Floats load_halves(const uint16_t* from, Mask valid) {
  uint16_t halves[kLanes] = {};
  load_lanes(from, valid, halves);
  return load_halves<kFloat16>(halves);
}

// Rounded to nearest even.
template <bool kFloat16>
inline uint16x4_t narrow(Floats value) {
  if constexpr (kFloat16) return vreinterpret_u16_f16(vcvt_f16_f32(value));
  const uint32x4_t bits = as_bits(value);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t number = vceqq_f32(value, value);
  return vmovn_u32(vbslq_u32(number, vshrq_n_u32(up, 16), vdupq_n_u32(0x7fc0)));
}
template <bool kFloat16>
inline void store_halves(uint16_t* to, Floats value) {
  vst1_u16(to, narrow<kFloat16>(value));
}
template <bool kFloat16>
inline void store_halves(uint16_t* to, Floats value, Mask valid) {
  uint16_t halves[kLanes];
  store_halves<kFloat16>(halves, value);
  std::memcpy(to, halves, sizeof(*to) * static_cast<size_t>(__builtin_popcount(bits_of(valid))));
}

// ---- lanes ------------------------------------------------------------------------------

inline Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }         // a b + c
inline Floats less_product(Floats c, Floats a, Floats b) { return vfmsq_f32(c, a, b); }  // c - a b
inline Floats larger(Floats a, Floats b) {  // b where one is NaN
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}
inline Floats size_of(Floats a) { return vabsq_f32(a); }
// m where the sign of x is set, else -m, for m >= 0
inline Floats against(Floats m, Floats x) {
  const uint32x4_t sign = vbicq_u32(vdupq_n_u32(0x80000000u), as_bits(x));
  return as_floats(veorq_u32(as_bits(m), sign));
}

inline Mask negative(Floats a) { return Mask(vcltzq_s32(as_ints(a))); }
inline uint32_t sign_bits(Floats a) { return bits_of(negative(a)); }
inline Mask equal(Floats a, Floats b) { return Mask(vceqq_f32(a, b)); }
inline Mask unequal(Floats a, Floats b) { return Mask(vmvnq_u32(vceqq_f32(a, b))); }
inline Mask below(Floats a, Floats b) { return Mask(vcltq_f32(a, b)); }
inline Mask equal(Ints a, Ints b) { return Mask(vceqq_s32(a, b)); }
inline Mask not_negative(Ints a) { return Mask(vcgezq_s32(a)); }

inline Floats choose(Mask which, Floats yes, Floats no) { return vbslq_f32(which.lanes, yes, no); }
inline Ints choose(Mask which, Ints yes, Ints no) { return vbslq_s32(which.lanes, yes, no); }
inline Floats only(Mask which, Floats value) {
  return as_floats(vandq_u32(which.lanes, as_bits(value)));
}
// 0 where the mask is set
inline Floats unless(Mask which, Floats value) {
  return as_floats(vbicq_u32(as_bits(value), which.lanes));
}
inline Floats add_where(Mask which, Floats sum, Floats value) { return sum + only(which, value); }
inline Floats add_elsewhere(Mask which, Floats sum, Floats value) {
  return sum + unless(which, value);
}
inline Ints add_where(Mask which, Ints sum, Ints value) {
  return vaddq_s32(sum, vandq_s32(vreinterpretq_s32_u32(which.lanes), value));
}
// a b + sum; elsewhere it may be 0 b + sum, so b must be finite there
inline Floats fused_where(Mask which, Floats a, Floats b, Floats sum) {
  return fused(only(which, a), b, sum);
}
inline Floats fused_elsewhere(Mask which, Floats a, Floats b, Floats sum) {
  return fused(unless(which, a), b, sum);
}

inline Ints sum_of(Ints a, Ints b) { return vaddq_s32(a, b); }
// 1 in byte `which` of a lane, 0 to 3, and 0 where it is -1: a shift to the left by a negative
// number is one to the right.
inline Ints unit_in_byte(Ints which) { return vshlq_s32(ints(1), vshlq_n_s32(which, 3)); }
// The sum of byte `which` of all lanes.
inline int32_t byte_total(Ints a, int64_t which) {
  const Ints low = vshlq_s32(a, ints(static_cast<int32_t>(-8 * which)));
  return vaddvq_s32(vandq_s32(low, ints(255)));
}

inline float total(Floats a) { return vaddvq_f32(a); }

// 1 / a for a >= 1.
inline Floats reciprocal_of(Floats a) { return vdivq_f32(floats(1.0f), a); }

// e^-c for c >= 0, as exp_minus() of ../element.h: without a table, which would take more steps to
// look up than the polynomial has more terms.
template <int kVectors>
inline void negative_exp(const Floats (&c)[kVectors], Floats (&e)[kVectors]) {
  const Floats round = floats(0x1.8p23f), one = floats(1.0f);
  Floats b[kVectors], n[kVectors], r[kVectors];
  Ints bits[kVectors];
  // At 88 the exponent of 2^n is that of 0, and so is e^-c.  A NaN stays.
  CUSTOMLOSS_EACH(b[u] = vminq_f32(floats(88.0f), c[u]))
  CUSTOMLOSS_EACH(n[u] = fused(b[u], floats(-1.44269504f), round))
  CUSTOMLOSS_EACH(bits[u] = as_ints(n[u]))
  CUSTOMLOSS_EACH(n[u] = n[u] - round)
  CUSTOMLOSS_EACH(r[u] = less_product(vnegq_f32(b[u]), n[u], floats(0x1.62e4p-1f)))
  CUSTOMLOSS_EACH(r[u] = less_product(r[u], n[u], floats(0x1.7f7d1cp-20f)))
  CUSTOMLOSS_EACH(e[u] = fused(r[u], floats(0x1.6a23dp-10f), floats(0x1.123a2p-7f)))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], floats(0x1.5558f2p-5f)))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], floats(0x1.555492p-3f)))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], floats(0x1.fffffcp-2f)))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(e[u] = fused(e[u], r[u], one))
  CUSTOMLOSS_EACH(bits[u] = vaddq_s32(vshlq_n_s32(bits[u], 23), ints(0x3f800000)))
  CUSTOMLOSS_EACH(e[u] = e[u] * as_floats(bits[u]))
}

}  // namespace
}  // namespace customloss::cpu
