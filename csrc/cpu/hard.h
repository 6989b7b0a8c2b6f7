// The headline loops by hand: the sums of headline blocks (block.h), unweighted sigmoids with bool
// targets, and the gradient by their logits.  What the compiler makes of the plain loops reaches
// half of the speed of the memory, and in float64 waits for one long chain of products.  Included
// after registers_*.h and exp_f64.h.
#pragma once

#include "block.h"
#include "hard_sums.h"

namespace customloss::cpu {
namespace {

// The logits of a block: of the type computed in, or half precision that nobody has staged.
template <class T>
struct PlainLogits {
  using Lanes = LanesOf<T>;
  using Register = typename Lanes::Register;
  using Mask = typename Lanes::Mask;
  using Computed = T;
  using Number = T;
  const T* from;

  explicit PlainLogits(const Block<T>& block) : from(block.input) {}
  inline Register at(int64_t i) const { return load(from + i); }
  inline Register at(int64_t i, Mask valid) const { return load(from + i, valid); }
  static inline void put(T* to, Register value) { store(to, value); }
  static inline void put(T* to, Register value, Mask valid) { store(to, value, valid); }
};

template <bool kFloat16>
struct HalfLogits {
  using Computed = float;
  using Number = uint16_t;
  const Number* from;

  explicit HalfLogits(const Block<float>& block) : from(block.halves) {}
  inline Floats at(int64_t i) const { return load_halves<kFloat16>(from + i); }
  inline Floats at(int64_t i, Mask valid) const { return load_halves<kFloat16>(from + i, valid); }
  static inline void put(uint16_t* to, Floats value) { store_halves<kFloat16>(to, value); }
  static inline void put(uint16_t* to, Floats value, Mask valid) {
    store_halves<kFloat16>(to, value, valid);
  }
};

template <class Logits>
inline void ahead_of(const Logits logits, const uint8_t* target, int64_t i, int64_t count) {
  constexpr int64_t kSize = sizeof(typename Logits::Number);
  constexpr int64_t kElementsAhead = kBytesAhead / 4;
  fetch_ahead(target + i, count, kElementsAhead);
  fetch_ahead(logits.from + i, count * kSize, kElementsAhead * kSize);
}

// The elements first .. last-1: kStep registers at a time, and of the rest one that may be part
// empty.
template <class Logits>
inline void sum_hard_run(const Logits logits, const uint8_t* target, int64_t first, int64_t last,
                         double* sums) {
  using Lanes = LanesOf<typename Logits::Computed>;
  using Register = typename Lanes::Register;
  using Mask = typename Lanes::Mask;
  constexpr int kLanes = Lanes::kLanes;
  HardSums<typename Logits::Computed> of(last - first);
  int64_t i = first;
  for (; i + kLanes * kStep <= last; i += kLanes * kStep) {
    constexpr int kVectors = kStep;
    Register x[kVectors], d[kVectors];
    Mask m[kVectors];
    ahead_of(logits, target, i, kLanes * kVectors);
    CUSTOMLOSS_EACH(x[u] = logits.at(i + kLanes * u))
    signed_misses<typename Logits::Computed>(x, d);
    CUSTOMLOSS_EACH(m[u] = Lanes::nonzero(target + i + kLanes * u))
    of.add(x, d, m);
  }
  for (; i < last; i += kLanes) {
    const Mask valid = Lanes::first(last - i);
    const Register x[1] = {logits.at(i, valid)};
    const Mask m[1] = {Lanes::nonzero(target + i, valid)};
    Register d[1];
    signed_misses<typename Logits::Computed>(x, d);
    d[0] = only(valid, d[0]);
    of.add(x, d, m);
  }
  of.flush(sums);
}

template <class Logits, class T>
void sum_hard_of(const Logits logits, const Block<T>& block, double* sums) {
  for_short_sums<LanesOf<T>::kLanes>(block.size, [&](int64_t first, int64_t last) {
    sum_hard_run(logits, block.hard, first, last, sums);
  });
}

void sum_hard_halves(const Block<float>& block, double* sums) {
  block.float16 ? sum_hard_of(HalfLogits<true>(block), block, sums)
                : sum_hard_of(HalfLogits<false>(block), block, sums);
}

template <class T>
void sum_hard(const Block<T>& block, double* sums) {
  if (block.halves == nullptr) return sum_hard_of(PlainLogits<T>(block), block, sums);
  if constexpr (sizeof(T) == 4) sum_hard_halves(block, sums);
}

// dL/dx = p q a where the target is 1, and p q b elsewhere.
template <class T, int kVectors, class Lanes = LanesOf<T>,
          class Register = typename Lanes::Register>
inline void gradients(const Register (&x)[kVectors], const typename Lanes::Mask (&m)[kVectors],
                      Register a, Register b, Register (&to)[kVectors]) {
  const Register one = Lanes::all(1);
  Register c[kVectors], e[kVectors];
  CUSTOMLOSS_EACH(c[u] = size_of(x[u]))
  negative_exp(c, e);
  CUSTOMLOSS_EACH(c[u] = reciprocal_of(one + e[u]))
  CUSTOMLOSS_EACH(e[u] = e[u] * c[u] * c[u])
  CUSTOMLOSS_EACH(to[u] = e[u] * choose(m[u], a, b))
}

template <class Logits, class T, class Out>
void gradient_hard_of(const Logits logits, const Block<T>& block, const Coefficients<T>& g,
                      Out* out) {
  using Lanes = LanesOf<T>;
  using Register = typename Lanes::Register;
  using Mask = typename Lanes::Mask;
  constexpr int kLanes = Lanes::kLanes;
  const Register a = Lanes::all(g.a[0]), b = Lanes::all(g.b[0]);
  int64_t i = 0;
  for (; i + kLanes * kStep <= block.size; i += kLanes * kStep) {
    constexpr int kVectors = kStep;
    Register x[kVectors], found[kVectors];
    Mask m[kVectors];
    ahead_of(logits, block.hard, i, kLanes * kVectors);
    CUSTOMLOSS_EACH(x[u] = logits.at(i + kLanes * u))
    CUSTOMLOSS_EACH(m[u] = Lanes::nonzero(block.hard + i + kLanes * u))
    gradients<T>(x, m, a, b, found);
    CUSTOMLOSS_EACH(Logits::put(out + i + kLanes * u, found[u]))
  }
  for (; i < block.size; i += kLanes) {
    const Mask valid = Lanes::first(block.size - i);
    const Register x[1] = {logits.at(i, valid)};
    const Mask m[1] = {Lanes::nonzero(block.hard + i, valid)};
    Register found[1];
    gradients<T>(x, m, a, b, found);
    Logits::put(out + i, found[0], valid);
  }
}

template <class T>
void gradient_hard(const Block<T>& block, const Coefficients<T>& g, T* out) {
  gradient_hard_of(PlainLogits<T>(block), block, g, out);
}

void gradient_hard_halves(const Block<float>& block, const Coefficients<float>& g, uint16_t* out) {
  block.float16 ? gradient_hard_of(HalfLogits<true>(block), block, g, out)
                : gradient_hard_of(HalfLogits<false>(block), block, g, out);
}

// Every column has the sums of d for targets 1 and 0, and one integer with three counts of 10 bits
// (targets 1, x < 0, both), so at most 1023 additions between flushes.
constexpr int kCountBits = 10;
static_assert(kColumnAdds < (1 << kCountBits));

// `m` is where the target of x is 1.  Lanes that do not exist have x = 0, d = 0 and target 0.
template <int kVectors>
inline void add_columns(const Floats (&x)[kVectors], const Floats (&d)[kVectors],
                        const Mask (&m)[kVectors], float* sums, int64_t pitch) {
  const Ints one = ints(1), two = ints(1 << kCountBits), three = ints(1 << (2 * kCountBits));
  CUSTOMLOSS_EACH(float* const own = sums + kLanes * u; const Mask below = negative(x[u]);
                  Ints counts = load_ints(own + 2 * pitch); counts = add_where(m[u], counts, one);
                  counts = add_where(below, counts, two);
                  counts = add_where(m[u] & below, counts, three);
                  store(own, add_where(m[u], load(own), d[u]));
                  store(own + pitch, add_elsewhere(m[u], load(own + pitch), d[u]));
                  store_ints(own + 2 * pitch, counts))
}

void sum_columns_hard(const Block<float>& block, float* sums, int64_t pitch) {
  int64_t i = 0;
  for (; i + kLanes * kStep <= block.size; i += kLanes * kStep) {
    constexpr int kVectors = kStep;
    Floats x[kVectors], d[kVectors];
    Mask m[kVectors];
    fetch_ahead(block.input + i, 4 * kLanes * kVectors);
    fetch_ahead(block.hard + i, kLanes * kVectors, kBytesAhead / 4);
    CUSTOMLOSS_EACH(x[u] = load(block.input + i + kLanes * u))
    CUSTOMLOSS_EACH(m[u] = nonzero_bytes(block.hard + i + kLanes * u))
    signed_misses<float>(x, d);
    add_columns(x, d, m, sums + i, pitch);
  }
  for (; i < block.size; i += kLanes) {
    const Mask valid = first_lanes(block.size - i);
    const Floats x[1] = {load(block.input + i, valid)};
    const Mask m[1] = {nonzero_bytes(block.hard + i, valid)};
    Floats d[1];
    signed_misses<float>(x, d);
    d[0] = only(valid, d[0]);
    add_columns(x, d, m, sums + i, pitch);
  }
}

void carry_columns_hard(const Fold& fold, float* sums, int64_t pitch) {
  carry(sums, sums + 4 * pitch, fold.rows * fold.columns);
  carry(sums + pitch, sums + 5 * pitch, fold.rows * fold.columns);
}

void flush_columns_hard(const Fold& fold, float* sums, int64_t pitch, double* to,
                        int64_t to_pitch) {
  constexpr int32_t kMask = (1 << kCountBits) - 1;
  carry_columns_hard(fold, sums, pitch);
  for (int64_t f = 0; f < fold.rows; ++f) {
    for (int64_t c = 0; c < fold.columns; ++c) {
      const int64_t i = f * fold.columns + c;
      const double p = sums[4 * pitch + i], q = sums[5 * pitch + i];
      const int32_t counts = bit_cast<int32_t>(sums[2 * pitch + i]);
      const int32_t target = counts & kMask, below = (counts >> kCountBits) & kMask;
      const int32_t target_below = counts >> (2 * kCountBits);
      to[c] += (target - target_below) + p;
      to[to_pitch + c] += (fold.adds[f] - target - (below - target_below)) + q;
      to[2 * to_pitch + c] += target_below - p;
      to[3 * to_pitch + c] += (below - target_below) - q;
    }
  }
}

}  // namespace
}  // namespace customloss::cpu
