"""The eager passes written by hand are right, wherever the blocks end, and keep little."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from customloss._bench import analytic, by_hand, cases, formulas, gate, measure

_CPU = torch.device("cpu")
_BLOCKWISE = {
    "masks": by_hand.masks_form,
    "rows": by_hand.rows_form,
    "planes": by_hand.planes_form,
}
_FORMS = {
    **_BLOCKWISE,
    "picked": by_hand.picked_form,
    "few": by_hand.few_form,
    "one product": by_hand.one_product_form,
}

_CE, _F32 = "cross_entropy", torch.float32
_ODD = (
    cases.Case("one element", (1,), _F32, mask=_F32),
    cases.Case("one more than two blocks", (129,), torch.bfloat16),
    cases.Case("one less than two blocks", (127,), torch.float64, mask=_F32),
    cases.Case("half target", (3, 1, 7, 11), torch.float16, mask=torch.float16),
    cases.Case("float64 BCE", (3, 1, 7, 11), torch.float64, beside=_CE),
    cases.Case("float64 focal", (3, 1, 7, 11), torch.float64, beside="focal"),
    cases.Case("bfloat16 BCE", (3, 1, 7, 11), torch.bfloat16, beside=_CE),
    cases.Case("float16 focal", (3, 1, 7, 11), torch.float16, beside="focal"),
    cases.Case("classes", (96, 100), _F32),
    cases.Case("float target, several classes", (37, 3), _F32, mask=_F32),
    cases.Case("odd pixels", (3, 5, 7, 3), torch.bfloat16, channels_last=True),
    cases.Case("3 labels", (5, 3, 7, 11), _F32, labels=torch.int64),
    cases.Case("half labels", (5, 3, 7, 11), torch.bfloat16, labels=torch.uint8),
    cases.Case("half labels CE", (5, 3, 7, 11), torch.float16, labels=torch.int32, beside=_CE),
    cases.Case("2 labels, float64", (2, 2, 129), torch.float64, labels=torch.int64, beside=_CE),
    cases.Case(
        "8 labels samplewise CE", (2, 8, 3, 5, 7), _F32, labels=torch.uint8, samplewise=True,
        beside=_CE,
    ),
    cases.Case("25 labels CE", (2, 25, 7, 11), _F32, labels=torch.int64, beside=_CE),
    cases.Case("many half labels", (1, 70, 3, 5, 7), torch.bfloat16, labels=torch.uint8),
    cases.Case("rows of labels", (67, 32), _F32, labels=torch.int64),
    cases.Case("half rows of labels CE", (67, 5), torch.bfloat16, labels=torch.uint8, beside=_CE),
)  # fmt: skip
_LATENCIES = tuple(replace(case, latency=True) for case in (*cases.SMOKE, *_ODD))

# by the form that is meant for it
_MEANT = {
    "masks": (
        "image float32", "image bfloat16", "image float16", "image float64",
        "image float32, float target", "image Dice+BCE", "image Dice+focal",
    ),
    "rows": ("classes float32", "channels_last float32"),
    "planes": ("4 labels float32", "4 labels bfloat16", "4 labels Dice+CE", "105 labels Dice+CE"),
    "picked": ("rows of 32 labels",),
    "few": ("64 logits",),
    "one product": ("small Dice+CE",),
}  # fmt: skip


def _built(form: formulas.Form, case: cases.Case) -> formulas.Loss | None:
    try:
        return form(case)
    except formulas.Unavailable:
        return None


def _inputs(case: cases.Case) -> cases.Inputs:
    inputs = cases.make_inputs(case, _CPU)
    if case.elements == 1:
        inputs.target.fill_(1)  # else the gradient is 0, to which no error is relative
    return inputs


@pytest.fixture(params=[64, by_hand.BLOCK], ids=["many blocks", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many elements a block has: with 64 most shapes here end in a shorter one."""
    monkeypatch.setattr(by_hand, "BLOCK", request.param)
    if request.param == 64:
        monkeypatch.setattr(analytic, "ROW", 16)
    return request.param


@pytest.mark.parametrize("case", [*cases.SMOKE, *_ODD], ids=lambda case: case.name)
@pytest.mark.parametrize("name", _BLOCKWISE)
def test_a_form_in_blocks_is_right_and_keeps_little(
    name: str, case: cases.Case, block: int
) -> None:
    loss = _built(_FORMS[name], case)
    if loss is None:
        return
    _check(loss, case)
    assert measure.saved_bytes(loss, _inputs(case)) <= 2 * 8 * 128


@pytest.mark.parametrize("case", _LATENCIES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["picked", "few", "one product"])
def test_a_form_of_few_operations_is_right(name: str, case: cases.Case) -> None:
    loss = _built(_FORMS[name], case)
    if loss is not None:
        _check(loss, case)


def _check(loss: formulas.Loss, case: cases.Case) -> None:
    inputs = _inputs(case)
    verdict = gate.check(loss, inputs, gate.expected(case, inputs))
    assert verdict.passed, verdict
    if case.dtype == torch.float32:
        assert verdict.value_error < 1e-6
        assert verdict.gradient_error < 2e-6
    value, gradient = gate.step(loss, inputs)
    assert gradient.dtype == case.dtype
    assert gradient.stride() == inputs.input.stride()
    assert value.dtype in (case.dtype, torch.promote_types(case.dtype, torch.float32))


@pytest.mark.parametrize("name", _FORMS)
def test_a_form_applies_where_it_is_meant_to(name: str) -> None:
    built = {case.name for case in cases.FULL if _built(_FORMS[name], case) is not None}
    assert built >= set(_MEANT[name])


def test_every_form_is_checked_on_some_case() -> None:
    every = (*cases.SMOKE, *_ODD, *_LATENCIES)
    for form in _FORMS.values():
        assert any(_built(form, case) is not None for case in every)


def test_blocks_cover_everything_with_contiguous_buffers() -> None:
    x, t = torch.arange(30.0).view(3, 10), torch.arange(10)
    seen = []
    for a, b, buffer in by_hand.blocks(1, 4, x, t):
        assert a.shape == buffer.shape and buffer.is_contiguous()
        assert len(b) == a.shape[1]
        seen.append(a)
    assert torch.equal(torch.cat(seen, 1), x)
    assert [each.shape[1] for each in seen] == [4, 4, 2]


def test_where_a_form_does_not_apply_it_says_a_known_reason() -> None:
    said = set()
    for form in _FORMS.values():
        for case in (*cases.SMOKE, *cases.FULL):
            try:
                form(case)
            except formulas.Unavailable as reason:
                said.add(str(reason))
    assert said and said <= formulas.REASONS
