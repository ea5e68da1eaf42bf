"""Synthetic sounds for tests."""
import numpy as np


def spoken(seed=0, seconds=1.0, rate=24_000):
    """A synthetic babbling voice, `(samples,)`: pitch and one formant vary over time.

    Each `seed` gives a different sound. A longer sound starts with the shorter sound of the same
    seed.
    """
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * rate)) / rate
    steps = np.arange(0, 60, 0.1)  # seconds of syllables
    turns = np.arange(len(steps)) % 2 * 2 - 1
    pitch = rng.uniform(110, 220) * np.exp(
        np.interp(t, steps, turns * rng.uniform(0.05, 0.15, len(steps)))
    )
    mouth = np.interp(t, steps, 1_100 + turns * rng.uniform(200, 800, len(steps)))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    parts = [np.sin(k * phase) / (1 + ((k * pitch - mouth) / 300) ** 2) for k in range(1, 16)]
    return 0.15 * sum(parts)
