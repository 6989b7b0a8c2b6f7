// The loops of tile.h, in plain branch-free C++ that the compiler vectorises along the pixels of a
// tile.  Included by isa_*.cpp behind tile_fill.h.
// No include guard on purpose; everything is in an anonymous namespace (one copy per set).

namespace customloss::cpu {
namespace {

// ---- a tile whose kind is known -------------------------------------------------------------

template <class T, Activation kA, unsigned kE, bool kL>
struct Pixels {
  static constexpr Activation kActivation = kA;
  static constexpr unsigned kExtra = kE;
  static constexpr bool kLabels = kL;
  static constexpr bool kSoftmax = kA == Activation::kSoftmax;
  // -log p of the true class alone, or of every class
  static constexpr bool kTrueLog = kSoftmax && kE == kLogLoss && kL;
  static constexpr bool kEveryLog = kSoftmax && (kE & (kLogLoss | kFocal)) != 0 && !kTrueLog;
  static constexpr int kSums = rows_of(kE);

  const Tile<T>& tile;

  inline T* row(PixelRow which) const { return tile.rows + which * tile.pitch; }
  inline T* x(int64_t c) const { return tile.x + c * tile.pitch; }
  // the logits; of a softmax they become e in place
  inline const T* values(int64_t c) const {
    return kSoftmax ? x(c) : tile.lies + c * tile.lies_pitch;
  }
  inline T* spare(int64_t c) const { return tile.spare + c * tile.pitch; }
  inline T* other(int64_t c) const { return tile.other + c * tile.pitch; }
  inline const T* weight(int64_t c) const {
    return tile.weight ? tile.weight + c * tile.pitch : row(kLive);
  }
};

// One class of a tile, its rows at hand.
template <class P, class T>
struct OneClass {
  const T* __restrict x;
  const T* __restrict soft;
  const int32_t* __restrict labels;
  const T* __restrict rest;
  const T* __restrict whole;
  const T* __restrict inverse;
  const T* __restrict missed;
  const T* __restrict top;
  const T* log;  // softmax_gradient writes over it
  const int32_t cls;
  const T on, off, scale, offset;

  OneClass(const P& of, int64_t c)
      : x(of.values(c)),
        soft(P::kLabels ? nullptr : of.tile.soft + c * of.tile.pitch),
        labels(of.tile.labels),
        rest(of.row(kRest)),
        whole(of.row(kWhole)),
        inverse(of.row(kInverse)),
        missed(of.row(kMissed)),
        top(of.row(kTop)),
        log(P::kEveryLog ? of.spare(c) : nullptr),
        cls(static_cast<int32_t>(c)),
        on(of.tile.on),
        off(of.tile.off),
        scale(of.tile.scale),
        offset(of.tile.offset) {}

  inline T target_at(int64_t i) const {
    if constexpr (P::kLabels) {
      return labels[i] == cls ? on : off;
    } else {
      return soft[i] * (on - off) + off;
    }
  }
  // p and q alone, of a sigmoid or of probabilities
  inline Outcome<T> slope_at(int64_t i) const {
    return outcome<P::kActivation, 0>(x[i], scale, offset);
  }
  inline Outcome<T> outcome_at(int64_t i) const {
    if constexpr (P::kSoftmax) {
      const T e = x[i];
      Outcome<T> found(e * inverse[i], (e == T(1) ? rest[i] : whole[i] - e) * inverse[i]);
      if constexpr (P::kTrueLog) found.positive = missed[i];
      if constexpr (P::kEveryLog) found.positive = missed[i] + log[i];
      if constexpr ((P::kExtra & kHard) != 0) {
        found.decided = top[i] == static_cast<T>(cls) ? T(1) : T(0);
      }
      return found;
    } else {
      return outcome<P::kActivation, P::kExtra>(x[i], scale, offset);
    }
  }
};

// e of every element in place of x, and the rows that complete a softmax; kLogs: logarithms too.
template <class P, bool kLogs, class T>
void exponentials(const P of) {
  const int64_t pixels = of.tile.pixels;
  T* __restrict largest = of.row(kLargest);
  T* __restrict rest = of.row(kRest);
  T* __restrict ties = of.row(kInverse);
  T* __restrict missed = of.row(kMissed);
  T* __restrict top = of.row(kTop);
  for (int64_t i = 0; i < pixels; ++i) {
    largest[i] = of.x(0)[i];
    rest[i] = missed[i] = T(0);
    ties[i] = top[i] = T(-1);
  }
  for (int64_t c = 1; c < of.tile.classes; ++c) {
    const T* __restrict own = of.x(c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) largest[i] = own[i] > largest[i] ? own[i] : largest[i];
  }
  for (int64_t c = 0; c < of.tile.classes; ++c) {
    T* __restrict own = of.x(c);
    T* __restrict log = kLogs && P::kEveryLog ? of.spare(c) : missed;
    const int32_t* __restrict labels = of.tile.labels;
    const int32_t cls = static_cast<int32_t>(c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      const T below = largest[i] - own[i];
      const T e = exp_minus(below);
      own[i] = e;
      const bool most = below == T(0);
      rest[i] += most ? T(0) : e;
      ties[i] += most ? T(1) : T(0);
      if constexpr (kLogs && P::kEveryLog) log[i] = below;
      if constexpr (kLogs && P::kTrueLog) log[i] = labels[i] == cls ? below : log[i];
      if constexpr ((P::kExtra & kHard) != 0) {
        top[i] = most && top[i] < T(0) ? static_cast<T>(cls) : top[i];
      }
    }
  }
  T* __restrict whole = of.row(kWhole);
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) {
    rest[i] += ties[i];
    whole[i] = T(1) + rest[i];
    ties[i] = T(1) / whole[i];  // kInverse from here on
    if constexpr (kLogs && (P::kTrueLog || P::kEveryLog)) missed[i] += log1p_of(rest[i], ties[i]);
  }
}

// Whatever is removed holds numbers from here on.  `keep`: a gradient by the weight is asked for,
// which weight 0 does not remove.
template <class P, class T>
void clean(const P of, bool keep) {
  const Tile<T>& tile = of.tile;
  if (tile.lies != tile.x) return;  // nothing is removed
  const T* __restrict live = of.row(kLive);
  for (int64_t c = 0; c < tile.classes; ++c) {
    T* __restrict own = of.x(c);
    const bool by_pixel = P::kSoftmax || tile.weight == nullptr;
    const T* __restrict weight = by_pixel ? live : tile.weight + c * tile.pitch;
    if (P::kLabels && keep) {
      for (int64_t i = 0; i < tile.pixels; ++i) own[i] = tile.labels[i] < 0 ? T(0) : own[i];
    } else if (!keep) {
#pragma omp simd
      for (int64_t i = 0; i < tile.pixels; ++i) own[i] = weight[i] == T(0) ? T(0) : own[i];
    }
    if (!P::kLabels && !keep) {
      T* __restrict soft = tile.soft + c * tile.pitch;
      const T* __restrict each = of.weight(c);
#pragma omp simd
      for (int64_t i = 0; i < tile.pixels; ++i) soft[i] = each[i] == T(0) ? T(0) : soft[i];
    }
  }
  if (P::kSoftmax && (tile.scale != T(1) || tile.offset != T(0))) {
    for (int64_t c = 0; c < tile.classes; ++c) {
      T* __restrict own = of.x(c);
      for (int64_t i = 0; i < tile.pixels; ++i) own[i] = tile.scale * (own[i] - tile.offset);
    }
  }
}

// Calls body(Pixels<...>{tile}) for the tile at hand; kExtra is 0, kLogLoss or kEveryExtra.
template <class T, unsigned kExtra, class Body>
inline void with_activation(const Tile<T>& tile, const Body& body) {
  const bool labels = tile.labels != nullptr;
  switch (tile.activation) {
    case Activation::kSoftmax:
      return labels ? body(Pixels<T, Activation::kSoftmax, kExtra, true>{tile})
                    : body(Pixels<T, Activation::kSoftmax, kExtra, false>{tile});
    case Activation::kSigmoid:
      return labels ? body(Pixels<T, Activation::kSigmoid, kExtra, true>{tile})
                    : body(Pixels<T, Activation::kSigmoid, kExtra, false>{tile});
    default:
      return labels ? body(Pixels<T, Activation::kNone, kExtra, true>{tile})
                    : body(Pixels<T, Activation::kNone, kExtra, false>{tile});
  }
}

// Row `kRow` of kEveryExtra among the rows of `extra`, or -1.
inline int row_among(unsigned extra, int every_row) {
  for (unsigned one = 1; one <= kEveryExtra; one *= 2) {
    const int first = row_of(kEveryExtra, one), count = rows_of(one) - 4;
    if (every_row < first || every_row >= first + count) continue;
    return extra & one ? row_of(extra, one) + every_row - first : -1;
  }
  return every_row;
}

// ---- forward ------------------------------------------------------------------------------

// to[0..3] += tp, fp, fn, tn of one class, and to[4..5] its log-losses.
template <class P, class T>
inline void few_sums(const OneClass<P, T> one, const T* __restrict weight, int64_t first,
                     int64_t last, double* to, int64_t to_pitch) {
  T tp = 0, fp = 0, fn = 0, tn = 0, positive = 0, negative = 0;
#pragma omp simd reduction(+ : tp, fp, fn, tn, positive, negative)
  for (int64_t i = first; i < last; ++i) {
    const Outcome<T> own = one.outcome_at(i);
    const T t = one.target_at(i), w = weight[i];
    const T wt = w * t, wu = w * (T(1) - t);
    tp += wt * own.p;
    fp += wu * own.p;
    fn += wt * own.q;
    tn += wu * own.q;
    if constexpr (P::kExtra == kLogLoss) {
      positive += times(wt, own.positive);
      if constexpr (!P::kSoftmax) negative += times(wu, own.negative);
    }
  }
  to[0] += static_cast<double>(tp);
  to[to_pitch] += static_cast<double>(fp);
  to[2 * to_pitch] += static_cast<double>(fn);
  to[3 * to_pitch] += static_cast<double>(tn);
  if constexpr (P::kExtra == kLogLoss) {
    to[4 * to_pitch] += static_cast<double>(positive);
    to[5 * to_pitch] += static_cast<double>(negative);
  }
}

// to(s) += w from[s] for every s, spelt out so that `from` never lies in memory.
template <int... kRows, class T, class To>
inline __attribute__((always_inline)) void add_each(std::integer_sequence<int, kRows...>, T w,
                                                    const T (&from)[sizeof...(kRows)],
                                                    const To& to) {
  ((to(kRows) += times(w, from[kRows])), ...);
}

// The rows of kEveryExtra of one class, in as many lanes, of which `extra` are kept.
template <class P, class T>
inline void every_sum(const P of, const OneClass<P, T> one, const T* __restrict weight,
                      int64_t first, int64_t last, double* to, int64_t to_pitch) {
  constexpr int kLanes = 16;
  T lanes[P::kSums][kLanes] = {};
  const T gamma = of.tile.gamma;
  for (int64_t i = first; i < last; i += kLanes) {
    const int64_t count = last - i < kLanes ? last - i : kLanes;
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      T own[P::kSums];
      shares<P::kActivation, P::kExtra>(one.outcome_at(i + k), one.target_at(i + k), gamma, own);
      add_each(std::make_integer_sequence<int, P::kSums>(), weight[i + k], own,
               [&](int s) -> T& { return lanes[s][k]; });
    }
  }
  for (int s = 0; s < P::kSums; ++s) {
    const int row = row_among(of.tile.extra, s);
    if (row < 0) continue;
    double sum = 0.0;
    for (int k = 0; k < kLanes; ++k) sum += static_cast<double>(lanes[s][k]);
    to[row * to_pitch] += sum;
  }
}

template <class P, class T>
void tile_sums(const P of, double* to, int64_t to_pitch) {
  clean<P, T>(of, false);
  if constexpr (P::kSoftmax) exponentials<P, true, T>(of);
  for (int64_t c = 0; c < of.tile.classes; ++c) {
    const OneClass<P, T> one(of, c);
    const T* weight = of.weight(c);
    for (int64_t first = 0; first < of.tile.pixels; first += kRun<T>) {
      const int64_t end = first + kRun<T>, last = end < of.tile.pixels ? end : of.tile.pixels;
      if constexpr (P::kExtra == 0 || P::kExtra == kLogLoss) {
        few_sums<P, T>(one, weight, first, last, to + c, to_pitch);
      } else {
        every_sum<P, T>(of, one, weight, first, last, to + c, to_pitch);
      }
    }
  }
}

template <class T>
void pixel_sums(const Tile<T>& tile, double* to, int64_t to_pitch) {
  const auto body = [&](const auto of) { tile_sums<decltype(of), T>(of, to, to_pitch); };
  switch (tile.extra) {
    case 0: return with_activation<T, 0>(tile, body);
    case kLogLoss: return with_activation<T, kLogLoss>(tile, body);
    default: return with_activation<T, kEveryExtra>(tile, body);
  }
}

// ---- backward -----------------------------------------------------------------------------

// The gradient by the sums of one class, in the rows of P; 0 for sums that were not asked for.
template <class P, class T>
struct ClassGrads {
  T by[P::kSums];

  ClassGrads(const P of, const T* from, int64_t c) {
    for (int s = 0; s < P::kSums; ++s) {
      const int row = P::kExtra == kEveryExtra ? row_among(of.tile.extra, s) : s;
      by[s] = row < 0 || row >= rows_of(of.tile.extra) ? T(0) : from[row * of.tile.classes + c];
    }
  }
};

// u and h of one class at every pixel: times the weight, into rows of their own; u of a largest
// class into `shift`, h added to `slope`.
template <class P, class T>
inline void class_slopes(const P of, const OneClass<P, T> one, const ClassGrads<P, T> g,
                         const T* __restrict weight, T* __restrict u, T* h) {
  const int64_t pixels = of.tile.pixels;
  T* __restrict shift = of.row(kShift);
  T* __restrict slope = of.row(kSlope);
  if constexpr (P::kExtra == 0 || P::kExtra == kLogLoss) {
    const T a = g.by[0] - g.by[2], b = g.by[1] - g.by[3], log = P::kExtra ? g.by[4] : T(0);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      const T t = one.target_at(i), w = weight[i];
      const T own = w * (t * a + (T(1) - t) * b);
      u[i] = own;
      shift[i] = one.x[i] == T(1) ? own : shift[i];
      if constexpr (P::kExtra == kLogLoss) {
        const T more = w * t * log;
        h[i] = more;
        slope[i] += more;
      }
    }
  } else {
    const T gamma = of.tile.gamma;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      const Slopes<T> s =
          slopes<P::kActivation, P::kExtra>(one.outcome_at(i), one.target_at(i), gamma, g.by);
      const T own = times(weight[i], s.u), more = times(weight[i], s.h);
      u[i] = own;
      shift[i] = one.x[i] == T(1) ? own : shift[i];
      h[i] = more;
      slope[i] += more;
    }
  }
}

// dL/dx of a softmax: u of every class, then what all of them have in common, then each.
template <class P, class T>
void softmax_gradient(const P of, const T* by, T* out, int64_t out_pitch) {
  constexpr bool kLogs = P::kExtra != 0;
  const int64_t pixels = of.tile.pixels, classes = of.tile.classes;
  T* __restrict shift = of.row(kShift);
  T* __restrict dot = of.row(kDot);
  T* __restrict slope = of.row(kSlope);
  for (int64_t i = 0; i < pixels; ++i) shift[i] = dot[i] = slope[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    // the logarithms in `spare` are read one last time
    class_slopes<P, T>(of, OneClass<P, T>(of, c), ClassGrads<P, T>(of, by, c), of.weight(c),
                       of.other(c), of.spare(c));
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T* __restrict u = of.other(c);
    const T* __restrict e = of.x(c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) dot[i] += e[i] * (u[i] - shift[i]);
  }
  const T* __restrict inverse = of.row(kInverse);
  const T* __restrict rest = of.row(kRest);
  const T* __restrict whole = of.row(kWhole);
  const T scale = of.tile.scale;
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) dot[i] *= inverse[i];
  for (int64_t c = 0; c < classes; ++c) {
    const T* __restrict e = of.x(c);
    const T* __restrict u = of.other(c);
    const T* __restrict h = of.spare(c);
    T* __restrict to = out + c * out_pitch;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      const T p = e[i] * inverse[i];
      T found = p * ((u[i] - shift[i]) - dot[i]);  // in this order nothing cancels
      if constexpr (kLogs) {
        const T q = (e[i] == T(1) ? rest[i] : whole[i] - e[i]) * inverse[i];
        found += p * (slope[i] - h[i]) - q * h[i];
      }
      to[i] = scale * found;
    }
  }
}

// dL/dx of one class of a sigmoid or of probabilities, at most with a log-loss.
template <class P, class T>
inline void few_gradients(const P of, const OneClass<P, T> one, const ClassGrads<P, T> g,
                          const T* __restrict weight, T* __restrict to) {
  constexpr bool kLogs = P::kExtra == kLogLoss;
  const T a = g.by[0] - g.by[2], b = g.by[1] - g.by[3], scale = of.tile.scale;
  const T missed = kLogs ? g.by[4] : T(0), alarm = kLogs ? g.by[5] : T(0);
  const int64_t pixels = of.tile.pixels;
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) {
    const Outcome<T> own = one.slope_at(i);
    const T t = one.target_at(i), u = T(1) - t;
    T found = t * a + u * b;
    if constexpr (P::kActivation == Activation::kNone) {
      if constexpr (kLogs) found += alarm * u / floored(own.q) - missed * t / floored(own.p);
    } else {
      found *= own.p * own.q;
      if constexpr (kLogs) found += alarm * u * own.p - missed * t * own.q;
      found *= scale;
    }
    to[i] = weight[i] * found;
  }
}

// Gradients that need no other class.
template <Wrt kWrt, class P, class T>
void class_gradients(const P of, const T* by, T* out, int64_t out_pitch) {
  const int64_t pixels = of.tile.pixels;
  const T gamma = of.tile.gamma, spread = of.tile.on - of.tile.off;
  for (int64_t c = 0; c < of.tile.classes; ++c) {
    const OneClass<P, T> one(of, c);
    const ClassGrads<P, T> g(of, by, c);
    const T* __restrict weight = of.weight(c);
    T* __restrict to = out + c * out_pitch;
    if constexpr (kWrt == Wrt::kInput && (P::kExtra == 0 || P::kExtra == kLogLoss)) {
      few_gradients<P, T>(of, one, g, weight, to);
      continue;
    }
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      const Outcome<T> own = one.outcome_at(i);
      const T t = one.target_at(i);
      if constexpr (kWrt == Wrt::kInput) {
        const Slopes<T> s = slopes<P::kActivation, P::kExtra>(own, t, gamma, g.by);
        to[i] = times(weight[i], input_gradient<P::kActivation>(own, s, one.scale));
      } else if constexpr (kWrt == Wrt::kTarget) {
        const T found = target_gradient<P::kActivation, P::kExtra>(own, t, gamma, g.by);
        to[i] = times(weight[i], spread * found);
      } else {
        const T found = weight_gradient<P::kActivation, P::kExtra>(own, t, gamma, g.by);
        const bool removed = weight[i] == T(0) && !(found - found == T(0));
        const bool counts =
            P::kLabels ? one.labels[i] >= 0 : !(of.tile.ignores && one.soft[i] == of.tile.ignored);
        to[i] = counts && !removed ? found : T(0);
      }
    }
  }
}

template <Wrt kWrt, class P, class T>
void tile_gradient(const P of, const T* by, T* out, int64_t out_pitch) {
  clean<P, T>(of, kWrt == Wrt::kWeight);
  if constexpr (P::kSoftmax) exponentials<P, P::kExtra == kEveryExtra, T>(of);
  if constexpr (P::kSoftmax && kWrt == Wrt::kInput) {
    softmax_gradient<P, T>(of, by, out, out_pitch);
  } else {
    class_gradients<kWrt, P, T>(of, by, out, out_pitch);
  }
}

template <class T, Wrt kWrt>
void pixel_gradient_by(const Tile<T>& tile, const T* by, T* out, int64_t out_pitch) {
  const auto body = [&](const auto of) {
    tile_gradient<kWrt, decltype(of), T>(of, by, out, out_pitch);
  };
  if (kWrt == Wrt::kInput && tile.extra == 0) return with_activation<T, 0>(tile, body);
  if (kWrt == Wrt::kInput && tile.extra == kLogLoss) {
    return with_activation<T, kLogLoss>(tile, body);
  }
  return with_activation<T, kEveryExtra>(tile, body);
}

template <class T>
void pixel_gradient(const Tile<T>& tile, Wrt wrt, const T* by, T* out, int64_t out_pitch) {
  switch (wrt) {
    case Wrt::kInput: return pixel_gradient_by<T, Wrt::kInput>(tile, by, out, out_pitch);
    case Wrt::kTarget: return pixel_gradient_by<T, Wrt::kTarget>(tile, by, out, out_pitch);
    default: return pixel_gradient_by<T, Wrt::kWeight>(tile, by, out, out_pitch);
  }
}

template <class T>
constexpr PixelKernels<T> pixel_kernels() {
  return {stage_pixels<T>,  unstage_pixels<T>, stage_labels, pixel_sums<T>, nullptr, 0,
          pixel_gradient<T>};
}

}  // namespace
}  // namespace customloss::cpu
