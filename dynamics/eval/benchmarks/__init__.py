"""Published multiple-choice benchmarks: CMMLU, AGIEval's Chinese sets and C-Eval, to the letter of their layouts."""

from dynamics.eval.benchmarks.agieval import AgiEval
from dynamics.eval.benchmarks.benchmark import Benchmark, Contents, Question
from dynamics.eval.benchmarks.ceval import DOIT_PARTS, CEval
from dynamics.eval.benchmarks.cmmlu import Cmmlu

FAMILY: tuple[type[Benchmark], ...] = (Cmmlu, AgiEval, CEval)

__all__ = ["DOIT_PARTS", "FAMILY", "AgiEval", "Benchmark", "CEval", "Cmmlu", "Contents", "Question"]
