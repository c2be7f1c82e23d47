"""The PEFT tuner "ABMLL": one adapter is one diagonal Gaussian over low-rank updates."""

# PEFT first: importing it registers the tuner, which imports this package's modules. Were one of them to import PEFT
# itself, registration would find that module half made.
import peft as _peft  # noqa: F401
