// Makes the header maths of csrc callable from pytest. For tests only: no wheel contains it.
//
//   element.h   exp_minus, probability, share, gradient     one element, float32 and float64
//   pixel.h     logarithms, outcome, shares, slopes         one element of a pixel, all sums
//   score.h     similarity_loss, group_loss                 one group
//   average.h   GroupAverage, CompoundLoss                  all groups
//   layout.h    make_layout                                 any strides to a few loops
//
// Built by tests/support/cpp_build.py through CMake, once for the default instruction set and once
// with FMA, which rounds differently.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "average.h"
#include "element.h"
#include "layout.h"
#include "pixel.h"
#include "score.h"

namespace py = pybind11;

namespace customloss {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Calls body with each flag as a compile-time constant.
template <class Body>
auto with_flag(bool flag, const Body& body) {
  return flag ? body(std::true_type{}) : body(std::false_type{});
}

template <class T>
Array<T> exp_minus_all(const Array<T>& a) {
  Array<T> result(a.size());
  for (py::ssize_t i = 0; i < a.size(); ++i) result.mutable_data()[i] = exp_minus(a.data()[i]);
  return result;
}

// -> [3, n]: p, q, dp/dx
template <class T>
Array<T> probability_all(const Array<T>& x, T scale, T offset, bool sigmoid) {
  const py::ssize_t n = x.size();
  Array<T> result({py::ssize_t{3}, n});
  T* out = result.mutable_data();
  for (py::ssize_t i = 0; i < n; ++i) {
    const Probability<T> found = sigmoid
                                     ? probability<Activation::kSigmoid>(x.data()[i], scale, offset)
                                     : probability<Activation::kNone>(x.data()[i], scale, offset);
    out[i] = found.p;
    out[n + i] = found.q;
    out[2 * n + i] = found.slope;
  }
  return result;
}

// -> [4, n]: the shares of tp, fp, fn, tn; `hard` takes the target as a bool
template <class T>
Array<T> share_all(const Array<T>& p, const Array<T>& q, const Array<T>& t,
                   const std::optional<Array<T>>& w, bool hard) {
  const py::ssize_t n = p.size();
  Array<T> result({py::ssize_t{4}, n});
  T* out = result.mutable_data();
  with_flag(w.has_value(), [&](auto weighted) {
    for (py::ssize_t i = 0; i < n; ++i) {
      const T weight = w ? w->data()[i] : T(1);
      const Share<T> found =
          hard ? share<weighted()>(p.data()[i], q.data()[i], Flag<T>(t.data()[i] != T(0)), weight)
               : share<weighted()>(p.data()[i], q.data()[i], t.data()[i], weight);
      out[i] = found.tp;
      out[n + i] = found.fp;
      out[2 * n + i] = found.fn;
      out[3 * n + i] = found.tn;
    }
  });
  return result;
}

// prob: [3, n] as probability_all returns it; by: the loss's derivatives by tp, fp, fn, tn
template <class T>
Array<T> gradient_all(int64_t wrt, const Array<T>& prob, const Array<T>& t,
                      const std::optional<Array<T>>& w, const std::array<double, 4>& by,
                      bool hard) {
  const py::ssize_t n = t.size();
  Array<T> result(n);
  const auto run = [&](auto which) {
    constexpr Wrt kWrt = decltype(which)::value;
    const Coefficient<T> g = coefficient<T>(kWrt, by[0], by[1], by[2], by[3]);
    with_flag(w.has_value(), [&](auto weighted) {
      for (py::ssize_t i = 0; i < n; ++i) {
        const Probability<T> own{prob.data()[i], prob.data()[n + i], prob.data()[2 * n + i]};
        const T weight = w ? w->data()[i] : T(1);
        result.mutable_data()[i] =
            hard ? gradient<kWrt, weighted()>(own, Flag<T>(t.data()[i] != T(0)), weight, g)
                 : gradient<kWrt, weighted()>(own, t.data()[i], weight, g);
      }
    });
  };
  switch (static_cast<Wrt>(wrt)) {
    case Wrt::kInput: run(std::integral_constant<Wrt, Wrt::kInput>{}); break;
    case Wrt::kTarget: run(std::integral_constant<Wrt, Wrt::kTarget>{}); break;
    case Wrt::kWeight: run(std::integral_constant<Wrt, Wrt::kWeight>{}); break;
  }
  return result;
}

// ---- pixel.h: every sum, of a sigmoid or of probabilities ---------------------------------------

template <class T, class Function>
Array<T> each(const Array<T>& values, const Function& function) {
  Array<T> result(values.size());
  for (py::ssize_t i = 0; i < values.size(); ++i) {
    result.mutable_data()[i] = function(values.data()[i]);
  }
  return result;
}

// Calls body with the activation as a compile-time constant.
template <class Body>
void with_sigmoid(bool sigmoid, const Body& body) {
  sigmoid ? body(std::integral_constant<Activation, Activation::kSigmoid>{})
          : body(std::integral_constant<Activation, Activation::kNone>{});
}

// -> [5, n]: p, q, -log p, -log q, whether p > 1/2
template <class T>
Array<T> outcome_all(const Array<T>& x, T scale, T offset, bool sigmoid) {
  const py::ssize_t n = x.size();
  Array<T> result({py::ssize_t{5}, n});
  T* out = result.mutable_data();
  with_sigmoid(sigmoid, [&](auto activation) {
    for (py::ssize_t i = 0; i < n; ++i) {
      const auto found = outcome<activation(), kEveryExtra>(x.data()[i], scale, offset);
      const T own[] = {found.p, found.q, found.positive, found.negative,
                       static_cast<T>(found.decided)};
      for (int row = 0; row < 5; ++row) out[row * n + i] = own[row];
    }
  });
  return result;
}

template <class T>
Smoothing<T> smoothing_of(const std::array<T, 4>& from) {
  return {from[0], from[1], from[2], from[3]};
}

// smoothing: on, off, log_on, log_off -> [kMostRows, n]
template <class T>
Array<T> shares_all(const Array<T>& x, const Array<T>& t, T gamma, bool sigmoid, bool split,
                    const std::array<T, 4>& smoothing) {
  const py::ssize_t n = x.size();
  Array<T> result({py::ssize_t{kMostRows}, n});
  with_sigmoid(sigmoid, [&](auto activation) {
    for (py::ssize_t i = 0; i < n; ++i) {
      T own[kMostRows];
      const auto found = outcome<activation(), kEveryExtra>(x.data()[i], T(1), T(0));
      shares<activation(), kEveryExtra>(found, soft_target(smoothing_of(smoothing), t.data()[i]),
                                        {gamma, split}, own);
      for (int row = 0; row < kMostRows; ++row) result.mutable_data()[row * n + i] = own[row];
    }
  });
  return result;
}

// by: the loss's derivatives by every sum
template <class T>
Array<T> pixel_gradient_all(int64_t wrt, const Array<T>& x, const Array<T>& t, T gamma,
                            const std::array<double, kMostRows>& by, bool sigmoid, bool split,
                            const std::array<T, 4>& smoothing) {
  const py::ssize_t n = x.size();
  Array<T> result(n);
  T g[kMostRows];
  for (int row = 0; row < kMostRows; ++row) g[row] = static_cast<T>(by[row]);
  if (static_cast<Wrt>(wrt) != Wrt::kWeight) {
    double first[4];
    combine_grads(static_cast<Wrt>(wrt), kEveryExtra, [&](int row) { return by[row]; }, first);
    for (int row = 0; row < 4; ++row) g[row] = static_cast<T>(first[row]);
  }
  with_sigmoid(sigmoid, [&](auto activation) {
    constexpr Activation kA = activation();
    for (py::ssize_t i = 0; i < n; ++i) {
      const Smoothing<T> smoothed = smoothing_of(smoothing);
      const Target<T> own = soft_target(smoothed, t.data()[i]);
      const Focal<T> focal{gamma, split};
      const auto found = outcome<kA, kEveryExtra>(x.data()[i], T(1), T(0));
      T& to = result.mutable_data()[i];
      switch (static_cast<Wrt>(wrt)) {
        case Wrt::kInput:
          to = input_gradient<kA>(found, slopes<kA, kEveryExtra>(found, own, focal, g), T(1));
          break;
        case Wrt::kTarget:
          to = target_gradient<kA, kEveryExtra>(found, own, smoothed, focal, g);
          break;
        default: to = weight_gradient<kA, kEveryExtra>(found, own, focal, g);
      }
    }
  });
  return result;
}

template <class T>
void bind_pixel(py::module_& m) {
  m.def(
      "log_of", [](const Array<T>& y) { return each(y, [](T v) { return log_of(v); }); },
      py::arg("y").noconvert());
  m.def(
      "log1p_of",
      [](const Array<T>& u) { return each(u, [](T v) { return log1p_of(v, T(1) / (T(1) + v)); }); },
      py::arg("u").noconvert());
  m.def(
      "power_of",
      [](const Array<T>& base, T exponent) {
        return each(base, [=](T v) { return power_of(v, exponent); });
      },
      py::arg("base").noconvert(), py::arg("exponent"));
  m.def("outcome", &outcome_all<T>, py::arg("x").noconvert(), py::arg("scale") = 1.0,
        py::arg("offset") = 0.0, py::arg("sigmoid") = true);
  m.def("shares", &shares_all<T>, py::arg("x").noconvert(), py::arg("t").noconvert(),
        py::arg("gamma") = 2.0, py::arg("sigmoid") = true, py::arg("split") = false,
        py::arg("smoothing") = std::array<T, 4>{1, 0, 1, 0});
  m.def("pixel_gradient", &pixel_gradient_all<T>, py::arg("wrt"), py::arg("x").noconvert(),
        py::arg("t").noconvert(), py::arg("gamma"), py::arg("by"), py::arg("sigmoid") = true,
        py::arg("split") = false, py::arg("smoothing") = std::array<T, 4>{1, 0, 1, 0});
}

template <class T>
void bind_element(py::module_& m) {
  m.def("exp_minus", &exp_minus_all<T>, py::arg("a").noconvert());
  m.def("probability", &probability_all<T>, py::arg("x").noconvert(), py::arg("scale") = 1.0,
        py::arg("offset") = 0.0, py::arg("sigmoid") = true);
  m.def("share", &share_all<T>, py::arg("p").noconvert(), py::arg("q").noconvert(),
        py::arg("t").noconvert(), py::arg("w").noconvert() = py::none(), py::arg("hard") = false);
  m.def("gradient", &gradient_all<T>, py::arg("wrt"), py::arg("prob").noconvert(),
        py::arg("t").noconvert(), py::arg("w").noconvert() = py::none(),
        py::arg("by") = std::array<double, 4>{}, py::arg("hard") = false);
}

// (tp_weight, fp_weight, fn_weight, smooth, smooth_denominator, gamma, log_floor, link, absent)
using ScoreArguments =
    std::tuple<double, double, double, double, double, double, double, int64_t, int64_t>;

Score score_of(const ScoreArguments& from) {
  const auto& [tp, fp, fn, smooth, smooth_denominator, gamma, log_floor, link, absent] = from;
  return {tp,
          fp,
          fn,
          smooth,
          smooth_denominator,
          gamma,
          log_floor,
          static_cast<Link>(link),
          static_cast<Absent>(absent)};
}

using GroupResult = std::tuple<double, std::array<double, 4>, double, bool>;

// -> value, gradient by the sums, support, whether it counts
GroupResult group(const ScoreArguments& score, const std::array<double, 4>& sums) {
  const GroupLoss loss = group_loss(score_of(score), {sums[0], sums[1], sums[2], sums[3]});
  return {loss.value,
          {loss.grad.tp, loss.grad.fp, loss.grad.fn, loss.grad.tn},
          loss.support,
          loss.counted};
}

constexpr double kUnwritten = std::numeric_limits<double>::quiet_NaN();

Scoring scoring_of(const ScoreArguments& score, int64_t over_classes, int64_t over_rest) {
  return {score_of(score), static_cast<Average>(over_classes), static_cast<Reduction>(over_rest)};
}

// Room for as many losses as the average and the reduction leave.
std::vector<double> losses_of(const Scoring& scoring, int64_t samples, int64_t classes) {
  if (scoring.reduction != Reduction::kNone) return {kUnwritten};
  const int64_t kept = scoring.average == Average::kNone ? classes : 1;
  return std::vector<double>(samples * kept, kUnwritten);
}

// sums: [4, samples, classes] -> losses, gradient by the sums
std::pair<std::vector<double>, Array<double>> average(const ScoreArguments& score,
                                                      int64_t over_classes, int64_t over_rest,
                                                      const Array<double>& sums) {
  const int64_t samples = sums.shape(1), classes = sums.shape(2);
  const Scoring scoring = scoring_of(score, over_classes, over_rest);
  Array<double> grads({py::ssize_t{4}, sums.shape(1), sums.shape(2)});
  std::copy(sums.data(), sums.data() + sums.size(), grads.mutable_data());
  std::vector<double> loss = losses_of(scoring, samples, classes);
  GroupAverage(scoring, samples, classes, grads.mutable_data()).run(loss.data());
  return {loss, grads};
}

// factors: score_weight, log_pos, log_neg, focal_pos, focal_neg, positives, negatives, support
// sums: [rows of `extra`, samples, classes], class_weight: [2, classes] -> losses, gradient
std::pair<std::vector<double>, Array<double>> compound(
    const ScoreArguments& score, int64_t over_classes, int64_t over_rest, unsigned extra,
    const std::array<double, 8>& factors, const Array<double>& sums,
    const std::optional<Array<double>>& class_weight) {
  const int64_t samples = sums.shape(1), classes = sums.shape(2);
  const Scoring scoring = scoring_of(score, over_classes, over_rest);
  const auto& [score_weight, log_pos, log_neg, focal_pos, focal_neg, positives, negatives,
               support] = factors;
  const Pointwise pointwise{
      {score_weight, log_pos, log_neg, focal_pos, focal_neg, positives, negatives, support},
      row_of(extra, kLogLoss),
      row_of(extra, kFocal),
      row_of(extra, kSupport)};
  Array<double> grads({sums.shape(0), sums.shape(1), sums.shape(2)});
  std::fill_n(grads.mutable_data(), grads.size(), kUnwritten);
  std::vector<double> loss = losses_of(scoring, samples, classes);
  CompoundLoss(scoring, pointwise, sums.shape(0), samples, classes,
               class_weight ? class_weight->data() : nullptr)
      .run(sums.data(), grads.mutable_data(), loss.data(), static_cast<int64_t>(loss.size()));
  return {loss, grads};
}

py::tuple axis_of(const Axis& axis) {
  return py::make_tuple(axis.size, std::vector<int64_t>(axis.stride, axis.stride + kOperands));
}

// An operand is (sizes, strides) or None. Returns a dict, or None where too many axes are left.
py::object layout(
    const std::vector<std::optional<std::pair<std::vector<int64_t>, std::vector<int64_t>>>>&
        operands,
    bool per_sample, bool per_class) {
  if (operands.size() > kOperands) throw std::invalid_argument("more operands than there are");
  std::array<Strided, kOperands> strided;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!operands[i]) continue;
    const auto& [sizes, strides] = *operands[i];
    strided[i] = {sizes.data(), strides.data(), static_cast<int>(sizes.size())};
  }
  Layout found;
  if (!make_layout(strided, per_sample, per_class, &found)) return py::none();
  py::list reduced;
  for (int i = 0; i < found.reduced_axes; ++i) reduced.append(axis_of(found.reduced[i]));
  return py::dict(py::arg("sample") = axis_of(found.sample), py::arg("cls") = axis_of(found.cls),
                  py::arg("reduced") = reduced, py::arg("reduced_size") = found.reduced_size,
                  py::arg("groups") = found.groups(), py::arg("interleaved") = found.interleaved());
}

}  // namespace
}  // namespace customloss

PYBIND11_MODULE(CUSTOMLOSS_MODULE, m) {
  using namespace customloss;
  m.doc() = "The header maths of csrc, for tests.";
  bind_element<float>(m);
  bind_element<double>(m);
  bind_pixel<float>(m);
  bind_pixel<double>(m);
  m.def("rows_of", [](unsigned extra) { return rows_of(extra); });
  m.def("row_of", [](unsigned extra, unsigned one) { return row_of(extra, one); });
  m.def("group", &group, py::arg("score"), py::arg("sums"));
  m.def("average", &average, py::arg("score"), py::arg("average"), py::arg("reduction"),
        py::arg("sums").noconvert());
  m.def("compound", &compound, py::arg("score"), py::arg("average"), py::arg("reduction"),
        py::arg("extra"), py::arg("factors"), py::arg("sums").noconvert(),
        py::arg("class_weight").noconvert() = py::none());
  m.def("layout", &layout, py::arg("operands"), py::arg("per_sample"), py::arg("per_class"));
  m.attr("max_reduced") = kMaxReduced;
}
