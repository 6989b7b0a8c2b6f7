"""The tests notice every one-line fault that is put into the source on purpose.

A mutant is a copy of the tree with one line changed; changed C++ is compiled again with g++. A
small part of the default suite runs on the copy and has to fail. It first has to pass on an
unchanged copy, so that a failure is caused by the mutant and not by the copying.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from paths import ROOT

TORCH = Path(torch.__file__).parent
FLAGS = (
    "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-fopenmp-simd", "-DTORCH_TARGET_VERSION=0x020a000000000000",
    f"-isystem{TORCH / 'include'}",
)  # fmt: skip
# The files that run on a mutant, up to the first failure. They take seconds.
KILLERS = (
    "values/test_elements_values.py", "values/test_elements_gradients.py",
    "values/test_pixels_values.py", "values/test_pixels_numerics.py",
    "values/test_degenerate.py", "values/test_reference.py",
    "ops/test_errors.py", "ops/test_functorch.py", "values/test_elements_numerics.py",
    "values/test_memory.py", "values/test_determinism.py", "backends/test_backend_choice.py",
    "ops/test_sums_values.py", "values/test_log_floor.py", "losses/test_infinite_and_hidden.py",
    "losses/test_weights_on_every_route.py", "values/test_which_count.py",
    "values/test_masks_with_logs.py",
)  # fmt: skip
# Tests in these files that start processes or take long are left out.
SPARED = ("error_budget", "instruction_set", "peak", "environment", "many_small", "triton")

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="needs the source tree, not an installed package"
)


class Mutant(NamedTuple):
    file: str
    line: str  # occurs once, and is replaced by `fault`
    fault: str


MUTANTS = {
    # ---- csrc: one element
    "weight 0 no longer hides a NaN": Mutant(
        "csrc/element.h", "return select(nonzero(w), w * value, T(0));", "return w * value;"
    ),
    "the weight is forgotten": Mutant(
        "csrc/element.h", "return select(nonzero(w), w * value, T(0));",
        "return select(nonzero(w), value, T(0));",
    ),
    "fp and fn are swapped, soft": Mutant(
        "csrc/element.h", "T u = T(1) - t;\n  return {", "T u = t;\n  return {"
    ),
    "the slope forgets the scale": Mutant(
        "csrc/element.h", "scale * (small * big)", "small * big"
    ),
    "the offset has the wrong sign": Mutant(
        "csrc/element.h", "scale * (x - offset)", "scale * (x + offset)"
    ),
    "1 - p instead of sigmoid(-x)": Mutant(
        "csrc/element.h", "negative ? big : small,", "T(1) - (negative ? small : big),"
    ),
    "the gradient by the input ignores fn": Mutant(
        "csrc/element.h", "return {T(tp - fn), T(fp - tn), T(0), T(0)};",
        "return {T(tp), T(fp - tn), T(0), T(0)};",
    ),
    "the gradient by the input ignores tn": Mutant(
        "csrc/element.h", "return {T(tp - fn), T(fp - tn), T(0), T(0)};",
        "return {T(tp - fn), T(fp), T(0), T(0)};",
    ),
    # ---- csrc: the score
    "beta weighs fp": Mutant(
        "csrc/score.h",
        "const double wrong = score.fp_weight * sums.fp + score.fn_weight * sums.fn;",
        "const double wrong = score.fn_weight * sums.fp + score.fp_weight * sums.fn;",
    ),
    "smooth is forgotten": Mutant(
        "csrc/score.h", "const double hit = true_hit + score.smooth;",
        "const double hit = true_hit;",
    ),
    "the denominator has the smooth of the numerator": Mutant(
        "csrc/score.h", "whole = true_hit + wrong + score.smooth_denominator;",
        "whole = true_hit + wrong + score.smooth;",
    ),
    "0 / 0 is not caught": Mutant("csrc/score.h", "if (whole == 0.0) {", "if (whole < 0.0) {"),
    "skipped groups are counted": Mutant(
        "csrc/score.h", "loss.counted = false;", "loss.counted = true;"
    ),
    "support has no gradient": Mutant(
        "csrc/score.h", "if (average == Average::kWeighted) {", "if (false) {"
    ),
    "penalize divides by everything": Mutant(
        "csrc/score.h", "const double negatives = sums.fp + sums.tn;",
        "const double negatives = sums.fp + sums.tn + 1.0;",
    ),
    "the log is not floored": Mutant(
        "csrc/score.h", "if (similarity < score.log_floor) {", "if (false) {"
    ),
    "a floored probability has a slope": Mutant(
        "csrc/pixel.h", "return select(below, T(0), factor / probability);",
        "return factor / floored(probability);",
    ),
    "the mean over samples counts all of them": Mutant(
        "csrc/average.h", "counted += mean.weight != 0.0;", "counted += 1;"
    ),
    "the weight of a class is forgotten where its support moves the average": Mutant(
        "csrc/score.h", "const double shift = outer * class_weight * (loss.value - mean)",
        "const double shift = outer * (loss.value - mean)",
    ),
    "the count of a pointwise loss has no gradient": Mutant(
        "csrc/score.h", "infinite ? 0.0 : -share * all.ratio();", "infinite ? 0.0 : 0.0;",
    ),
    "an infinite loss changes with what is counted": Mutant(
        "csrc/score.h", "const bool infinite = all.numerator > kMaxDouble;",
        "const bool infinite = false;",
    ),
    "the weight of a score that stands alone is forgotten": Mutant(
        "customloss/losses/route.py", "if score_weight == 1 else score_weight * result",
        "if score_weight == 1 else result",
    ),
    "a pointwise loss is added once where every sample has its own": Mutant(
        "csrc/average.h",
        "scoring_.reduction == Reduction::kNone ? classes_ : groups", "groups",
    ),
    # ---- Python: from the sums to the loss
    "a class weight of 0 hides no NaN": Mutant(
        "customloss/reference/losses.py",
        "kept = torch.where(hidden, torch.ones_like(sums), sums)", "kept = sums",
    ),
    # ---- groups on which the loss does not depend
    "a NaN of a hidden class reaches a gradient, planar": Mutant(
        "csrc/cpu/confusion.cpp", "if (influence) {", "if (influence || !influence) {"
    ),
    "a NaN of a hidden class reaches a gradient, interleaved": Mutant(
        "csrc/cpu/confusion.cpp", "if (!all_influence) {",
        "if (!all_influence && all_influence) {",
    ),
    "a NaN of a hidden class reaches a gradient, pixels": Mutant(
        "csrc/cpu/tile_impl.h", "if (!g.has_influence()) {\n      for", "if (false) {\n      for"
    ),
    "a NaN target of a hidden class reaches a softmax": Mutant(
        "csrc/cpu/tile_impl.h", "if (!g.has_influence()) {\n    for", "if (false) {\n    for"
    ),
    "a NaN of a hidden class reaches a gradient of the reference": Mutant(
        "customloss/reference/gradients.py", "return (by_sums == 0).all(0) & ~",
        "return (by_sums != by_sums).all(0) & ~",
    ),
    "a NaN of a hidden class reaches a transform": Mutant(
        "customloss/losses/route.py",
        "return request._replace(data=data, classes=kept[0], pointwise_classes=kept[1])",
        "return request",
    ),
    # ---- csrc: the walk
    "size-1 dimensions of a weight keep their stride": Mutant(
        "csrc/layout.h", "if (rank < 0 || own < 0 || sizes[own] == 1) return 0;",
        "if (rank < 0 || own < 0) return 0;",
    ),
    "axes are merged where only the input allows it": Mutant(
        "csrc/layout.h", "for (int k = 0; k < kOperands; ++k) {\n    if (outer",
        "for (int k = 0; k < 1; ++k) {\n    if (outer",
    ),
    "the last band is one row short": Mutant(
        "csrc/cpu/confusion.cpp", "last_row = std::min(bands.rows, first_row + bands.band_rows);",
        "last_row = std::min(bands.rows - 1, first_row + bands.band_rows);",
    ),
    "the last tile of columns is lost": Mutant(
        "csrc/cpu/confusion.cpp", "tiles = ceil_div(columns, tile_columns);",
        "tiles = columns / tile_columns;",
    ),
    "flushed columns are not cleared": Mutant(
        "csrc/cpu/confusion.cpp",
        "flush_columns(fold(), sums_, kPitch, to_, to_pitch_);\n    clear();",
        "flush_columns(fold(), sums_, kPitch, to_, to_pitch_);\n    std::fill_n(adds_, fold_, 0);",
    ),
    "a cursor forgets to go back": Mutant(
        "csrc/cpu/walk.h", "place_.move(layout_.reduced[axis], -index_[axis]);", ";"
    ),
    "dense rows are assumed": Mutant(
        "csrc/cpu/walk.h", "(columns == 1 || column.stride[operand] == 1) &&", "(true) &&"
    ),
    "halves are rounded down": Mutant(
        "csrc/cpu/block_impl.h", "0xfffu + ((magnitude >> 13) & 1u)", "0u"
    ),
    # ---- csrc: the classes of a pixel together
    "a softmax forgets the other classes": Mutant(
        "csrc/cpu/tile_impl.h", "dot[i] += e[i] * (u[i] - shift[i]);", "dot[i] += T(0);"
    ),
    "ties of a largest class are lost": Mutant(
        "csrc/cpu/tile_impl.h", "rest[i] += ties[i];", "rest[i] += T(0);"
    ),
    "the softmax slope forgets the scale": Mutant(
        "csrc/cpu/tile_impl.h", "to[i] = scale * found;", "to[i] = found;"
    ),
    "the class after the last is one": Mutant(
        "csrc/cpu/tile_fill.h", "(low_of(own) < most)", "(low_of(own) <= most)"
    ),
    "ignore_index is forgotten": Mutant(
        "csrc/cpu/tile_fill.h", "left_out |= (low_of(own)", "left_out |= (~low_of(own)"
    ),
    "a class number that is none goes unnoticed": Mutant(
        "csrc/cpu/tile_fill.h", "return unknown != 0;", "return false;"
    ),
    "a NaN that is ignored counts": Mutant(
        "csrc/cpu/tile_fill.h", "soft[i] == soft[i] ? to[i] : T(0)", "to[i]"
    ),
    "smoothing takes and does not give": Mutant(
        "csrc/cpu/pixels.cpp", "tile_.smoothing = rounded<T>(options.smoothing);",
        "tile_.smoothing = {T(1), T(0), T(1), T(0)};",
    ),
    "what is ignored keeps its weight": Mutant(
        "csrc/cpu/tile_fill.h", "live[i] = labels[i] < 0 ? T(0) : live[i];", "live[i] = live[i];"
    ),
    "the last tile of a unit is dropped": Mutant(
        "csrc/cpu/pixels.cpp", "const int64_t pixels = std::min(cut.tile, last - i);",
        "const int64_t pixels = cut.tile; if (i + pixels > last) break;",
    ),
    "samples share their sums": Mutant(
        "csrc/cpu/pixels.cpp", "row * samples + unit / cut.units", "row * samples + 0 * unit"
    ),
    "the last logarithms of a mask are lost": Mutant(
        "csrc/cpu/mask.h", "if (factors_ > 0) take_logarithms();", ""
    ),
    "0 times an infinite focal loss is a NaN": Mutant(
        "csrc/cpu/mask.h", "only(unequal(r, floats(0.0f)),", "only(all_lanes(),"
    ),
    "float16 is read as bfloat16": Mutant(
        "csrc/cpu/hard.h", "sum_hard_of(HalfLogits<true>", "sum_hard_of(HalfLogits<false>"
    ),
    "a float target by hand misses with p": Mutant(
        "csrc/cpu/soft.h", "fn = fused(t[u], q[u], fn)", "fn = fused(t[u], p[u], fn)"
    ),
    "a tail by hand counts what is not there": Mutant(
        "csrc/cpu/soft.h", "only(valid, one - t[0])", "one - t[0]"
    ),
    "a tail of masks by hand counts what is not there": Mutant(
        "csrc/cpu/hard.h", "d[0] = only(valid, d[0]);\n    of.add", "of.add"
    ),
    "the slope by hand is that of p alone": Mutant(
        "csrc/cpu/hard.h", "e[u] = e[u] * c[u] * c[u]", "e[u] = e[u] * c[u]"
    ),
    "the logarithm of 2 in float64 is a float32 one": Mutant(
        "csrc/cpu/exp_f64.h", "0x1.ef35793c7673p-45", "0.0"
    ),
    "a NaN in float64 becomes a number": Mutant(
        "csrc/cpu/exp_f64.h", "smaller(Lanes::all(709.0), c[u])", "smaller(c[u], Lanes::all(709.0))"
    ),
    "the odd powers of an exponential are lost": Mutant(
        "csrc/element.h", "double poly = odd * r + even;", "double poly = even;"
    ),
    "an ignored class number has a gradient by its weight": Mutant(
        "csrc/cpu/tile_impl.h", "if (kWrt == Wrt::kWeight) clear_ignored",
        "if (kWrt == Wrt::kWeight && of.tile.labels == nullptr) clear_ignored",
    ),
    "halves of a hidden class are written": Mutant(
        "csrc/cpu/confusion.cpp",
        "influence ? block_kernels<T>().gradient_halves(block, g, out)\n"
        "                             :",
        "influence || true ? block_kernels<T>().gradient_halves(block, g, out)\n"
        "                             :",
    ),
    "a tail of columns by hand counts what is not there": Mutant(
        "csrc/cpu/hard.h", "d[0] = only(valid, d[0]);\n    add_columns", "add_columns"
    ),
    "a tail of masks has a log-loss": Mutant(
        "csrc/cpu/mask.h", "if constexpr (kVectors == 1) e[0] = only(valid, e[0]);", ""
    ),
    "the last of several largest classes leads": Mutant(
        "csrc/cpu/softmax_step.h", "leads[u] = below(most[u], own[u])",
        "leads[u] = without(all_lanes(), below(own[u], most[u]))",
    ),
    "of few classes the lower one gets the e of the leader": Mutant(
        "csrc/cpu/softmax_step.h", "choose(lead[u], leading[u], lower[u])",
        "choose(lead[u], lower[u], leading[u])",
    ),
    "of few classes the leader keeps its e in the sums": Mutant(
        "csrc/cpu/softmax_step.h", "choose(below(rest[u], one), zero - rest[u], one)", "one"
    ),
    "of few classes the large p are counted as the targets are": Mutant(
        "csrc/cpu/softmax.h", "byte_total(high_, c)", "byte_total(target_, c)"
    ),
    "q of a softmax's largest class cancels": Mutant(
        "csrc/cpu/softmax_step.h", "equal(leader[u], cls), rest[u], floats",
        "equal(leader[u], ints(-2)), rest[u], floats",
    ),
    "of three classes two are summed": Mutant(
        "csrc/cpu/softmax_step.h", "body.template operator()<3>()",
        "body.template operator()<2>()",
    ),
    "a focal loss by hand has the slope of a cross-entropy": Mutant(
        "csrc/cpu/softmax_gradient.h", "power[u] / larger(floats(kLeast), q[u])", "zero"
    ),
    "every class has the focal slope of the true one": Mutant(
        "csrc/cpu/softmax_gradient.h", "add_where(equal(y[u], cls), h[u], focal[u])",
        "h[u] + focal[u]",
    ),
    "an int64 class number is its lower half": Mutant(
        "csrc/cpu/tile_fill.h", "(high_of(own) == 0) & ", ""
    ),
    "an ignored int64 is compared by its lower half": Mutant(
        "csrc/cpu/tile_fill.h", " & (high_of(own) == high[k])", ""
    ),
    "the exponent of a logarithm is off by one in double": Mutant(
        "csrc/logarithm.h", "(0x1p52 + 1024.0)", "(0x1p52 + 1023.0)"
    ),
    "float16 is rounded towards 0": Mutant(
        "csrc/cpu/block_impl.h", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO"
    ),
    "a softmax by hand forgets the other classes": Mutant(
        "csrc/cpu/softmax_gradient.h", "shift[u] - dot[u])", "shift[u])"
    ),
    "what is ignored has a gradient by hand": Mutant(
        "csrc/cpu/softmax_gradient.h", "only(step.live[u], found[u])", "found[u]"
    ),
    "the focal power is that of p": Mutant(
        "csrc/pixel.h", "const T m = y.t * o.q + y.u * o.p,", "const T m = o.p,",
    ),
    "the cross-entropy is divided by smoothed labels": Mutant(
        "csrc/pixel.h", "to[row_of(kExtra, kSupport)] = y.given;",
        "to[row_of(kExtra, kSupport)] = y.t;",
    ),
    "the log-loss is smoothed like the score": Mutant(
        "csrc/pixel.h", "return {t, T(1) - t, log_t, T(1) - log_t, given, T(1) - given};",
        "return {t, T(1) - t, t, T(1) - t, given, T(1) - given};",
    ),
    "a loss without a divisor is divided": Mutant(
        "csrc/score.h", "return {numerator, factors.divided() ? divisor : 1.0};",
        "return {numerator, divisor};",
    ),
    "a distance has a sign": Mutant(
        "csrc/pixel.h", "excess < T(0) ? T(0) : excess;", "excess;"
    ),
    "0 log 0 is a NaN": Mutant(
        "csrc/pixel.h", "return select(Flag<T>(factor != T(0)), factor * value, T(0));",
        "return factor * value;",
    ),
    "log(1 + u) loses a small u": Mutant(
        "csrc/logarithm.h", "return log_of(y) + rounded_off * inverse;", "return log_of(y);"
    ),
    # ---- Python
    "the gradient of a broadcast weight is a mean": Mutant(
        "customloss/_ops/autograd.py",
        "result = _summed_to(weight.shape, result).to(weight.dtype)\n    return",
        "result = (_summed_to(weight.shape, result) / 2).to(weight.dtype)\n    return",
    ),
    "a block leaves its backend behind": Mutant(
        "customloss/_backends/choice.py", "_chosen = self._previous\n", "pass\n"
    ),
    "transforms go through the kernels": Mutant(
        "customloss/_ops/modes.py", "_are_functorch_transforms_active() or", "False and"
    ),
    "beta is not squared": Mutant(
        "customloss/scores.py", "squared = beta * beta", "squared = beta"
    ),
    "any target shape will do": Mutant(
        "customloss/_spec/operands.py",
        "if not _alike(target.shape, shape):", "if len(target.shape) != len(shape):",
    ),
    "the reference has fp and fn swapped": Mutant(
        "customloss/reference/sums.py", "return [t * p, (1 - t) * p, t * q,",
        "return [t * p, t * q, (1 - t) * p,",
    ),
    "the reference counts what it skips": Mutant(
        "customloss/reference/losses.py", "~missing", "missing | ~missing"
    ),
}  # fmt: skip


def compile_into(tree: Path, changed: str | None = None) -> None:
    """Compiles all sources, or those that include ``changed``, and links."""
    objects = tree / "objects"
    objects.mkdir(exist_ok=True)
    for source in sorted((tree / "csrc" / "cpu").glob("*.cpp")):
        built = objects / f"{source.stem}.o"
        includes = built.with_suffix(".d")
        if changed and Path(changed).name not in includes.read_text():
            continue
        # The path is relative, so that objects of different copies are alike.
        relative = source.relative_to(tree)
        compile_ = ["g++", *FLAGS, "-MMD", "-MF", includes, "-c", relative, "-o", built]
        subprocess.run(compile_, cwd=tree, check=True, capture_output=True)
    link = ["g++", "-shared", *sorted(objects.glob("*.o")), f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
    subprocess.run([*link, "-o", tree / "customloss" / "_C.so"], check=True, capture_output=True)


def copied(to: Path) -> Path:
    tree = to / "tree"
    keep = shutil.ignore_patterns("*.so", "__pycache__", "_build.json", "cuda")
    for folder in ("csrc", "customloss", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=keep)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def suite_fails(tree: Path) -> str:
    """The name of the first test that fails, or nothing. A crash is a failure too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not more", "-k", " and ".join(f"not {word}" for word in SPARED)]
    command += [f"tests/{name}" for name in KILLERS]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1) or done.returncode < 0, done.stdout[-2000:] + done.stderr
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"crashed with {done.returncode}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unchanged tree, compiled as the mutants are, on which the suite passes."""
    tree = copied(tmp_path_factory.mktemp("sound"))
    compile_into(tree)
    assert not suite_fails(tree)
    return tree


@pytest.mark.parametrize("name", MUTANTS)
def test_the_line_is_in_its_file_once(name: str) -> None:
    """Somebody who edits the line sees at once that its mutant has to be edited too."""
    file, line, _ = MUTANTS[name]
    assert (ROOT / file).read_text().count(line) == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ to compile the mutants")
@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_notices(name: str, sound: Path, tmp_path: Path) -> None:
    file, line, fault = MUTANTS[name]
    tree = copied(tmp_path)
    path = tree / file
    text = path.read_text()
    path.write_text(text.replace(line, fault, 1))
    shutil.copytree(sound / "objects", tree / "objects")
    if file.startswith("csrc"):
        compile_into(tree, changed=file)
    else:
        shutil.copy(sound / "customloss" / "_C.so", tree / "customloss")
    assert suite_fails(tree), f"survived: {name}"
