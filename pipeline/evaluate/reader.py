r"""LaTeX to sympy, exactly and without evaluation: math-verify's grammar, read by stricter rules.

    read(r"\frac{1}{2}", real=True)    # Rational(1, 2)

math-verify 0.9 reads LaTeX with latex2sympy2_extended 1.11: an ANTLR grammar and a converter from its parse tree. Read
for what it does with a model's text, the pair has four places where text becomes Python code, and reads some texts as
what they are not. Nothing of that is left here:

- math_verify.parser finds expressions with regular expressions and passes some to sympy's `parse_expr`, which is an
  `eval`; and what does not parse as a whole is searched for parts that do. It is not used: the whole text is one
  expression of the grammar or none.
- the converter makes numbers with `sympy.Number(text)`: `sympify`, and so `parse_expr` and `eval`, also of text that
  `convert_number` takes for thousands. Here `fractions.Fraction` reads numbers, and decimals stay exact (math-verify's
  floats make 0.0000001 equal to 0.0000002).
- `variable_values` would be passed to `parse_expr`: it is never given. `\operatorname` would call sympy functions by
  name: latex.py lets no such command through.
- `3 4` and `2(3)` were mixed numbers, 7 and 5; `52_8` was 52, `a^T` was a, X was x, a degree sign nothing.
- powers, factorials and binomials of more than LARGEST bits are refused before anything computes them.
"""

import re
from fractions import Fraction
from importlib.metadata import version
from math import lgamma

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy.core.function import AppliedUndef

READ = {"math-verify": "0.9.", "latex2sympy2_extended": "1.11."}
"""The versions whose source was read; another may bring `eval` back, and is refused."""
LARGEST = 200_000
"""Bits of a number that may be computed."""
for _name, _version in READ.items():
    if not version(_name).startswith(_version):
        raise ImportError(f"{_name} {_version}x is needed, {version(_name)} is installed")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_WITH_COMMAS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_TEXT = re.compile(r"[A-Za-z0-9 .+\-*/^_=<>(){}\[\],|!&\\]+")


class NotRead(ValueError):
    """A text that has no value by these rules."""


def read(text: str, real: bool):
    """The sympy object that a form of latex.py stands for; `real`: its letters are real numbers.

    Raises NotRead, or whatever the grammar, the converter or sympy raises at a text that is none of theirs.
    """
    if not _TEXT.fullmatch(text) or _WITH_COMMAS.fullmatch(text):
        raise NotRead("not a form of latex.py")
    found = _Reader(is_real=real, config=ConversionConfig(lowercase_symbols=False)).parse(text)
    if not isinstance(found, (sympy.Basic, sympy.MatrixBase)):
        raise NotRead("no value")
    return found


def bits(value) -> float:
    """Bound of the bits that computing `value` takes; letters count as one."""
    if getattr(value, "is_Rational", False):
        return max(value.p.bit_length(), value.q.bit_length(), 1)
    if isinstance(value, sympy.Pow):
        base, exponent = bits(value.base), value.exp
        return base * (max(abs(exponent), 1) if exponent.is_Rational else 2 ** min(bits(exponent), 64))
    if isinstance(value, sympy.factorial):
        (of,) = value.args
        return lgamma(float(of) + 2) * 1.5 if of.is_Rational and 0 <= of < 10 ** 9 else 2 ** min(bits(of), 64)
    return sum((bits(part) for part in getattr(value, "args", ())), 1)


def _bounded(value):
    if bits(value) > LARGEST:
        raise NotRead("too large to compute")
    return value


class _Reader(_Latex2Sympy):
    """The converter with the rules above."""

    def parse_number(self, text: str):
        if not _NUMBER.fullmatch(text):
            raise NotRead("not a number")
        number = Fraction(text)
        return sympy.Rational(number.numerator, number.denominator)

    def convert_atom(self, atom):
        subscript = atom.number_subexpr()
        if subscript and subscript.subexpr() or atom.E_NOTATION() or atom.PERCENT_NUMBER() or atom.VARIABLE():
            raise NotRead("a number in another base, or no number")
        return super().convert_atom(atom)

    def convert_finite_set(self, expr):
        found = super().convert_finite_set(expr)
        if isinstance(found, sympy.FiniteSet):
            found.braced = True
        return found

    def convert_exp(self, exp):
        return _bounded(super().convert_exp(exp))

    def convert_binom(self, binom):
        top, bottom = self.convert_expr(binom.upper), self.convert_expr(binom.lower)
        if any(part.is_number and not (part.is_Integer and abs(part) <= 2000) for part in (top, bottom)):
            raise NotRead("a binomial that is not computed")
        return sympy.binomial(top, bottom)

    def convert_postfix(self, postfix):
        operators = postfix.postfix_op()
        if any(operator.transpose() or operator.degree() or operator.eval_at() for operator in operators):
            raise NotRead("a sign behind an expression")
        if len(operators) > 1:  # n!! is no factorial of a factorial
            raise NotRead("two signs behind an expression")
        return _bounded(super().convert_postfix(postfix))

    def convert_postfix_list(self, arr, i=0):
        """Factors side by side; of two numbers only `2\\frac{1}{2}` is read, as 2.5."""
        factors, texts = [self.convert_postfix(part) for part in arr[i:]], [part.getText() for part in arr[i:]]
        if any(not isinstance(factor, (sympy.Expr, sympy.MatrixBase)) for factor in factors):
            raise NotRead("a factor that is no expression")
        if len(factors) == 2 and texts[0].isdigit() and texts[1].startswith("\\frac") and _proper(factors[1]):
            return factors[0] + factors[1]
        for (left, right), text in zip(zip(factors, factors[1:]), texts[1:]):
            if left.is_Rational and right.is_Rational and not text.startswith(("(", "[")):
                raise NotRead("two numbers side by side")
        result = factors[-1]
        for factor in reversed(factors[:-1]):
            flat = self.mat_mul_flat if factor.is_Matrix or result.is_Matrix else self.mul_flat
            result = flat(factor, result)
        return result


def _proper(value) -> bool:
    return bool(value.is_Rational and 0 < value.p < value.q)


def is_name(value) -> bool:
    """A letter, or a function of letters: what may stand before an equals sign to name a value."""
    named = isinstance(value, AppliedUndef) and all(part.is_Symbol for part in value.args)
    return bool(getattr(value, "is_Symbol", False) or named)
