"""Published multiple-choice benchmarks: CMMLU, AGIEval's Chinese sets and C-Eval, to the letter of their layouts."""

from dynamics.eval.benchmarks.benchmark import Benchmark, Contents, Question

__all__ = ["Benchmark", "Contents", "Question"]
