// The functions that each instruction set provides for pixels, whose classes are read together:
// loops over a tile of pixels, staged class by class.  ../pixel.h has the maths, block.h the
// functions for single elements.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../pixel.h"
#include "ahead.h"

namespace customloss::cpu {

// Rows of a tile that hold one number per pixel.
enum PixelRow : int {
  kLargest,   // max z
  kRest,      // sum of e without one largest
  kWhole,     // 1 + rest
  kInverse,   // 1 / whole
  kTrueLoss,  // -log p of the true class
  kShift,     // u of a largest class
  kDot,       // sum of p (u - shift)
  kSlope,     // sum of h
  kTop,       // the first largest class
  kLive,      // weight of the pixel, or 1 with weights by class; 0 where nothing counts
  kPixelRows,
};

// Whether the plain loops for these extra sums read class numbers as they are.  The others need
// them spread out in `soft`, class by class.
constexpr bool reads_class_numbers(unsigned extra) {
  return extra == 0 || (extra & ~unsigned{kSupport}) == kLogLoss;
}

// Arrays have `classes` rows of `pitch` numbers, of which the first `pixels` are used.  `labels` is
// set where the target holds class numbers; if `soft` is set too, it holds them as a row of 0 and 1
// for each class.
template <class T>
struct Tile {
  int64_t classes, pixels, pitch;
  Activation activation;
  unsigned extra;
  T scale, offset;
  Focal<T> focal;
  T* x;                   // logits; overwritten
  const int32_t* labels;  // class numbers, -1 where nothing counts
  T* soft;
  T* weight;  // a weight per class and pixel, or null where kLive is the weight of all classes
  Smoothing<T> smoothing;
  Ignored ignored;   // values of a soft target that do not count
  bool ignores_nan;  // whether a soft target that is NaN does not count
  T* rows;           // [kPixelRows, pitch]
  T *spare, *other;  // scratch, of the shape of x
  // Where the logits are read: in x, or in the tensor itself for headline_sums(),
  // headline_gradient() and where nothing is removed.
  const T* lies;
  int64_t lies_pitch;
  const uint8_t*
      hard;  // the bytes of a bool target in the tensor, for mask_sums(), mask_gradient()
  int64_t hard_pitch;
};

template <class T>
struct PixelKernels {
  // to[c * pitch + i] = T(from[c * class_stride + i * pixel_stride])
  void (*stage)(Dtype dtype, const void* from, int64_t class_stride, int64_t pixel_stride,
                int64_t classes, int64_t pixels, T* to, int64_t pitch);
  // the other way, rounded to nearest even
  void (*unstage)(Dtype dtype, const T* from, int64_t pitch, int64_t classes, int64_t pixels,
                  void* to, int64_t class_stride, int64_t pixel_stride);
  // to[i] = the class number, or -1 if it is outside of 0 .. classes-1 or ignored.  Returns whether
  // any of them is outside and not ignored.
  bool (*stage_labels)(Dtype dtype, const void* from, int64_t stride, int64_t pixels,
                       int64_t classes, const Ignored& ignored, int32_t* to);
  // Completes kLive, `weight` and `soft` from the labels and the ignored targets.  If `weighted`,
  // `weight` (or kLive, if `weight` is null) already holds the weights.
  void (*settle)(const Tile<T>& tile, bool weighted);
  // to[row * to_pitch + c] += the sums of the tile, with the rows of `extra`
  void (*sums)(const Tile<T>& tile, double* to, int64_t to_pitch);
  // The same for a softmax of class numbers with scale 1 and offset 0, whose only extra sums are
  // the support, the log-loss and either a focal loss of targets that are not smoothed or, unless
  // `weighted` by kLive, the decisions.  It needs no settle().  Null for doubles, and where the
  // instruction set has no such loops; they take at most most_classes classes.
  void (*headline_sums)(const Tile<T>& tile, bool weighted, double* to, int64_t to_pitch);
  // The gradient by the logits of such a softmax, whose only extra sums are the log-loss and a
  // focal loss.
  void (*headline_gradient)(const Tile<T>& tile, bool weighted, const T* by, T* out,
                            int64_t out_pitch);
  int64_t most_classes;
  // The sums of a sigmoid with scale 1 and offset 0 of bool targets that all weigh 1, whose extra
  // sums are the support and one of the log-loss and a focal loss with an exponent of 1, 2, 3 or 4;
  // and its gradient by the logits. They need no settle(). Null as above.
  void (*mask_sums)(const Tile<T>& tile, double* to, int64_t to_pitch);
  void (*mask_gradient)(const Tile<T>& tile, const T* by, T* out, int64_t out_pitch);
  // out[c * out_pitch + i] = the gradient by `wrt`; by: the gradient by the sums, [rows, classes]
  void (*gradient)(const Tile<T>& tile, Wrt wrt, const T* by, T* out, int64_t out_pitch);
};

struct TileSet {
  const PixelKernels<float>* f32;
  const PixelKernels<double>* f64;
};

extern const PixelKernels<float> kTilesF32Baseline;
extern const PixelKernels<double> kTilesF64Baseline;
#if defined(__x86_64__) || defined(_M_X64)
extern const PixelKernels<float> kTilesF32Avx2, kTilesF32Avx512;
extern const PixelKernels<double> kTilesF64Avx2, kTilesF64Avx512;
#elif defined(__AARCH64EL__)
extern const PixelKernels<float> kTilesF32Neon;
#endif

}  // namespace customloss::cpu
