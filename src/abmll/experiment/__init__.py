"""The loop around the method: settings, models by name, training with resume, evaluation into stored cells."""
