"""Where the Gaussian lives: one contract (`base.Latent`), one file a latent, one registry."""

from abmll.adapter.latents.base import Latent
from abmll.adapter.latents.factor import Factor
from abmll.adapter.latents.output import Output
from abmll.adapter.latents.point import Point
from abmll.adapter.latents.weight import Weight

LATENTS: dict[str, Latent] = {latent.name: latent for latent in (Point(), Output(), Factor(), Weight())}

__all__ = ["LATENTS", "Factor", "Latent", "Output", "Point", "Weight"]
