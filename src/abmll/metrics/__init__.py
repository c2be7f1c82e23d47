"""From stored log-probabilities to a table: accuracy, calibration and ranking, with intervals and paired tests.

Pure NumPy and SciPy in float64. `summarise` does all of it; the single metrics are here for use on their own.
"""

from abmll.metrics.accuracy import accuracy, confidence, confusion, is_correct, macro_f1, predicted
from abmll.metrics.binning import ReliabilityTable, reliability
from abmll.metrics.calibration import adaptive_ece, brier, classwise_ece, ece, ece_per_example, nll
from abmll.metrics.cells import Cell
from abmll.metrics.noise_floor import NullECE, ece_corrected, ece_null
from abmll.metrics.paired import PairedTest, holm, paired_t, paired_test, sign_flip, swap_test, task_differences
from abmll.metrics.predictive import Uncertainty, entropy, mixture, uncertainty
from abmll.metrics.ranking import RiskCoverage, aurc, auroc, risk_coverage, separation
from abmll.metrics.summary import summarise
from abmll.metrics.table import Comparison, Estimate, MethodRow, Summary

__all__ = [
    "Cell",
    "Comparison",
    "Estimate",
    "MethodRow",
    "NullECE",
    "PairedTest",
    "ReliabilityTable",
    "RiskCoverage",
    "Summary",
    "Uncertainty",
    "accuracy",
    "adaptive_ece",
    "aurc",
    "auroc",
    "brier",
    "classwise_ece",
    "confidence",
    "confusion",
    "ece",
    "ece_corrected",
    "ece_null",
    "ece_per_example",
    "entropy",
    "holm",
    "is_correct",
    "macro_f1",
    "mixture",
    "nll",
    "paired_t",
    "paired_test",
    "predicted",
    "reliability",
    "risk_coverage",
    "separation",
    "sign_flip",
    "summarise",
    "swap_test",
    "task_differences",
    "uncertainty",
]
