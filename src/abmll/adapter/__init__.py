"""The PEFT tuner "ABMLL": one adapter is one diagonal Gaussian over low-rank updates."""
