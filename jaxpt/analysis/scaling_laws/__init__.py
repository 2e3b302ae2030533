"""Scaling laws: forms, robust fits, and how far to trust them. float64 NumPy and SciPy, no model code.

    fit = fit_chinchilla(N, D, L)                  # E + A / N^a + B / D^b     chinchilla
    fit_chinchilla(nbar, D, L)                     # N averaged over training  average (sparse and dense runs together)
    fit_repeated(N, D, U, L)                       # tokens seen again         repeated
    fit_asymptote(x, y, sd=0.002)                  # C + A / x^B               asymptote, also nested and learning curves
    fit_mixture(r, y, "exponential")               # weights of domains        mixture, with the best weights
    bootstrap(...), holdout_extrapolation(...), compare(...)                   uncertainty

A fit carries the number of starts that agree, active bounds and the condition of the Hessian, and warns (`FitWarning`)
where its numbers are not to be trusted. Laws from small runs rank recipes and show changes of slope; they do not
extrapolate to billions of parameters.
"""

from jaxpt.analysis.scaling_laws.asymptote import (
    AsymptoteFit,
    AsymptoteLaw,
    LearningCurve,
    fit_asymptote,
    fit_learning_curve,
    fit_nested,
)
from jaxpt.analysis.scaling_laws.average import SparsityRamp, average_params
from jaxpt.analysis.scaling_laws.chinchilla import (
    BESIROGLU,
    HOFFMANN,
    ChinchillaLaw,
    fit_chinchilla,
    published_starts,
)
from jaxpt.analysis.scaling_laws.mixture import Average, MixtureLaw, fit_mixture, mixture_design
from jaxpt.analysis.scaling_laws.repeated import RepeatedLaw, fit_repeated
from jaxpt.analysis.scaling_laws.robust import Fit, FitWarning
from jaxpt.analysis.scaling_laws.uncertainty import (
    Bootstrap,
    Compared,
    Holdout,
    aicc,
    bootstrap,
    compare,
    holdout_extrapolation,
)

__all__ = [
    "BESIROGLU",
    "HOFFMANN",
    "AsymptoteFit",
    "AsymptoteLaw",
    "Average",
    "Bootstrap",
    "ChinchillaLaw",
    "Compared",
    "Fit",
    "FitWarning",
    "Holdout",
    "LearningCurve",
    "MixtureLaw",
    "RepeatedLaw",
    "SparsityRamp",
    "aicc",
    "average_params",
    "bootstrap",
    "compare",
    "fit_asymptote",
    "fit_chinchilla",
    "fit_learning_curve",
    "fit_mixture",
    "fit_nested",
    "fit_repeated",
    "holdout_extrapolation",
    "mixture_design",
    "published_starts",
]
