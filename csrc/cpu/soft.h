// The sums of unweighted sigmoids with targets that are numbers, by hand, in float32.  What the
// compiler makes of the plain loop divides, and computes an exponential of twice the length.
// Included after registers_*.h.
#pragma once

#include "ahead.h"
#include "block.h"

namespace customloss::cpu {
namespace {

inline bool is_plain_soft(const Block<float>& block) {
  return block.plain && block.soft != nullptr && block.weight == nullptr;
}

struct SoftSums {
  Floats tp, fp, fn, tn;

  // Spelled out, because an implicit constructor would lack this file's instruction set.
  explicit SoftSums(Floats zero) : tp(zero), fp(zero), fn(zero), tn(zero) {}

  // `t` and `rest` are the targets of x, and 1 - t; both 0 in lanes that do not exist.
  template <int kVectors>
  inline void add(const Floats (&x)[kVectors], const Floats (&t)[kVectors],
                  const Floats (&rest)[kVectors]) {
    const Floats one = floats(1.0f);
    Floats c[kVectors], e[kVectors], p[kVectors], q[kVectors];
    CUSTOMLOSS_EACH(c[u] = size_of(x[u]))
    negative_exp(c, e);
    CUSTOMLOSS_EACH(c[u] = reciprocal_of(one + e[u]))
    CUSTOMLOSS_EACH(e[u] = e[u] * c[u])
    CUSTOMLOSS_EACH(p[u] = choose(negative(x[u]), e[u], c[u]);
                    q[u] = choose(negative(x[u]), c[u], e[u]))
    CUSTOMLOSS_EACH(tp = fused(t[u], p[u], tp))
    CUSTOMLOSS_EACH(fp = fused(rest[u], p[u], fp))
    CUSTOMLOSS_EACH(fn = fused(t[u], q[u], fn))
    CUSTOMLOSS_EACH(tn = fused(rest[u], q[u], tn))
  }

  void flush(double* sums) const {
    sums[0] += static_cast<double>(total(tp));
    sums[1] += static_cast<double>(total(fp));
    sums[2] += static_cast<double>(total(fn));
    sums[3] += static_cast<double>(total(tn));
  }
};

// The elements first .. last-1: kStep registers at a time, and of the rest one that may be part
// empty.
inline void sum_soft_run(const Block<float>& block, int64_t first, int64_t last, double* sums) {
  const Floats one = floats(1.0f);
  SoftSums of(floats(0.0f));
  int64_t i = first;
  for (; i + kLanes * kStep <= last; i += kLanes * kStep) {
    constexpr int kVectors = kStep;
    Floats x[kVectors], t[kVectors], rest[kVectors];
    fetch_ahead(block.input + i, 4 * kLanes * kVectors);
    fetch_ahead(block.soft + i, 4 * kLanes * kVectors);
    CUSTOMLOSS_EACH(x[u] = load(block.input + i + kLanes * u))
    CUSTOMLOSS_EACH(t[u] = load(block.soft + i + kLanes * u))
    CUSTOMLOSS_EACH(rest[u] = one - t[u])
    of.add(x, t, rest);
  }
  for (; i < last; i += kLanes) {
    const Mask valid = first_lanes(last - i);
    const Floats x[1] = {load(block.input + i, valid)}, t[1] = {load(block.soft + i, valid)};
    const Floats rest[1] = {only(valid, one - t[0])};
    of.add(x, t, rest);
  }
  of.flush(sums);
}

void sum_soft(const Block<float>& block, double* sums) {
  for_short_sums<kLanes>(
      block.size, [&](int64_t first, int64_t last) { sum_soft_run(block, first, last, sums); });
}

}  // namespace
}  // namespace customloss::cpu
