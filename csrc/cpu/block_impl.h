// The loops of block.h in plain branch-free C++, which the compiler vectorises for the instruction
// set that is switched on where this file is included (isa_*.cpp).  There is no include guard, on
// purpose; everything is in an anonymous namespace, one copy per instruction set.

namespace customloss::cpu {
namespace {

// ---- numbers in memory -> T -------------------------------------------------------------

// A bool as it lies in memory.  load() takes a minimum, which vectorises; a comparison does not.
struct Truth {
  uint8_t byte;
};
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
inline T load(Truth value) {
  return static_cast<T>(static_cast<int32_t>(value.byte < 1 ? value.byte : 1));
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
  return static_cast<T>(bit_cast<float>((magnitude >= 0x0f800000u ? special : finite) | sign));
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
      // Subnormal halves: adding 0.5 makes the addition itself round at 2^-24.
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

// to[i] = from[i] for i = first..last-1
template <class T, class From>
inline void stage_run(const From* from, int64_t first, int64_t last, T* to) {
  for (int64_t i = first; i < last; ++i) to[i] = load<T>(from[i]);
}
template <class T, class To>
inline void unstage_run(const T* from, int64_t size, To* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = store<To>(from[i]);
}
#if defined(CUSTOMLOSS_AVX2)
// The processor's own conversions; the compiler makes none of the loops above.
inline void stage_run(const Half* from, int64_t first, int64_t last, float* to) {
  int64_t i = first;
  for (; i + 8 <= last; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  for (; i < last; ++i) to[i] = load<float>(from[i]);
}
inline void unstage_run(const float* from, int64_t size, Half* to) {
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < size; ++i) to[i] = store<Half>(from[i]);
}
#endif

template <class T, class From>
void stage_as(const void* from, int64_t stride, int64_t size, T* to) {
  const From* source = static_cast<const From*>(from);
  if (stride == 1) {
    in_stretches(
        size,
        [=](int64_t first, int64_t last) {
          fetch_ahead(source + first, (last - first) * static_cast<int64_t>(sizeof(From)),
                      kBytesAhead / 2);
        },
        [=](int64_t first, int64_t last) { stage_run(source, first, last, to); });
  } else {
    for (int64_t i = 0; i < size; ++i) to[i] = load<T>(source[i * stride]);
  }
}

// Calls body<From>() with the type in memory.
template <class Body>
inline void with_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kBool: return body.template operator()<Truth>();
    case Dtype::kUInt8: return body.template operator()<uint8_t>();
    case Dtype::kInt8: return body.template operator()<int8_t>();
    case Dtype::kUInt16: return body.template operator()<uint16_t>();
    case Dtype::kInt16: return body.template operator()<int16_t>();
    case Dtype::kUInt32: return body.template operator()<uint32_t>();
    case Dtype::kInt32: return body.template operator()<int32_t>();
    case Dtype::kUInt64: return body.template operator()<uint64_t>();
    case Dtype::kInt64: return body.template operator()<int64_t>();
    case Dtype::kFloat16: return body.template operator()<Half>();
    case Dtype::kBFloat16: return body.template operator()<BFloat16>();
    case Dtype::kFloat32: return body.template operator()<float>();
    case Dtype::kFloat64: return body.template operator()<double>();
  }
}

template <class T>
void stage(Dtype dtype, const void* from, int64_t stride, int64_t size, T* to) {
  with_dtype(dtype, [&]<class From>() { stage_as<T, From>(from, stride, size, to); });
}

template <class T, class To>
void unstage_as(const T* from, int64_t size, void* to, int64_t stride) {
  To* destination = static_cast<To*>(to);
  if (stride == 1) {
    unstage_run(from, size, destination);
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

// A block whose target type, weighting and activation are known at compile time.  Its functions are
// inlined by force: what is left as a call keeps a loop from being vectorised, and so does an
// aggregate whose address is taken in the loop itself.
template <class T, bool kHard, bool kWeighted, bool kScaled, Activation kActivation>
struct Known {
  using Target = std::conditional_t<kHard, uint8_t, T>;

  const T* __restrict input;
  const Target* __restrict target;
  const T* __restrict weight;
  const int64_t size;
  const T scale, offset;

  explicit Known(const Block<T>& block)
      : input(block.input),
        target(pick(block)),
        weight(block.weight),
        size(block.size),
        scale(kScaled ? block.scale : T(1)),
        offset(kScaled ? block.offset : T(0)) {}

  static const Target* pick(const Block<T>& block) {
    if constexpr (kHard) {
      return block.hard;
    } else {
      return block.soft;
    }
  }
  // Fetches what lies ahead of the elements first .. last-1.
  CUSTOMLOSS_HD void ahead(int64_t first, int64_t last) const {
    const int64_t count = last - first;
    fetch_ahead(input + first, count * static_cast<int64_t>(sizeof(T)));
    fetch_ahead(target + first, count * static_cast<int64_t>(sizeof(Target)),
                kBytesAhead / static_cast<int64_t>(sizeof(T) / sizeof(Target)));
    if constexpr (kWeighted) {
      fetch_ahead(weight + first, count * static_cast<int64_t>(sizeof(T)));
    }
  }
  CUSTOMLOSS_HD T weight_at(int64_t i) const {
    if constexpr (kWeighted) return weight[i];
    return T(1);
  }
  CUSTOMLOSS_HD auto target_at(int64_t i) const {
    if constexpr (kHard) {
      using Bits = typename Flag<T>::Bits;
      const uint8_t one = target[i] < 1 ? target[i] : 1;  // a bool may hold other bytes than 0, 1
      return Flag<T>(static_cast<Bits>(Bits(0) - Bits(one)));
    } else {
      return target[i];
    }
  }
  CUSTOMLOSS_HD Probability<T> probability_at(int64_t i) const {
    if constexpr (kScaled) return probability<kActivation>(input[i], scale, offset);
    return probability<kActivation>(input[i], T(1), T(0));
  }
  CUSTOMLOSS_HD Share<T> share_at(int64_t i) const {
    const Probability<T> prob = probability_at(i);
    return share<kWeighted>(prob.p, prob.q, target_at(i), weight_at(i));
  }
  template <Wrt kWrt>
  CUSTOMLOSS_HD T gradient_at(int64_t i, T a, T b, T c, T d) const {
    return gradient<kWrt, kWeighted>(probability_at(i), target_at(i), weight_at(i),
                                     Coefficient<T>{a, b, c, d});
  }
};

// Calls body(Known<...>(block)) with the template arguments that fit the block.
template <class T, bool kHard, bool kWeighted, class Body>
inline void with_activation(const Block<T>& block, const Body& body) {
  if (block.activation == Activation::kNone) {
    body(Known<T, kHard, kWeighted, false, Activation::kNone>(block));
  } else if (block.plain) {
    body(Known<T, kHard, kWeighted, false, Activation::kSigmoid>(block));
  } else {
    body(Known<T, kHard, kWeighted, true, Activation::kSigmoid>(block));
  }
}

template <class T, class Body>
inline void with_known(const Block<T>& block, const Body& body) {
  if (block.hard) {
    block.weight ? with_activation<T, true, true>(block, body)
                 : with_activation<T, true, false>(block, body);
  } else {
    block.weight ? with_activation<T, false, true>(block, body)
                 : with_activation<T, false, false>(block, body);
  }
}

// Elements of a float32 sum: at most 64 per lane even on the narrowest set.  Equal terms round in
// the same direction, so the error grows with the number of additions.
constexpr int64_t kSingleRun = 256;
template <class T>
constexpr int64_t kRun = sizeof(T) == 4 ? kSingleRun : kBlock;

template <class T, class K>
inline __attribute__((always_inline)) void sum_run(const K& known, int64_t first, int64_t size,
                                                   double* sums) {
  T tp = 0, fp = 0, fn = 0, tn = 0;
#pragma omp simd reduction(+ : tp, fp, fn, tn)
  for (int64_t i = first; i < first + size; ++i) {
    const Share<T> s = known.share_at(i);
    tp += s.tp;
    fp += s.fp;
    fn += s.fn;
    tn += s.tn;
  }
  sums[0] += static_cast<double>(tp);
  sums[1] += static_cast<double>(fp);
  sums[2] += static_cast<double>(fn);
  sums[3] += static_cast<double>(tn);
}

template <class T>
void sum(const Block<T>& block, double* sums) {
  with_known(block, [sums](const auto known) {
    int64_t i = 0;
    for (; i + kRun<T> <= known.size; i += kRun<T>) {
      known.ahead(i, i + kRun<T>);
      sum_run<T>(known, i, kRun<T>, sums);
    }
    if (i < known.size) sum_run<T>(known, i, known.size - i, sums);
  });
}

template <class T, class K>
inline void sum_columns_known(const K known, int64_t size, T* __restrict tp, T* __restrict fp,
                              T* __restrict fn, T* __restrict tn) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const Share<T> s = known.share_at(i);
    tp[i] += s.tp;
    fp[i] += s.fp;
    fn[i] += s.fn;
    tn[i] += s.tn;
  }
}

template <class T>
void sum_columns(const Block<T>& block, T* sums, int64_t pitch) {
  with_known(block, [=](const auto known) {
    sum_columns_known(known, known.size, sums, sums + pitch, sums + 2 * pitch, sums + 3 * pitch);
  });
}

// to[i] += from[i], and from[i] = 0
template <class T>
inline void carry(T* __restrict from, T* __restrict to, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    to[i] += from[i];
    from[i] = T(0);
  }
}

template <class T>
void carry_columns(const Fold& fold, T* sums, int64_t pitch) {
  for (int s = 0; s < 4; ++s) {
    carry(sums + s * pitch, sums + (4 + s) * pitch, fold.rows * fold.columns);
  }
}

// The rows of a fold are added pairwise, so that float64 inputs keep their last digits.
template <class T>
void flush_columns(const Fold& fold, T* sums, int64_t pitch, double* to, int64_t to_pitch) {
  carry_columns(fold, sums, pitch);
  double wide[kBlock];
  for (int s = 0; s < 4; ++s) {
    const T* own = sums + (4 + s) * pitch;
    for (int64_t i = 0; i < fold.rows * fold.columns; ++i) wide[i] = static_cast<double>(own[i]);
    for (int64_t rows = fold.rows; rows > 1; rows = (rows + 1) / 2) {
      const int64_t half = (rows + 1) / 2 * fold.columns, rest = rows * fold.columns - half;
#pragma omp simd
      for (int64_t i = 0; i < rest; ++i) wide[i] += wide[half + i];
    }
    for (int64_t c = 0; c < fold.columns; ++c) to[s * to_pitch + c] += wide[c];
  }
}

template <Wrt kWrt, class T, class K>
inline void gradient_run(const K known, const Coefficient<T> g, int64_t first, int64_t last,
                         T* __restrict out) {
#pragma omp simd
  for (int64_t i = first; i < last; ++i) {
    out[i] = known.template gradient_at<kWrt>(i, g.a, g.b, g.c, g.d);
  }
}

template <Wrt kWrt, class T, class K>
inline void gradient_each(const K known, const Coefficients<T> g, int64_t size, T* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    out[i] = known.template gradient_at<kWrt>(i, g.a[i], g.b[i], g.c[i], g.d[i]);
  }
}

template <Wrt kWrt, class T, class K>
inline void gradient_known(const K known, const Coefficients<T>& g, T* __restrict out) {
  if (g.per_element) return gradient_each<kWrt>(known, g, known.size, out);
  const Coefficient<T> one{g.a[0], g.b[0], g.c[0], g.d[0]};
  in_stretches(
      known.size, [&](int64_t first, int64_t last) { known.ahead(first, last); },
      [&](int64_t first, int64_t last) { gradient_run<kWrt>(known, one, first, last, out); });
}

template <class T>
void gradient_block(const Block<T>& block, Wrt wrt, const Coefficients<T>& g, T* out) {
  with_known(block, [&](const auto known) {
    switch (wrt) {
      case Wrt::kInput: return gradient_known<Wrt::kInput>(known, g, out);
      case Wrt::kTarget: return gradient_known<Wrt::kTarget>(known, g, out);
      case Wrt::kWeight: return gradient_known<Wrt::kWeight>(known, g, out);
    }
  });
}

template <class T>
constexpr BlockKernels<T> kernels() {
  return {stage<T>,         unstage<T>,        sum<T>, sum_columns<T>, carry_columns<T>,
          flush_columns<T>, gradient_block<T>, nullptr};
}

}  // namespace
}  // namespace customloss::cpu
