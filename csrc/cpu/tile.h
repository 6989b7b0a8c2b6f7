// What one instruction set has to offer where the classes of a pixel are read together: loops over
// a tile of pixels, staged class by class (../pixel.h has the maths).
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../pixel.h"

namespace customloss::cpu {

// Rows of a tile that hold one number per pixel.
enum PixelRow : int {
  kLargest,  // max z
  kRest,     // sum of e without one largest
  kWhole,    // 1 + rest
  kInverse,  // 1 / whole
  kMissed,   // -log p of the true class
  kShift,    // u of a largest class
  kDot,      // sum of p (u - shift)
  kSlope,    // sum of h
  kTop,      // the first largest class
  kLive,     // the weight of the pixel, 0 where nothing counts
  kPixelRows,
};

// Arrays of `classes` rows of `pitch` numbers, of which the first `pixels` are used; or of one row
// for all classes (pitch 0).  `labels` is set where the target holds class numbers; where `soft` is
// set too, they are spread out there.
template <class T>
struct Tile {
  int64_t classes, pixels, pitch;
  Activation activation;
  unsigned extra;
  T scale, offset, gamma;
  T* x;                   // logits; overwritten
  const int32_t* labels;  // class numbers, -1 where nothing counts
  T* soft;
  T* weight;  // by class, or null where kLive says it all
  T on, off;  // a class number is t = on or off; a soft t becomes t (on - off) + off
  bool ignores;
  T ignored;         // a soft target that does not count
  T* rows;           // [kPixelRows, pitch]
  T *spare, *other;  // as x
  // where the logits lie: in x, or in memory, for plain_sums() and where nothing is removed
  const T* lies;
  int64_t lies_pitch;
};

template <class T>
struct PixelKernels {
  // to[c * pitch + i] = T(from[c * class_stride + i * pixel_stride])
  void (*stage)(Dtype dtype, const void* from, int64_t class_stride, int64_t pixel_stride,
                int64_t classes, int64_t pixels, T* to, int64_t pitch);
  // the other way, rounded to nearest even
  void (*unstage)(Dtype dtype, const T* from, int64_t pitch, int64_t classes, int64_t pixels,
                  void* to, int64_t class_stride, int64_t pixel_stride);
  // class numbers, -1 for those outside of 0 .. classes-1 and for `ignored`
  void (*stage_labels)(Dtype dtype, const void* from, int64_t stride, int64_t pixels,
                       int64_t classes, bool ignores, int64_t ignored, int32_t* to);
  // what the labels and ignored targets say of kLive, `weight` and `soft`; `weighted`: the first
  // two hold weights already
  void (*settle)(const Tile<T>& tile, bool weighted);
  // to[row * to_pitch + c] += the sums of the tile, rows as in `extra`
  void (*sums)(const Tile<T>& tile, double* to, int64_t to_pitch);
  // The same of a softmax of class numbers with its logits as they are and no sums beside the
  // log-loss and, unless `weighted` by kLive, the decisions; settle() has nothing to do. Null where
  // there are no loops for it, or beyond most_classes.
  void (*plain_sums)(const Tile<T>& tile, bool weighted, double* to, int64_t to_pitch);
  int64_t most_classes;
  // out[c * out_pitch + i] = the gradient by `wrt`; by: [rows, classes]
  void (*gradient)(const Tile<T>& tile, Wrt wrt, const T* by, T* out, int64_t out_pitch);
};

}  // namespace customloss::cpu
