"""The rivals: the same loss as others would write it, each in its fastest correct form.

A family ("eager", "torch.compile", ...) may have several forms; ``run`` judges all of them and
times those that pass the gate. What they compute is in ``formulas`` (as people write it),
``by_hand``, ``analytic`` (with the exponentials of ``arithmetic``) and ``at_once`` (gradients
written out), and ``libraries``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import customloss
from customloss._bench import (
    analytic,
    arithmetic,
    at_once,
    by_hand,
    formulas,
    libraries,
    memory,
)
from customloss._bench.cases import Case
from customloss._bench.formulas import Form, Loss, Unavailable, formula_sums
from customloss._bench.libraries import missing, versions

__all__ = [
    "COMPILED", "EAGER", "FAMILIES", "OURS", "TYPED", "Loss", "Rival", "Unavailable",
    "formula_sums", "missing", "rivals", "versions",
]  # fmt: skip

OURS = "customloss"
EAGER = "eager"
COMPILED = "torch.compile"
FAMILIES = (OURS, EAGER, COMPILED, *(library.family for library in libraries.LIBRARIES))
# as a command line names them
TYPED = {"eager": EAGER, "compile": COMPILED} | {
    library.typed: library.family for library in libraries.LIBRARIES
}


@dataclass(frozen=True)
class Rival:
    family: str
    form: str
    build: Callable[[Case], Loss]


def _ours(case: Case) -> Loss:
    if case.beside:
        if case.labels is not None:
            return customloss.dice_ce_loss
        return customloss.dice_focal_loss if case.beside == "focal" else customloss.dice_bce_loss
    op: Any = torch.ops.customloss.soft_f1.default
    loss: Loss = op
    if case.labels is not None:
        loss = partial(op, activation="softmax", samplewise=case.samplewise)
    return loss


def _compiled(form: Form, **options: Any) -> Form:
    """A form compiled whole, which gets bool masks as bytes."""

    def build(case: Case) -> Loss:
        program = analytic.compiled(form(case), **options)
        return lambda input, target: program(input, formulas.as_bytes(target))

    return build


def _latency(form: Form) -> Form:
    """A form that only matters where overhead does."""

    def build(case: Case) -> Loss:
        formulas.require(case.latency, formulas.LATENCY_ONLY)
        return form(case)

    return build


_FORMULAS: dict[str, Form] = {
    "sums": formulas.sums_form,
    "where": formulas.where_form,
    "dot": formulas.dot_form,
    "compared": formulas.compared_form,
    "compared, one softmax": formulas.compared_logs_form,
    "gathered": formulas.gathered_form,
    "gathered, one softmax": formulas.gathered_logs_form,
    "unrolled": formulas.unrolled_form,
    "one product": by_hand.one_product_form,
    "masks by hand": by_hand.masks_form,
    "rows by hand": by_hand.rows_form,
    "planes by hand": by_hand.planes_form,
    "picked by hand": by_hand.picked_form,
    "few by hand": by_hand.few_form,
}
_TEXTBOOK = ("sums", "compared")
_WORTH_COMPILING = (*_TEXTBOOK, "compared, one softmax", "gathered", "unrolled")


def _library_forms(compile: bool) -> list[Rival]:
    own: dict[str, Form] = {
        "MONAI": libraries.monai,
        "nnU-Net": libraries.nnunet,
        "smp": libraries.smp,
        "kornia": libraries.kornia,
    }
    forms = [(family, "own", form) for family, form in own.items()]
    forms += [(family, "float()", libraries.in_float32(form)) for family, form in own.items()]
    forms.append(("smp", "double()", libraries.smp_in_float64))
    forms.append(("smp", "of probabilities", libraries.smp_of_probabilities))
    found = [Rival(*form) for form in forms]
    if compile:
        # MONAI cannot be compiled whole
        found += [
            Rival(family, f"compiled {form}", _compiled(build, fullgraph=family != "MONAI"))
            for family, form, build in forms
        ]
        made = {"nnU-Net": libraries.nnunet_exp2, "smp": libraries.smp_exp2}
        found += [
            Rival(family, "compiled, of powers of two", _compiled(build))
            for family, build in made.items()
        ]
    return found


def _compiled_forms(device: torch.device, all_forms: bool) -> list[Rival]:
    names = _WORTH_COMPILING if all_forms else _TEXTBOOK
    named = [(name, _FORMULAS[name]) for name in names]
    found = [Rival(COMPILED, name, _compiled(form)) for name, form in named]
    found.append(Rival(COMPILED, "analytic", analytic.analytic_form))
    if device.type == "cuda":
        tuned: Any = {"options": {"max_autotune": True, "coordinate_descent_tuning": True}}
        for name in ("sums", "compared"):
            form = _compiled(_FORMULAS[name], **tuned)
            found.append(Rival(COMPILED, f"tuned {name}", form))
        form = partial(analytic.analytic_form, **tuned)
        found.append(Rival(COMPILED, "tuned analytic", form))
        graphs = _latency(partial(analytic.analytic_form, mode="reduce-overhead"))
        found.append(Rival(COMPILED, "analytic, CUDA graphs", graphs))
    else:
        found.append(Rival(COMPILED, "at once", at_once.at_once_form))
        lean = partial(at_once.at_once_form, options={"cpp_wrapper": True})
        found.append(Rival(COMPILED, "at once, C++ wrapper", lean))
        found.append(Rival(COMPILED, "at once, package", at_once.package_form))
        if all_forms:
            found += _arithmetics()
    return found


def _arithmetics() -> list[Rival]:
    """Gradients by hand for the CPU, where an exponential is not one instruction.

    They are written to memory that is kept wherever customloss keeps that of its gradients.
    """
    keeps = memory.keeps_gradients()
    strongest = analytic.kept_form if keeps else analytic.analytic_form

    def of(maths: arithmetic.Arithmetic, check: Callable[[Case], None]) -> Form:
        def build(case: Case) -> Loss:
            check(case)
            return strongest(case, maths, options=arithmetic.options())

        return build

    def any_case(case: Case) -> None:
        pass

    def labels(case: Case) -> None:
        formulas.require(case.labels is not None, formulas.LABELS_ONLY)

    def masks(case: Case) -> None:
        formulas.require(case.labels is None, formulas.MASKS_ONLY)
        formulas.require(not case.beside, formulas.ALONE_ONLY)

    forms = {
        "polynomial": of(arithmetic.POLYNOMIAL, any_case),
        "exponent as bits": of(arithmetic.BITS, labels),
        "rational sigmoid": of(arithmetic.RATIONAL, masks),
    }
    more = ", kept gradient" if keeps else ""
    return [Rival(COMPILED, name + more, form) for name, form in forms.items()]


def rivals(device: torch.device, *, compile: bool = True, all_forms: bool = True) -> list[Rival]:
    """All implementations that may race on this device, ours first.

    Compiling takes most of the time of a benchmark. Without ``all_forms`` only the textbook's
    formulas are compiled, and the analytic one, which is mostly the fastest; no library is.
    """
    found = [Rival(OURS, "op", _ours)]
    found += [Rival(EAGER, name, form) for name, form in _FORMULAS.items()]
    if compile:
        found += _compiled_forms(device, all_forms)
    return found + _library_forms(compile and all_forms)
