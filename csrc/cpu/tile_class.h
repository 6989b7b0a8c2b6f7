// One class of a filled tile (tile.h) whose kind is known at compile time: what its elements add to
// the sums, and their gradients.  Included by isa_*.cpp before tile_impl.h, whose loops run over
// it. There is no include guard, on purpose; everything is in an anonymous namespace, one copy per
// instruction set.

namespace customloss::cpu {
namespace {

// What one element adds to the sums, a number for every row.
template <class T, int kSums>
struct Shares {
  T row[kSums];
};

// A tile whose activation, extra sums and kind of target are known at compile time; kL: the target
// is read as class numbers.
template <class T, Activation kA, unsigned kE, bool kL>
struct Pixels {
  static constexpr Activation kActivation = kA;
  static constexpr unsigned kExtra = kE;
  static constexpr bool kLabels = kL;
  static constexpr bool kSoftmax = kA == Activation::kSoftmax;
  // whether -log p is needed of the true class alone, or of every class
  static constexpr bool kTrueLog = kSoftmax && (kE & ~kSupport) == kLogLoss && kL;
  static constexpr bool kEveryLog = kSoftmax && (kE & (kLogLoss | kFocal)) != 0 && !kTrueLog;
  // whether the gradient has terms in h and k (pixel.h)
  static constexpr bool kSloped = (kE & (kLogLoss | kFocal)) != 0;
  static constexpr int kSums = rows_of(kE);

  const Tile<T>& tile;

  inline T* row(PixelRow which) const { return tile.rows + which * tile.pitch; }
  inline T* x(int64_t c) const { return tile.x + c * tile.pitch; }
  // the logits, which exponentials() replaces by e for a softmax
  inline const T* values(int64_t c) const {
    return kSoftmax ? x(c) : tile.lies + c * tile.lies_pitch;
  }
  inline T* spare(int64_t c) const { return tile.spare + c * tile.pitch; }
  inline T* other(int64_t c) const { return tile.other + c * tile.pitch; }
  inline const T* weight(int64_t c) const {
    return tile.weight ? tile.weight + c * tile.pitch : row(kLive);
  }
};

// One class of a tile, with pointers to the rows that it needs.
template <class P, class T>
struct OneClass {
  const T* __restrict x;
  const T* __restrict soft;
  const int32_t* __restrict labels;
  const T* __restrict rest;
  const T* __restrict whole;
  const T* __restrict inverse;
  const T* __restrict true_loss;
  const T* __restrict top;
  const T* log;  // not __restrict: softmax_gradient() writes over it
  const int32_t cls;
  const Smoothing<T> smoothing;
  const T scale, offset;

  OneClass(const P& of, int64_t c)
      : x(of.values(c)),
        soft(P::kLabels ? nullptr : of.tile.soft + c * of.tile.pitch),
        labels(of.tile.labels),
        rest(of.row(kRest)),
        whole(of.row(kWhole)),
        inverse(of.row(kInverse)),
        true_loss(of.row(kTrueLoss)),
        top(of.row(kTop)),
        log(P::kEveryLog ? of.spare(c) : nullptr),
        cls(static_cast<int32_t>(c)),
        smoothing(of.tile.smoothing),
        scale(of.tile.scale),
        offset(of.tile.offset) {}

  CUSTOMLOSS_HD Target<T> target_at(int64_t i) const {
    if constexpr (P::kLabels) {
      return hard_target(smoothing, labels[i] == cls);
    } else {
      return soft_target(smoothing, soft[i]);
    }
  }
  CUSTOMLOSS_HD Outcome<T> outcome_at(int64_t i) const {
    if constexpr (P::kSoftmax) {
      const T e = x[i];
      // with ?: a number would be read only where it is used, and without masked loads, which the
      // baseline and NEON lack, the loop over pixels would not vectorise
      const T others = select(Flag<T>(e == T(1)), rest[i], whole[i] - e);
      Outcome<T> result(e * inverse[i], others * inverse[i]);
      if constexpr (P::kTrueLog) result.positive = true_loss[i];
      if constexpr (P::kEveryLog) result.positive = true_loss[i] + log[i];
      if constexpr ((P::kExtra & kHard) != 0) {
        result.decided = top[i] == static_cast<T>(cls) ? T(1) : T(0);
      }
      return result;
    } else {
      return outcome<P::kActivation, P::kExtra>(x[i], scale, offset);
    }
  }
  // These are functions because an aggregate that a simd loop passes on itself stays in memory.
  CUSTOMLOSS_HD Shares<T, P::kSums> shares_at(int64_t i, T w, const Focal<T>& focal) const {
    constexpr bool kLogs = (P::kExtra & ~unsigned{kLogLoss}) == 0;
    Shares<T, P::kSums> own;
    const Target<T> target = target_at(i);
    if constexpr (linear(P::kExtra) && (kLogs || !P::kSoftmax)) {
      shares<P::kActivation, P::kExtra>(outcome_at(i), target.times(w), focal, own.row);
    } else {
      shares<P::kActivation, P::kExtra>(outcome_at(i), target, focal, own.row);
      for_each_row<P::kSums>([&](int row) { own.row[row] = times(w, own.row[row]); });
    }
    return own;
  }
  CUSTOMLOSS_HD Slopes<T> slopes_at(int64_t i, const Focal<T>& focal,
                                    const T (&by)[P::kSums]) const {
    return slopes<P::kActivation, P::kExtra>(outcome_at(i), target_at(i), focal, by);
  }
  CUSTOMLOSS_HD T input_gradient_at(int64_t i, const Focal<T>& focal,
                                    const T (&by)[P::kSums]) const {
    const Outcome<T> own = outcome_at(i);
    const Slopes<T> s = slopes<P::kActivation, P::kExtra>(own, target_at(i), focal, by);
    return input_gradient<P::kActivation, P::kExtra>(own, s, scale);
  }
  CUSTOMLOSS_HD T target_gradient_at(int64_t i, const Focal<T>& focal,
                                     const T (&by)[P::kSums]) const {
    const Outcome<T> own = outcome_at(i);
    return target_gradient<P::kActivation, P::kExtra>(own, target_at(i), smoothing, focal, by);
  }
  CUSTOMLOSS_HD T weight_gradient_at(int64_t i, const Focal<T>& focal,
                                     const T (&by)[P::kSums]) const {
    const Outcome<T> own = outcome_at(i);
    return weight_gradient<P::kActivation, P::kExtra>(own, target_at(i), focal, by);
  }
};

}  // namespace
}  // namespace customloss::cpu
