r"""Do two readings of reader.py have the same value? math-verify must say so, and so must the numbers.

    same_value(r"3x+1", r"1+3x")    # "equal"

`math_verify.verify` alone accepts too much (all measured): sets whose order or number of elements differs from a
tuple's, 1/10^20 for 2/10^20, x^2 + 1 = 0 for x^2 + 2 = 0, 0.333333 for 1/3. So it is asked only about two expressions
or two sets at a time, after both were found to agree to DIGITS digits at POINTS, and the rules for the rest are here:

- tuples, intervals, matrices: same kind, same bounds, in order. `(1, 2)`, an open interval or a point, is also `1, 2`
  in this order, never `{1, 2}`.
- lists and sets: the same elements in any order, as often as they are named.
- an equation: the same left side and an equal right one, or both a constant multiple of each other. `x = 5` is also
  `5`, `y = 2x` also `2x`; `2x = 5` is not `5`.
- inequalities: a positive multiple, or a negative one with the sign turned; and the interval that they stand for.
"""

import math_verify
import sympy
from math_verify.grader import should_treat_as_complex
from sympy.core.relational import Relational

from pipeline.evaluate.reader import NotRead, is_name, read

DIGITS = 40
POINTS = [sympy.Rational(7, 23), sympy.Rational(31, 13), sympy.Rational(-17, 11), sympy.Rational(-3, 29)]
"""Value of the first letter; the next ones differ by STEP."""
STEP = sympy.Rational(5, 7)
_TURNED = {sympy.StrictLessThan: sympy.StrictGreaterThan, sympy.LessThan: sympy.GreaterThan,
           sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan,
           sympy.Unequality: sympy.Unequality}


def same_value(reference: str, answer: str) -> str:
    """"equal", "unequal", or what could not be done, in a few words; both are forms of latex.py."""
    real = not (should_treat_as_complex(reference) or should_treat_as_complex(answer))
    values = []
    for name, text in (("reference", reference), ("answer", answer)):
        try:
            values.append(read(text, real))
        except MemoryError:
            raise
        except Exception:  # the text decides what is raised: errors of the grammar, the converter, sympy, recursion
            return f"the {name} cannot be read"
    try:
        return "equal" if _same(*values) else "unequal"
    except MemoryError:
        raise
    except Exception:
        return "cannot be compared"


def _same(one, other) -> bool:
    one, other = _assigned(one, other), _assigned(other, one)
    if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
        return _same_matrix(one, other)
    if _is_relation(one) and _is_relation(other):
        return _same_relations(one, other)
    one, other = _as_set(one, other), _as_set(other, one)
    first, second = _elements(one), _elements(other)
    if first and second:
        return _same_elements(first, second)
    if isinstance(one, sympy.Interval) and isinstance(other, sympy.Interval):
        return (one.left_open, one.right_open) == (other.left_open, other.right_open) and _same(
            one.start, other.start) and _same(one.end, other.end)
    if isinstance(one, sympy.Set) and isinstance(other, sympy.Set) and not first and not second:
        return one == other or _verify(one, other)
    if isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr):
        return one == other or _agree(one, other) and _verify(one, other)
    return False


def _verify(one, other) -> bool:
    return math_verify.verify(one, other, timeout_seconds=None) is True


def _same_matrix(one, other) -> bool:
    one, other = one.doit(), other.doit()
    same_shape = isinstance(one, sympy.MatrixBase) and isinstance(other, sympy.MatrixBase) and one.shape == other.shape
    return same_shape and all(_same(left, right) for left, right in zip(one.flat(), other.flat(), strict=True))


# --- lists, sets, tuples -----------------------------------------------------------------------------------------


def _elements(value) -> tuple[str, list] | None:
    """("list", "set" or "tuple", elements as they were written) if `value` has elements that can be counted."""
    if isinstance(value, sympy.FiniteSet):
        kind = "set" if getattr(value, "braced", False) else "list"
        return kind, list(getattr(value, "_unsorted_args", value.args))
    if isinstance(value, sympy.Tuple):
        return "tuple", list(value.args)
    if isinstance(value, sympy.Interval) and value.left_open and value.right_open and not {
            value.start, value.end} & {sympy.oo, -sympy.oo}:
        return "pair", [value.start, value.end]
    return None


def _same_elements(first: tuple[str, list], second: tuple[str, list]) -> bool:
    kinds = {first[0], second[0]}
    if len(first[1]) != len(second[1]) or "set" in kinds and kinds - {"set", "list"} or kinds == {"tuple", "pair"}:
        return False
    if kinds & {"tuple", "pair"}:
        return _plainly_named(first[1], second[1]) and all(map(_same, first[1], second[1]))
    return _plainly_named(first[1], second[1]) and _matched(first[1], second[1])


def _matched(first: list, second: list) -> bool:
    """Whether each element of one has its own equal in the other."""
    left = list(second)
    for element in first:
        equal = next((place for place, candidate in enumerate(left) if _same(element, candidate)), None)
        if equal is None:
            return False
        del left[equal]
    return True


def _plainly_named(first: list, second: list) -> bool:
    """x = 1, x = 2 may stand for 1, 2; x = 1, y = 2 may not."""
    names = [{element.lhs for element in elements if isinstance(element, sympy.Eq)} for elements in (first, second)]
    return names[0] == names[1] or all(len(each) <= 1 for each in names)


# --- equations, inequalities -------------------------------------------------------------------------------------


def _is_relation(value) -> bool:
    return isinstance(value, (Relational, sympy.And))


def _assigned(value, other):
    """The right side of `x = value`, where `other` is no equation."""
    if not isinstance(value, sympy.Eq) or isinstance(other, sympy.Eq):
        return value
    names = value.lhs.args if isinstance(value.lhs, sympy.Tuple) else (value.lhs,)
    own = all(is_name(name) and not value.rhs.has(name) for name in names)
    if _is_relation(other):
        own = own and value.lhs.free_symbols == other.free_symbols
    return value.rhs if own else value


def _same_relations(one, other) -> bool:
    chains = [list(getattr(each, "_unsorted_args", each.args)) if isinstance(each, sympy.And) else [each]
              for each in (one, other)]
    if any(len(chain) > 1 and any(isinstance(each, sympy.Eq) for each in chain) for chain in chains):
        raise NotRead("a chain of equations")
    return len(chains[0]) == len(chains[1]) and all(map(_same_relation, *chains))


def _same_relation(one, other) -> bool:
    if isinstance(one, sympy.Eq) and isinstance(other, sympy.Eq):
        if one.lhs == other.lhs and is_name(one.lhs) or not all(
                isinstance(side, sympy.Expr) for each in (one, other) for side in each.args):
            return one.lhs == other.lhs and _same(one.rhs, other.rhs)
        return _multiple(one, other) is not None
    factor = _multiple(one, other)
    if factor is None:
        return False
    return type(one) is type(other) and (factor > 0 or isinstance(one, sympy.Unequality)) or (
        _TURNED.get(type(one)) is type(other) and factor < 0)


def _multiple(one, other):
    """The number c for which left - right of `one` is c times that of `other`, None if there is none."""
    one, other = one.lhs - one.rhs, other.lhs - other.rhs
    names = sorted({symbol.name for symbol in one.free_symbols | other.free_symbols})
    ratio = _at(one, POINTS[0], names) / _at(other, POINTS[0], names)
    if not ratio.is_real or not ratio.is_finite or ratio == 0:
        return None
    return ratio if _agree(one, ratio * other) and _verify(one, ratio * other) else None


def _as_set(value, other):
    """The set of the numbers for which an inequality in one letter holds, where `other` is a set."""
    if not _is_relation(value) or not isinstance(other, sympy.Set) or len(value.free_symbols) != 1:
        return value
    return (sympy.And(*value.args) if isinstance(value, sympy.And) else value).as_set()


# --- numbers -----------------------------------------------------------------------------------------------------


def _agree(one, other) -> bool:
    """Whether both have the same value at the points where they have one; false if that is nowhere."""
    pairs = [pair for pair in _at_points(one, other) if any(value.is_finite for value in pair)]
    return bool(pairs) and all(_close(*pair) for pair in pairs)


def _at_points(one, other):
    """Values of both at each point (at one, if they have no letters)."""
    names = sorted({symbol.name for symbol in one.free_symbols | other.free_symbols})
    for point in POINTS if names else POINTS[:1]:
        yield tuple(_at(value, point, names).evalf(2 * DIGITS) for value in (one, other))


def _at(value, point, names: list[str]):
    return value.subs({symbol: point + STEP * names.index(symbol.name) for symbol in value.free_symbols})


def _close(one, other) -> bool:
    parts = [part for value in (one, other) for part in value.as_real_imag()]
    if not all(part.is_Number and part.is_finite for part in parts):
        return False
    scale = max(abs(part) for part in parts)
    return max(abs(parts[0] - parts[2]), abs(parts[1] - parts[3])) <= scale * sympy.Rational(1, 10 ** DIGITS)
