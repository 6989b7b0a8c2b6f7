// The loops of block.h, in plain branch-free C++ that the compiler vectorises for whatever
// instruction set is switched on where this file is included (isa_*.cpp).
// No include guard on purpose; everything is in an anonymous namespace (one copy per set).

namespace customloss::cpu {
namespace {

// ---- numbers in memory -> T -------------------------------------------------------------

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T, class From>
inline T load(From value) {
  return static_cast<T>(value);
}
template <class T>
inline T load(bool value) {
  return value ? T(1) : T(0);
}
template <class T>
inline T load(BFloat16 value) {
  return static_cast<T>(bit_cast<float>(static_cast<uint32_t>(value.bits) << 16));
}
template <class T>
inline T load(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // 2^112 moves the exponent bias from 15 to 127, subnormals included
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  return static_cast<T>(
      bit_cast<float>((magnitude >= 0x0f800000u ? special : finite) | sign));
}

template <class To, class T>
inline To store(T value) {
  if constexpr (sizeof(To) == sizeof(BFloat16)) {
    const float single = static_cast<float>(value);
    const uint32_t bits = bit_cast<uint32_t>(single);
    if constexpr (__is_same(To, BFloat16)) {
      const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      return {static_cast<uint16_t>(single != single ? 0x7fc0u : rounded)};
    } else {
      const uint32_t magnitude = bits & 0x7fffffffu;
      // subnormal halves: adding 0.5 lets the adder round at 2^-24
      const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
      const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
      uint32_t half = magnitude < 0x38800000u ? small : normal;
      half = magnitude >= 0x477ff000u ? 0x7c00u : half;
      half = magnitude > 0x7f800000u ? 0x7e00u : half;
      return {static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u))};
    }
  } else {
    return static_cast<To>(value);
  }
}

template <class T, class From>
void stage_as(const void* from, int64_t stride, int64_t size, T* to) {
  const From* source = static_cast<const From*>(from);
  if (stride == 1) {
    for (int64_t i = 0; i < size; ++i) to[i] = load<T>(source[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) to[i] = load<T>(source[i * stride]);
  }
}

template <class T>
void stage(Dtype dtype, const void* from, int64_t stride, int64_t size, T* to) {
  switch (dtype) {
    case Dtype::kBool: return stage_as<T, bool>(from, stride, size, to);
    case Dtype::kUInt8: return stage_as<T, uint8_t>(from, stride, size, to);
    case Dtype::kInt8: return stage_as<T, int8_t>(from, stride, size, to);
    case Dtype::kUInt16: return stage_as<T, uint16_t>(from, stride, size, to);
    case Dtype::kInt16: return stage_as<T, int16_t>(from, stride, size, to);
    case Dtype::kUInt32: return stage_as<T, uint32_t>(from, stride, size, to);
    case Dtype::kInt32: return stage_as<T, int32_t>(from, stride, size, to);
    case Dtype::kUInt64: return stage_as<T, uint64_t>(from, stride, size, to);
    case Dtype::kInt64: return stage_as<T, int64_t>(from, stride, size, to);
    case Dtype::kFloat16: return stage_as<T, Half>(from, stride, size, to);
    case Dtype::kBFloat16: return stage_as<T, BFloat16>(from, stride, size, to);
    case Dtype::kFloat32: return stage_as<T, float>(from, stride, size, to);
    case Dtype::kFloat64: return stage_as<T, double>(from, stride, size, to);
  }
}

template <class T, class To>
void unstage_as(const T* from, int64_t size, void* to, int64_t stride) {
  To* destination = static_cast<To*>(to);
  if (stride == 1) {
    for (int64_t i = 0; i < size; ++i) destination[i] = store<To>(from[i]);
  } else {
    for (int64_t i = 0; i < size; ++i) destination[i * stride] = store<To>(from[i]);
  }
}

template <class T>
void unstage(Dtype dtype, const T* from, int64_t size, void* to, int64_t stride) {
  switch (dtype) {
    case Dtype::kFloat16: return unstage_as<T, Half>(from, size, to, stride);
    case Dtype::kBFloat16: return unstage_as<T, BFloat16>(from, size, to, stride);
    case Dtype::kFloat32: return unstage_as<T, float>(from, size, to, stride);
    default: return unstage_as<T, double>(from, size, to, stride);
  }
}

// ---- block loops ------------------------------------------------------------------------

// A block whose target type, weighting and activation are known at compile time.
template <class T, bool kHard, bool kWeighted, Activation kActivation>
struct Known {
  const Block<T>& block;

  inline T weight(int64_t i) const {
    if constexpr (kWeighted) return block.weight[i];
    return T(1);
  }
  inline auto target(int64_t i) const {
    if constexpr (kHard) {
      return block.hard[i] != 0;
    } else {
      return block.soft[i];
    }
  }
  inline Probability<T> probability_at(int64_t i, T scale, T offset) const {
    return probability<kActivation>(block.input[i], scale, offset);
  }
  inline Share<T> share_at(int64_t i, T scale, T offset) const {
    const Probability<T> prob = probability_at(i, scale, offset);
    return share<kWeighted>(prob.p, prob.q, target(i), weight(i));
  }
};

// Calls body(Known<...>{block}) for the block at hand.
template <class T, class Body>
inline void with_known(const Block<T>& block, const Body& body) {
  const bool sigmoid = block.activation == Activation::kSigmoid;
  constexpr Activation kS = Activation::kSigmoid, kN = Activation::kNone;
  if (block.hard && block.weight) {
    return sigmoid ? body(Known<T, true, true, kS>{block}) : body(Known<T, true, true, kN>{block});
  }
  if (block.hard) {
    return sigmoid ? body(Known<T, true, false, kS>{block})
                   : body(Known<T, true, false, kN>{block});
  }
  if (block.weight) {
    return sigmoid ? body(Known<T, false, true, kS>{block})
                   : body(Known<T, false, true, kN>{block});
  }
  return sigmoid ? body(Known<T, false, false, kS>{block})
                 : body(Known<T, false, false, kN>{block});
}

template <class T>
inline double total(const T* lanes, int count) {
  double sum = 0.0;
  for (int j = 0; j < count; ++j) sum += static_cast<double>(lanes[j]);
  return sum;
}

template <class T, class K>
inline void sum_known(const K& known, double* sums) {
  constexpr int kLanes = 128 / sizeof(T);  // two registers of the widest set
  T tp[kLanes] = {}, fp[kLanes] = {}, fn[kLanes] = {}, tn[kLanes] = {};
  const T scale = known.block.scale, offset = known.block.offset;
  const int64_t size = known.block.size;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const Share<T> s = known.share_at(i + j, scale, offset);
      tp[j] += s.tp;
      fp[j] += s.fp;
      fn[j] += s.fn;
      tn[j] += s.tn;
    }
  }
  for (int j = 0; i < size; ++i, ++j) {
    const Share<T> s = known.share_at(i, scale, offset);
    tp[j] += s.tp;
    fp[j] += s.fp;
    fn[j] += s.fn;
    tn[j] += s.tn;
  }
  sums[0] += total(tp, kLanes);
  sums[1] += total(fp, kLanes);
  sums[2] += total(fn, kLanes);
  sums[3] += total(tn, kLanes);
}

template <class T>
void sum(const Block<T>& block, double* sums) {
  with_known(block, [&](const auto& known) { sum_known<T>(known, sums); });
}

template <class T, class K>
inline void sum_columns_known(const K& known, T* __restrict sums, int64_t pitch) {
  T* __restrict tp = sums;
  T* __restrict fp = sums + pitch;
  T* __restrict fn = sums + 2 * pitch;
  T* __restrict tn = sums + 3 * pitch;
  const T scale = known.block.scale, offset = known.block.offset;
  const int64_t size = known.block.size;
  for (int64_t i = 0; i < size; ++i) {
    const Share<T> s = known.share_at(i, scale, offset);
    tp[i] += s.tp;
    fp[i] += s.fp;
    fn[i] += s.fn;
    tn[i] += s.tn;
  }
}

template <class T>
void sum_columns(const Block<T>& block, T* sums, int64_t pitch) {
  with_known(block, [&](const auto& known) { sum_columns_known<T>(known, sums, pitch); });
}

template <Wrt kWrt, bool kWeighted, class T, class K>
inline void gradient_known(const K& known, const Coefficients<T>& g, T* __restrict out) {
  const T scale = known.block.scale, offset = known.block.offset;
  const int64_t size = known.block.size;
  if (g.per_element) {
    for (int64_t i = 0; i < size; ++i) {
      const Coefficient<T> own{g.a[i], g.b[i], g.c[i], g.d[i]};
      out[i] = gradient<kWrt, kWeighted>(known.probability_at(i, scale, offset), known.target(i),
                                         known.weight(i), own);
    }
  } else {
    const Coefficient<T> own{g.a[0], g.b[0], g.c[0], g.d[0]};
    for (int64_t i = 0; i < size; ++i) {
      out[i] = gradient<kWrt, kWeighted>(known.probability_at(i, scale, offset), known.target(i),
                                         known.weight(i), own);
    }
  }
}

template <class T>
void gradient_block(const Block<T>& block, Wrt wrt, const Coefficients<T>& g, T* out) {
  with_known(block, [&]<bool kHard, bool kWeighted, Activation kA>(
                        const Known<T, kHard, kWeighted, kA>& known) {
    switch (wrt) {
      case Wrt::kInput: return gradient_known<Wrt::kInput, kWeighted>(known, g, out);
      case Wrt::kTarget: return gradient_known<Wrt::kTarget, kWeighted>(known, g, out);
      case Wrt::kWeight: return gradient_known<Wrt::kWeight, kWeighted>(known, g, out);
    }
  });
}

template <class T>
constexpr BlockKernels<T> kernels() {
  return {stage<T>, unstage<T>, sum<T>, sum_columns<T>, gradient_block<T>};
}

}  // namespace
}  // namespace customloss::cpu
