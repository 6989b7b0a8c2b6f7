// The dtypes a kernel reads, without torch's headers.
#pragma once

#include <cstdint>

namespace customloss {

// Integers first, then floats: a dtype >= kFloat16 is floating.
enum class Dtype : int {
  kBool,
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kUInt32,
  kInt32,
  kUInt64,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
};

inline bool is_half(Dtype dtype) { return dtype == Dtype::kFloat16 || dtype == Dtype::kBFloat16; }

inline int dtype_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBool:
    case Dtype::kUInt8:
    case Dtype::kInt8: return 1;
    case Dtype::kUInt16:
    case Dtype::kInt16:
    case Dtype::kFloat16:
    case Dtype::kBFloat16: return 2;
    case Dtype::kUInt32:
    case Dtype::kInt32:
    case Dtype::kFloat32: return 4;
    default: return 8;
  }
}

// The dtypes that class numbers are read in. A bool is a mask, and the wide unsigned dtypes hold
// numbers that int64 does not.
inline bool is_class_number(Dtype dtype) {
  return dtype == Dtype::kUInt8 || dtype == Dtype::kInt8 || dtype == Dtype::kInt16 ||
         dtype == Dtype::kInt32 || dtype == Dtype::kInt64;
}

// body<From>() with the type of class numbers in memory.
template <class Body>
inline auto with_label_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kUInt8: return body.template operator()<uint8_t>();
    case Dtype::kInt8: return body.template operator()<int8_t>();
    case Dtype::kInt16: return body.template operator()<int16_t>();
    case Dtype::kInt32: return body.template operator()<int32_t>();
    default: return body.template operator()<int64_t>();
  }
}

}  // namespace customloss
