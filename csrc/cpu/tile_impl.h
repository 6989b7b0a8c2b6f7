// The loops of tile.h over a filled tile, in plain branch-free C++ that the compiler vectorises
// along the pixels.  Included by isa_*.cpp after tile_class.h.  There is no include guard, on
// purpose; everything is in an anonymous namespace, one copy per instruction set.

namespace customloss::cpu {
namespace {

// ---- a tile whose kind is known -------------------------------------------------------------

// Replaces x by e and fills the rows that a softmax needs; kLogs: those of its logarithms too.
template <class P, bool kLogs, class T>
void exponentials(const P of) {
  const int64_t pixels = of.tile.pixels;
  T* __restrict largest = of.row(kLargest);
  T* __restrict rest = of.row(kRest);
  T* __restrict ties = of.row(kInverse);
  T* __restrict true_loss = of.row(kTrueLoss);
  T* __restrict top = of.row(kTop);
  for (int64_t i = 0; i < pixels; ++i) {
    largest[i] = of.x(0)[i];
    rest[i] = true_loss[i] = T(0);
    ties[i] = top[i] = T(-1);
  }
  for (int64_t c = 1; c < of.tile.classes; ++c) {
    const T* __restrict own = of.x(c);
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) largest[i] = own[i] > largest[i] ? own[i] : largest[i];
  }
  for (int64_t c = 0; c < of.tile.classes; ++c) {
    T* __restrict own = of.x(c);
    T* __restrict log = kLogs && P::kEveryLog ? of.spare(c) : true_loss;
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
    ties[i] = T(1) / whole[i];  // the row is kInverse from here on
    if constexpr (kLogs && (P::kTrueLog || P::kEveryLog)) {
      true_loss[i] += log1p_of(rest[i], ties[i]);
    }
  }
}

// Puts zeros where an element is removed, whose value may be a NaN, and scales the logits of a
// softmax.  `keep`: for a gradient by the weight, which weight 0 does not remove.
template <class P, class T>
void clean(const P of, bool keep) {
  const Tile<T>& tile = of.tile;
  if (tile.lies != tile.x) return;  // nothing is removed
  const T* __restrict live = of.row(kLive);
  for (int64_t c = 0; c < tile.classes; ++c) {
    T* __restrict own = of.x(c);
    const bool by_pixel = P::kSoftmax || tile.weight == nullptr;
    const T* __restrict weight = by_pixel ? live : tile.weight + c * tile.pitch;
    if (keep && tile.labels != nullptr) {
      for (int64_t i = 0; i < tile.pixels; ++i) own[i] = tile.labels[i] < 0 ? T(0) : own[i];
    }
    if (keep) continue;
#pragma omp simd
    for (int64_t i = 0; i < tile.pixels; ++i) own[i] = weight[i] == T(0) ? T(0) : own[i];
    if (tile.labels != nullptr) continue;
    T* __restrict soft = tile.soft + c * tile.pitch;
    const T* __restrict each = of.weight(c);
#pragma omp simd
    for (int64_t i = 0; i < tile.pixels; ++i) soft[i] = each[i] == T(0) ? T(0) : soft[i];
  }
  if (P::kSoftmax && (tile.scale != T(1) || tile.offset != T(0))) {
    for (int64_t c = 0; c < tile.classes; ++c) {
      T* __restrict own = of.x(c);
      for (int64_t i = 0; i < tile.pixels; ++i) own[i] = tile.scale * (own[i] - tile.offset);
    }
  }
}

// Calls body(Pixels<...>{tile}) with the activation of the tile; its sums are those of kExtra.
template <class T, unsigned kExtra, bool kLabels, class Body>
inline void with_activation(const Tile<T>& tile, const Body& body) {
  switch (tile.activation) {
    case Activation::kSoftmax: return body(Pixels<T, Activation::kSoftmax, kExtra, kLabels>{tile});
    case Activation::kSigmoid: return body(Pixels<T, Activation::kSigmoid, kExtra, kLabels>{tile});
    default: return body(Pixels<T, Activation::kNone, kExtra, kLabels>{tile});
  }
}

template <class T, unsigned kExtra, class Body>
inline void with_target(const Tile<T>& tile, const Body& body) {
  static_assert(reads_class_numbers(kExtra));
  tile.soft == nullptr ? with_activation<T, kExtra, true>(tile, body)
                       : with_activation<T, kExtra, false>(tile, body);
}

// A combination of extras gets loops of its own only for float32 logits; everything else shares the
// loops of kEveryExtra.
template <class T, unsigned kExtra, class Body>
inline void with_logits(const Tile<T>& tile, const Body& body) {
  static_assert(!reads_class_numbers(kExtra));
  if constexpr (sizeof(T) == 4) {
    if (tile.activation != Activation::kNone) {
      return tile.activation == Activation::kSoftmax
                 ? body(Pixels<T, Activation::kSoftmax, kExtra, false>{tile})
                 : body(Pixels<T, Activation::kSigmoid, kExtra, false>{tile});
    }
  }
  with_activation<T, kEveryExtra, false>(tile, body);
}

// Only the loops of kEveryExtra know the split form of the focal terms.
template <class T, unsigned kExtra, class Body>
inline void with_focal(const Tile<T>& tile, const Body& body) {
  tile.focal.split ? with_activation<T, kEveryExtra, false>(tile, body)
                   : with_logits<T, kExtra>(tile, body);
}

// The row of `extra` that corresponds to row `every_row` of kEveryExtra, or -1 if there is none.
inline int row_among(unsigned extra, int every_row) {
  for (unsigned one = 1; one <= kEveryExtra; one *= 2) {
    const int first = row_of(kEveryExtra, one), count = rows_of(one) - 4;
    if (every_row < first || every_row >= first + count) continue;
    return extra & one ? row_of(extra, one) + every_row - first : -1;
  }
  return every_row;
}

// ---- forward ------------------------------------------------------------------------------

// Pixels of a float32 sum.  On the narrowest instruction sets a compiler may leave some of these
// loops scalar, so that one lane has all of the additions: hence 64.
#if defined(CUSTOMLOSS_AVX2)
template <class T>
constexpr int64_t kTileRun = kRun<T>;
#else
template <class T>
constexpr int64_t kTileRun = 64;
#endif

template <int kCount, class P, class T>
using IfMoreThan = std::conditional_t<(P::kSums > kCount), T, int>;

// to[row * to_pitch] += the sums of one class over a run of pixels, for every row of the tile.
// Each sum is a variable, because an array does not stay in registers.  Sums that this tile does
// not have are ints nothing is added to, which the compiler drops.
template <class P, class T>
void run_sums(const P of, const OneClass<P, T> one, const T* __restrict weight, int64_t first,
              int64_t last, double* to, int64_t to_pitch) {
  constexpr int kSums = P::kSums;
  static_assert(kMostRows == 19, "a sum was added: it needs variables here, in all four places");
  const Focal<T> focal = of.tile.focal;
  T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  IfMoreThan<4, P, T> s4 = 0;
  IfMoreThan<5, P, T> s5 = 0;
  IfMoreThan<6, P, T> s6 = 0, s7 = 0;
  IfMoreThan<8, P, T> s8 = 0, s9 = 0;
  IfMoreThan<10, P, T> s10 = 0, s11 = 0, s12 = 0, s13 = 0, s14 = 0, s15 = 0, s16 = 0, s17 = 0,
                       s18 = 0;
#define CUSTOMLOSS_ADD(k) \
  if constexpr (k < kSums) s##k += own.row[k < kSums ? k : 0]
#pragma omp simd reduction(+ : s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, \
                               s15, s16, s17, s18)
  for (int64_t i = first; i < last; ++i) {
    const Shares<T, kSums> own = one.shares_at(i, weight[i], focal);
    CUSTOMLOSS_ADD(0);
    CUSTOMLOSS_ADD(1);
    CUSTOMLOSS_ADD(2);
    CUSTOMLOSS_ADD(3);
    CUSTOMLOSS_ADD(4);
    CUSTOMLOSS_ADD(5);
    CUSTOMLOSS_ADD(6);
    CUSTOMLOSS_ADD(7);
    CUSTOMLOSS_ADD(8);
    CUSTOMLOSS_ADD(9);
    CUSTOMLOSS_ADD(10);
    CUSTOMLOSS_ADD(11);
    CUSTOMLOSS_ADD(12);
    CUSTOMLOSS_ADD(13);
    CUSTOMLOSS_ADD(14);
    CUSTOMLOSS_ADD(15);
    CUSTOMLOSS_ADD(16);
    CUSTOMLOSS_ADD(17);
    CUSTOMLOSS_ADD(18);
  }
#undef CUSTOMLOSS_ADD
  const double sums[kMostRows] = {double(s0),  double(s1),  double(s2),  double(s3),  double(s4),
                                  double(s5),  double(s6),  double(s7),  double(s8),  double(s9),
                                  double(s10), double(s11), double(s12), double(s13), double(s14),
                                  double(s15), double(s16), double(s17), double(s18)};
  for (int s = 0; s < kSums; ++s) {
    const int row = P::kExtra == kEveryExtra ? row_among(of.tile.extra, s) : s;
    if (row >= 0) to[row * to_pitch] += sums[s];
  }
}

// Not inlined: if all kinds of tiles were one function, they would compete for its registers.
template <class P, class T>
__attribute__((noinline)) void tile_sums(const P of, double* to, int64_t to_pitch) {
  clean<P, T>(of, false);
  if constexpr (P::kSoftmax) exponentials<P, true, T>(of);
  for (int64_t c = 0; c < of.tile.classes; ++c) {
    const OneClass<P, T> one(of, c);
    const T* weight = of.weight(c);
    for (int64_t first = 0; first < of.tile.pixels; first += kTileRun<T>) {
      const int64_t end = first + kTileRun<T>, last = end < of.tile.pixels ? end : of.tile.pixels;
      run_sums<P, T>(of, one, weight, first, last, to + c, to_pitch);
    }
  }
}

template <class T>
void pixel_sums(const Tile<T>& tile, double* to, int64_t to_pitch) {
  const auto body = [&](const auto of) { tile_sums<decltype(of), T>(of, to, to_pitch); };
  switch (tile.extra) {
    case 0: return with_target<T, 0>(tile, body);
    case kLogLoss: return with_target<T, kLogLoss>(tile, body);
    case kLogLoss | kSupport: return with_target<T, kLogLoss | kSupport>(tile, body);
    case kFocal: return with_focal<T, kFocal>(tile, body);
    case kLogLoss | kFocal: return with_focal<T, kLogLoss | kFocal>(tile, body);
    case kSquares: return with_logits<T, kSquares>(tile, body);
    case kDistance: return with_logits<T, kDistance>(tile, body);
    case kHard: return with_logits<T, kHard>(tile, body);
    case kLogLoss | kHard: return with_logits<T, kLogLoss | kHard>(tile, body);
    default: return with_activation<T, kEveryExtra, false>(tile, body);
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
  bool has_influence() const { return customloss::has_influence(by); }
};

// Writes u and h of one class, times the weight, to the rows `u` and `h`.  The u of a largest class
// also goes to `shift`, and h is added to `slope`.
template <class P, class T>
void class_slopes(const P of, const OneClass<P, T> one, const ClassGrads<P, T> g,
                  const T* __restrict weight, T* __restrict u, T* h) {
  const int64_t pixels = of.tile.pixels;
  const Focal<T> focal = of.tile.focal;
  T* __restrict shift = of.row(kShift);
  T* __restrict slope = of.row(kSlope);
  if (!g.has_influence()) {
    for (int64_t i = 0; i < pixels; ++i) {
      u[i] = T(0);
      shift[i] = one.x[i] == T(1) ? T(0) : shift[i];
      if constexpr (P::kSloped) h[i] = T(0);
    }
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) {
    const Slopes<T> s = one.slopes_at(i, focal, g.by);
    const T own = times(weight[i], s.u);
    u[i] = own;
    shift[i] = one.x[i] == T(1) ? own : shift[i];
    if constexpr (P::kSloped) {
      const T more = times(weight[i], s.h);
      h[i] = more;
      slope[i] += more;
    }
  }
}

// dL/dx of a softmax: first u of every class, then the sums over classes, then each gradient.
template <class P, class T>
void softmax_gradient(const P of, const T* by, T* out, int64_t out_pitch) {
  const int64_t pixels = of.tile.pixels, classes = of.tile.classes;
  T* __restrict shift = of.row(kShift);
  T* __restrict dot = of.row(kDot);
  T* __restrict slope = of.row(kSlope);
  for (int64_t i = 0; i < pixels; ++i) shift[i] = dot[i] = slope[i] = T(0);
  for (int64_t c = 0; c < classes; ++c) {
    // h takes the place of the logarithms in `spare`, which are read here for the last time.
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
      if constexpr (P::kSloped) {
        const T others = select(Flag<T>(e[i] == T(1)), rest[i], whole[i] - e[i]);
        const T q = others * inverse[i];
        found += p * (slope[i] - h[i]) - q * h[i];
      }
      to[i] = scale * found;
    }
  }
}

// Gradients that need no other class: all but that of a softmax by its input.
template <Wrt kWrt, class P, class T>
void class_gradients(const P of, const T* by, T* out, int64_t out_pitch) {
  const int64_t pixels = of.tile.pixels;
  const Focal<T> focal = of.tile.focal;
  for (int64_t c = 0; c < of.tile.classes; ++c) {
    const OneClass<P, T> one(of, c);
    const ClassGrads<P, T> g(of, by, c);
    const T* __restrict weight = of.weight(c);
    T* __restrict to = out + c * out_pitch;
    if (!g.has_influence()) {
      for (int64_t i = 0; i < pixels; ++i) to[i] = T(0);
      continue;
    }
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      if constexpr (kWrt == Wrt::kInput) {
        to[i] = times(weight[i], one.input_gradient_at(i, focal, g.by));
      } else if constexpr (kWrt == Wrt::kTarget) {
        to[i] = times(weight[i], one.target_gradient_at(i, focal, g.by));
      } else {
        to[i] = finite_or_removed<true>(one.weight_gradient_at(i, focal, g.by), weight[i]);
      }
    }
    if (kWrt == Wrt::kWeight) clear_ignored(of.tile, c, to);
  }
}

template <Wrt kWrt, class P, class T>
__attribute__((noinline)) void tile_gradient(const P of, const T* by, T* out, int64_t out_pitch) {
  clean<P, T>(of, kWrt == Wrt::kWeight);
  if constexpr (P::kSoftmax) exponentials<P, (P::kExtra & kFocal) != 0, T>(of);
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
  if constexpr (kWrt == Wrt::kInput) {
    switch (tile.extra) {
      case 0: return with_target<T, 0>(tile, body);
      case kLogLoss: return with_target<T, kLogLoss>(tile, body);
      case kFocal: return with_focal<T, kFocal>(tile, body);
      case kLogLoss | kFocal: return with_focal<T, kLogLoss | kFocal>(tile, body);
      case kSquares: return with_logits<T, kSquares>(tile, body);
      case kDistance: return with_logits<T, kDistance>(tile, body);
      default: break;
    }
  }
  with_activation<T, kEveryExtra, false>(tile, body);
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
  PixelKernels<T> all{};  // without the loops by hand
  all.stage = stage_pixels<T>;
  all.unstage = unstage_pixels<T>;
  all.stage_labels = stage_labels;
  all.settle = settle<T>;
  all.sums = pixel_sums<T>;
  all.gradient = pixel_gradient<T>;
  return all;
}

}  // namespace
}  // namespace customloss::cpu
